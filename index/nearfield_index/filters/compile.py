"""A filter tree meets the columns of one immutable set of rows. No step loops over rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from nearfield_index.bitmap import Bitmap
from nearfield_index.filters.compiled import Both, Compiled, Either, Known, Places, Rest, Span
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
    OfAttribute,
    Or,
    Prefix,
    Range,
    Values,
)
from nearfield_index.storage.columns import Attribute, Columns, SortedPart
from nearfield_index.storage.postings import Positions, Postings

IdsLookup = Callable[[Sequence[int | str]], npt.NDArray[np.integer]]

_EXACT_FLOAT = 2**53


def compile_filter(expr: Expr, columns: Columns, ids_lookup: IdsLookup) -> Compiled:
    """The filter over the rows of ``columns``; nothing but the places of its values is looked up yet.

    ``ids_lookup`` takes ids and returns the rows (any integer dtype, any order) of those that are here.
    """
    n = columns.n
    if isinstance(expr, OfAttribute):
        attribute = columns.attribute(expr.field)
        return Known(Bitmap.none(n)) if attribute is None else _leaf(expr, attribute)
    match expr:
        case Everything():
            return Known(Bitmap.all(n))
        case Nothing():
            return Known(Bitmap.none(n))
        case Ids(ids):
            return Known(Bitmap.from_unordered(n, np.asarray(ids_lookup(ids)), distinct=False))
        case And(children):
            return _all_of(n, [compile_filter(child, columns, ids_lookup) for child in children])
        case Or(children):
            return Either(n, [compile_filter(child, columns, ids_lookup) for child in children])
        case Not(child):
            return Rest(compile_filter(child, columns, ids_lookup))
    raise TypeError(f"no filter: {type(expr).__name__}")


def _leaf(expr: OfAttribute, attribute: Attribute) -> Compiled:
    n = attribute.n
    match expr:
        case Range():
            return _any_of(n, _spans(attribute, expr))
        case Match():
            return _any_of(n, _places(attribute, expr.values))
        case All():
            return Known(_rows_of_all(attribute, expr.values))
        case Prefix() if attribute.keyword:
            return Span(n, attribute.keyword.postings, *attribute.keyword.words.prefix(expr.value))
        case Exists():
            return Known(attribute.exists)
    return Known(Bitmap.none(n))


def _all_of(n: int, parts: Sequence[Compiled]) -> Compiled:
    """The conjunction; runs of values of one attribute become one run where no row holds several values."""
    kept: list[Compiled] = []
    for part in parts:
        for place, other in enumerate(kept):
            joined = part.within(other) if isinstance(part, Span) and isinstance(other, Span) else None
            if joined is not None:
                kept[place] = joined
                break
        else:
            kept.append(part)
    return kept[0] if len(kept) == 1 else Both(n, kept)


def _any_of(n: int, parts: Sequence[Compiled]) -> Compiled:
    if not parts:
        return Known(Bitmap.none(n))
    return parts[0] if len(parts) == 1 else Either(n, parts)


def _places(attribute: Attribute, values: Values) -> list[Compiled]:
    """Where the values that occur are held, one part per class."""
    n = attribute.n
    parts: list[Compiled] = []
    if values.keywords and attribute.keyword:
        found = attribute.keyword.words.find(values.keywords)
        parts.append(_at(n, attribute.keyword.postings, found))
    numbers = values.numbers
    wanted: tuple[tuple[str, Sequence[float], type[np.generic]], ...] = (
        ("integer", [v for v in numbers if isinstance(v, int)], np.int64),
        ("float", [v for v in numbers if isinstance(v, float)], np.float64),
        ("bool", values.bools, np.uint8),
        ("datetime", values.instants, np.int64),
    )
    for name, operands, kind in wanted:
        part = attribute.sorted.get(name) if len(operands) else None
        if part is not None:
            sought = np.array(operands, kind)
            places = np.minimum(part.values.searchsorted(sought), len(part.values) - 1)
            parts.append(_at(n, part.postings, places[part.values[places] == sought]))
    return parts


def _at(n: int, postings: Postings, positions: Positions) -> Compiled:
    if len(positions) == 1:
        first = int(positions[0])
        return Span(n, postings, first, first + 1)
    return Places(n, postings, positions)


def _rows_of_all(attribute: Attribute, values: Values) -> Bitmap:
    """Rows that hold every value: those of the rarest, narrowed by the others."""
    single = [_any_of(attribute.n, _places(attribute, each)) for each in values.each()]
    return Both(attribute.n, single).bitmap


def _spans(attribute: Attribute, expr: Range) -> list[Compiled]:
    """The values in the range: one run of them per class."""
    parts: list[Compiled] = []
    for name in ("integer", "float") if expr.kind == "number" else ("datetime",):
        part = attribute.sorted.get(name)
        if part is None:
            continue
        first, last = 0, len(part.values)
        if expr.lower is not None:
            first = _cut(part, name, expr.lower, after=not expr.lower_inclusive)
        if expr.upper is not None:
            last = _cut(part, name, expr.upper, after=expr.upper_inclusive)
        if first < last:
            parts.append(Span(attribute.n, part.postings, first, last))
    return parts


def _cut(part: SortedPart, name: str, bound: Number, *, after: bool) -> int:
    """How many of the part's values are below ``bound``, or not above it when ``after``; compared exactly."""
    if name == "float":
        # Floats of this part are either not whole, hence below 2**52 in size, or past 64 bits: every whole
        # bound from 2**53 up to 64 bits cuts them at one place, and a float holds 2**53 exactly.
        exact = float(max(-_EXACT_FLOAT, min(bound, _EXACT_FLOAT))) if isinstance(bound, int) else bound
        return int(part.values.searchsorted(exact, "right" if after else "left"))
    if isinstance(bound, float):
        if not -(2.0**63) <= bound < 2.0**63:
            return 0 if bound < 0 else len(part.values)
        # a bound between two integers: equality is impossible, so both ends of it cut before the next integer
        return int(part.values.searchsorted(math.ceil(bound), "left"))
    return int(part.values.searchsorted(bound, "right" if after else "left"))
