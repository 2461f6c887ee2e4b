"""A filter tree over one immutable set of rows becomes a bitmap. No step loops over rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from nearfield_index.bitmap import SPARSE_SHARE, Bitmap
from nearfield_index.filters.expr import (
    All,
    And,
    Everything,
    Exists,
    Expr,
    Ids,
    Match,
    Not,
    Nothing,
    Number,
    Or,
    Prefix,
    Range,
    Values,
)
from nearfield_index.storage.columns import Attribute, Columns, SortedPart
from nearfield_index.storage.postings import RowIds

IdsLookup = Callable[[Sequence[int | str]], npt.NDArray[np.integer]]

_EXACT_FLOAT = 2**53


def compile_filter(expr: Expr, columns: Columns, ids_lookup: IdsLookup) -> Bitmap:
    """The rows of ``columns`` that pass ``expr``.

    ``ids_lookup`` takes ids and returns the rows (any integer dtype, any order) of those that are here.
    """
    n = columns.n
    match expr:
        case Everything():
            return Bitmap.all(n)
        case Nothing():
            return Bitmap.none(n)
        case Ids(ids):
            return Bitmap.from_rows(n, np.asarray(ids_lookup(ids), np.int64), ordered=False)
        case And(children):
            return _conjunction(children, columns, ids_lookup)
        case Or(children):
            passed = Bitmap.none(n)
            for child in children:
                passed |= compile_filter(child, columns, ids_lookup)
            return passed
        case Not(child):
            return ~compile_filter(child, columns, ids_lookup)
        case _:
            return _leaf(expr, columns)


def _conjunction(children: Sequence[Expr], columns: Columns, ids_lookup: IdsLookup) -> Bitmap:
    """Positive children first, few rows before many, then the negated ones taken away; stops once empty."""
    wanted = [compile_filter(child, columns, ids_lookup) for child in children if not isinstance(child, Not)]
    passed = Bitmap.all(columns.n)
    for bitmap in sorted(wanted, key=len):
        passed &= bitmap
    for child in children:
        if isinstance(child, Not) and passed.count:
            passed -= compile_filter(child.child, columns, ids_lookup)
    return passed


def _leaf(expr: Expr, columns: Columns) -> Bitmap:
    n = columns.n
    match expr:
        case Match(name, values) if attribute := columns.attribute(name):
            parts = _rows_of_values(attribute, values)
            if len(parts) == 1 and len(values) == 1:
                return Bitmap.from_rows(n, parts[0])
            return Bitmap.from_rows(n, _joined(parts), ordered=False)
        case All(name, values) if attribute := columns.attribute(name):
            return _rows_of_all(attribute, values)
        case Range(name) if attribute := columns.attribute(name):
            return Bitmap.from_rows(n, _joined(_rows_in_range(attribute, expr)), ordered=False)
        case Prefix(name, value) if (attribute := columns.attribute(name)) and attribute.keyword:
            first, last = attribute.keyword.words.prefix(value)
            return Bitmap.from_rows(n, attribute.keyword.postings.span(first, last), ordered=False)
        case Exists(name) if attribute := columns.attribute(name):
            return attribute.exists
        case _:
            return Bitmap.none(n)


def _joined(parts: Sequence[RowIds]) -> RowIds:
    if not parts:
        return np.empty(0, np.int32)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _rows_of_values(attribute: Attribute, values: Values) -> list[RowIds]:
    """Rows of each of ``values`` that occurs, an array per class; a row with several comes several times."""
    parts: list[RowIds] = []
    if values.keywords and attribute.keyword:
        parts.append(attribute.keyword.postings.take(attribute.keyword.words.find(values.keywords)))
    whole = np.array([v for v in values.numbers if isinstance(v, int)], np.int64)
    floats = np.array([v for v in values.numbers if isinstance(v, float)], np.float64)
    wanted: tuple[tuple[str, npt.NDArray[np.generic]], ...] = (
        ("integer", whole),
        ("float", floats),
        ("bool", np.array(values.bools, np.uint8)),
        ("datetime", np.array(values.instants, np.int64)),
    )
    for name, operands in wanted:
        part = attribute.sorted.get(name)
        if part is not None and len(operands):
            places = np.minimum(np.searchsorted(part.values, operands), len(part.values) - 1)
            parts.append(part.postings.take(places[part.values[places] == operands]))
    return [part for part in parts if len(part)]


def _rows_of_all(attribute: Attribute, values: Values) -> Bitmap:
    """Rows that occur once for every value: within a value rows are distinct, so counting is enough."""
    rows = _joined(_rows_of_values(attribute, values))
    if len(rows) * SPARSE_SHARE > attribute.n:
        return Bitmap.from_mask(np.bincount(rows, minlength=attribute.n) == len(values))
    distinct, times = np.unique(rows, return_counts=True)
    return Bitmap.from_rows(attribute.n, distinct[times == len(values)])


def _rows_in_range(attribute: Attribute, expr: Range) -> list[RowIds]:
    """Rows with a value in the range: one slice of the postings per class of values."""
    names = ("integer", "float") if expr.kind == "number" else ("datetime",)
    parts: list[RowIds] = []
    for name in names:
        part = attribute.sorted.get(name)
        if part is None:
            continue
        first, last = 0, len(part.values)
        if expr.lower is not None:
            first = _cut(part, name, expr.lower, after=not expr.lower_inclusive)
        if expr.upper is not None:
            last = _cut(part, name, expr.upper, after=expr.upper_inclusive)
        if first < last:
            parts.append(part.postings.span(first, last))
    return parts


def _cut(part: SortedPart, name: str, bound: Number, *, after: bool) -> int:
    """How many of the part's values are below ``bound``, or not above it when ``after``; compared exactly."""
    if name == "float":
        # Floats of this part are either not whole, hence below 2**52 in size, or past 64 bits: every whole
        # bound from 2**53 up to 64 bits cuts them at one place, and a float holds 2**53 exactly.
        exact = float(max(-_EXACT_FLOAT, min(bound, _EXACT_FLOAT))) if isinstance(bound, int) else bound
        return int(np.searchsorted(part.values, np.float64(exact), "right" if after else "left"))
    if isinstance(bound, float):
        if not -(2.0**63) <= bound < 2.0**63:
            return 0 if bound < 0 else len(part.values)
        # a bound between two integers: equality is impossible, so both ends of it cut before the next integer
        return int(np.searchsorted(part.values, np.int64(math.ceil(bound)), "left"))
    return int(np.searchsorted(part.values, np.int64(bound), "right" if after else "left"))
