"""Merging candidates of several parts, or of two looks at one, into one ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from nearfield_index.backends.base import Mask
from nearfield_index.backends.exact import first
from nearfield_index.segments.part import LivePart, Part

Doubles = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

Keys = Callable[[], tuple[Ints, Ints]]
"""Tie keys and row keys of candidates, looked up only where scores are equal."""


class Candidates(NamedTuple):
    """Per query (first axis) scored rows of parts with their row keys; a key of -1 is no candidate. All ``(n, m)``."""

    scores: Doubles
    parts: Ints
    rows: Ints
    pks: Ints

    @classmethod
    def none(cls, n: int) -> Candidates:
        empty = np.empty((n, 0), dtype=np.int64)
        return cls(np.empty((n, 0)), empty, empty, empty)

    def take(self, order: Ints) -> Candidates:
        """The candidates at ``order`` along the second axis."""
        return Candidates(*(_along(array, order) for array in self))


def merge(found: Sequence[tuple[int, Ints, Doubles]], parts: Sequence[LivePart], k: int) -> Candidates:
    """The best k per query of the ``(part number, rows, scores)`` that parts gave, best first.

    Ties go by tie key, then by row key, so that no layout shows through.
    """
    if len(found) == 1:
        number, rows, scored = found[0]
        if len(rows) == 1:  # one query of one part, the common case, at half the price
            kept, top = rows, scored[0]
            if not (top[1:] < top[:-1]).all():
                order = top.argsort()[::-1][: k + 1]
                kept, top = rows[:, order], top[order]
            if (top[1:] < top[:-1]).all() and kept.size and kept[0, -1] >= 0:  # where none are equal
                kept = kept[:, :k]
                return Candidates(top[None, :k], np.full(kept.shape, number), kept, parts[number].part.pks[kept])
        rows, scored = best(parts[number].part, rows, scored, k)
        pks = _keys_at(parts[number].part.pks, rows)
        return Candidates(scored, np.full_like(rows, number), rows, pks)
    rows = np.concatenate([rows for _, rows, _ in found], axis=1)
    scored = np.concatenate([scored for _, _, scored in found], axis=1)
    pks = np.concatenate([_keys_at(parts[number].part.pks, rows) for number, rows, _ in found], axis=1)

    def keys() -> tuple[Ints, Ints]:
        ties = [_keys_at(parts[number].part.ties, rows) for number, rows, _ in found]
        return np.concatenate(ties, axis=1), pks

    order = _order(scored, k, keys)
    columns = np.repeat([number for number, _, _ in found], [rows.shape[1] for _, rows, _ in found])
    numbers = np.broadcast_to(columns, rows.shape)
    return Candidates(*(_along(array, order) for array in (scored, numbers, rows, pks)))


def best(
    part: Part, rows: Ints, scored: Doubles, k: int, *, at: Callable[[Ints], Ints] | None = None
) -> tuple[Ints, Doubles]:
    """The best k rows of one part for each query, best first; ties by tie key, then by row key.

    ``at`` turns the rows into the part's own where they are another field's.
    """

    def keys() -> tuple[Ints, Ints]:
        own = rows if at is None else at(rows)
        return _keys_at(part.ties, own), _keys_at(part.pks, own)

    order = _order(scored, k, keys)
    return _along(rows, order), _along(scored, order)


def put(rows: Ints, scored: Doubles, at: Ints, found: Ints, values: Doubles) -> None:
    """Answers of the queries ``at`` in place of what stands in ``rows`` and ``scored``, padded with -1 and -inf."""
    rows[at], scored[at] = -1, -np.inf
    rows[at, : found.shape[1]], scored[at, : found.shape[1]] = found, values


def _order(scored: Doubles, k: int, keys: Keys) -> Ints:
    order = (-scored).argsort(axis=1, kind="stable")
    top = _along(scored, order[:, : k + 1])
    equal = top[:, 1:] == top[:, :-1]
    if equal.any() and (equal & np.isfinite(top[:, 1:])).any():
        ties, pks = keys()
        order = np.lexsort((pks, ties, -scored), axis=-1)
    cut: Ints = order[:, :k]
    return cut


def _along(array: Any, order: Ints) -> Any:
    if len(order) == 1:  # one query, the common case: plain indexing costs a third
        return array[:, order[0]]
    return np.take_along_axis(array, order, 1)


def _keys_at(keys: Ints, rows: Ints) -> Ints:
    """The keys of rows; -1 where there is none."""
    if rows.size and rows.min() >= 0:
        return keys[rows]
    found: Ints = np.where(rows >= 0, keys[np.maximum(rows, 0)], -1) if len(keys) else np.full_like(rows, -1)
    return found


def united(rows: Ints, scored: Doubles, others: Ints, theirs: Doubles) -> tuple[Ints, Doubles, Mask, Mask]:
    """The best of both, as many as of each ``(n, k)``, best first and padded with -1 and -inf; and which of them are
    among the first, and among the others."""
    k = rows.shape[1]
    every, values = np.concatenate([rows, others], axis=1), np.concatenate([scored, theirs], axis=1)
    order = np.argsort(every, axis=1, kind="stable")
    line = np.take_along_axis(every, order, 1)
    same = line[:, 1:] == line[:, :-1]
    again, twice = np.zeros(every.shape, dtype=np.bool_), np.zeros(every.shape, dtype=np.bool_)
    np.put_along_axis(again, order[:, 1:], same, 1)
    np.put_along_axis(twice, order[:, :-1], same, 1)
    values[again | (every < 0)] = -np.inf
    best = first(values, k)
    values = np.take_along_axis(values, best, 1)
    there = ~np.isneginf(values)
    mine = there & (best < k)
    theirs_too = there & ((best >= k) | np.take_along_axis(twice, best, 1))
    return np.where(there, np.take_along_axis(every, best, 1), -1), values, mine, theirs_too
