"""Counting rows per value of one attribute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from nearfield_index.bitmap import Bitmap
from nearfield_index.storage.columns import Attribute, Columns
from nearfield_index.storage.postings import Positions
from nearfield_index.timestamps import to_text

FacetValue = str | int | float | bool


def facet(
    columns: Columns, field: str, within: Bitmap | None = None, limit: int | None = None
) -> list[tuple[FacetValue, int]]:
    """Distinct values of ``field`` with how many rows (of ``within``, or of all) have each.

    Most frequent first, equals by value (bools, numbers, strings); a row counts once for each of its values,
    values without a row are left out. Instants come as ISO-8601 text. Numbers of an attribute that was only
    ever given floats come as floats. ``limit`` None gives every value.
    """
    attribute = columns.attribute(field)
    if attribute is None:
        return []
    mask = None if within is None else within.mask()
    found: list[tuple[FacetValue, int]] = []
    if attribute.keyword:
        words = attribute.keyword.words
        for place, count in _top(attribute.keyword.postings.counts(mask), limit):
            found.append((words.text(place), count))
    for name, part in attribute.sorted.items():
        for place, count in _top(part.postings.counts(mask), limit):
            found.append((_value(attribute, name, part.values[place]), count))
    return _ranked(found, limit)


def merge_facets(
    parts: Iterable[Sequence[tuple[FacetValue, int]]], limit: int | None = None
) -> list[tuple[FacetValue, int]]:
    """Facets over disjoint sets of rows as one; exact when every part was asked for without a limit."""
    counts: dict[tuple[int, FacetValue], int] = {}
    for part in parts:
        for value, count in part:
            typed = (_rank(value), value)
            counts[typed] = counts.get(typed, 0) + count
    return _ranked([(value, count) for (_, value), count in counts.items()], limit)


def _ranked(found: list[tuple[FacetValue, int]], limit: int | None) -> list[tuple[FacetValue, int]]:
    return sorted(found, key=lambda pair: (-pair[1], _rank(pair[0]), pair[0]))[:limit]


def _rank(value: FacetValue) -> int:
    """The class of a value: True and 1 are equal in Python and two values here."""
    if isinstance(value, bool):
        return 0
    return 2 if isinstance(value, str) else 1


def _top(counts: Positions, limit: int | None) -> list[tuple[int, int]]:
    """(position, count) of the ``limit`` largest counts above 0; among equals the first positions win."""
    places = np.flatnonzero(counts)
    if limit is not None and len(places) > limit:
        order: npt.NDArray[np.int64] = np.argsort(-counts[places], kind="stable")
        places = places[order[:limit]]
    return list(zip(places.tolist(), counts[places].tolist(), strict=True))


def _value(attribute: Attribute, part: str, value: np.generic) -> FacetValue:
    if part == "bool":
        return bool(value)
    plain: FacetValue = value.item()
    if part == "datetime":
        return to_text(int(plain))
    if part == "integer" and "integer" not in attribute.types:
        return float(plain)
    return plain
