"""Coded lists measured without a filter: how deep each effort finds, and what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nearfield_index.backends.coded import CodedIvf, blocks
from nearfield_index.bitmap import Bitmap
from nearfield_index.execution.asked import Asked, passes
from nearfield_index.execution.clusters import choose
from nearfield_index.execution.cost import Calibration, Prices
from nearfield_index.execution.curves import DEPTHS, Reach
from nearfield_index.execution.pick import pick
from nearfield_index.filters.compiled import Compiled, Known, Span
from nearfield_index.quality.pricing import TIMED_WALKS, lone_us, one_by_one_us, one_thread_us, usual_effort
from nearfield_index.quality.probes import GOOD_ENOUGH, Probe, cautious
from nearfield_index.segments.part import FieldPart
from nearfield_index.storage.postings import Postings

Floats = np.ndarray[Any, np.dtype[np.float32]]
Rows = np.ndarray[Any, np.dtype[np.int64]]

# Filters under which the k nearest lie deeper pass so few rows of fewer rows in all that an exact answer is cheaper.
_DEEP, _FEW = 1_024, 64
_HEEDED = 0.05
_PICKED, _PICKED_ROWS = (0.01, 0.05), 50

_UNKNOWN = Calibration("rows", 0, Prices(0.0, 0.0, 0.0, 0.0, 0.0))


@dataclass(frozen=True)
class Swept:
    """Recall by depth of every effort; where the nearest come in the ranking by codes; what the candidates of one more
    answer cost, and what a query by itself costs more than among others, in us; how many times as much one costs
    that heeds a bitmap; and what picking rows costs: a query, a row that passes, and one that is picked."""

    reaches: tuple[Reach, ...]
    places: tuple[float, ...]
    answer_us: float
    lone_us: float
    heeding: float
    picking: tuple[float, float, float]


def deepest(n: int) -> int:
    """How far down the ranking of so many rows lists are measured."""
    return max(DEPTHS[0], min(_DEEP, n // 8), n // _FEW)


def sweep(
    field: FieldPart,
    lists: CodedIvf,
    probes: Sequence[Probe],
    truths: Sequence[Rows],
    random: np.random.Generator,
    *,
    limit_us: float,
) -> Swept:
    """Measure coded lists at every effort until one is good enough or costs as much as an exact scan. ``truths``: by
    probe the nearest rows, to :func:`deepest` at least."""
    depths = [depth for depth in DEPTHS if depth <= deepest(len(field))]
    truths = [truth[:, : depths[-1]] for truth in truths]
    narrow, wide = lists.width_of(DEPTHS[0]), min(len(field), lists.width_of(depths[-1]))
    mask = random.random(len(field)) < narrow / wide
    sieve = Known(Bitmap.from_mask(mask))
    found: list[Reach] = []
    more: list[float] = []
    means: list[list[float]] = []
    for effort in lists.efforts:
        worst = np.ones(len(depths))
        slowest = 0.0
        for probe, truth in zip(probes, truths, strict=True):
            at = ranked(lists, probe.queries, truth, effort, wide, len(field))
            there = np.minimum(at, wide)  # at the earliest, where it is not there
            means.append([float(there[:, :depth].mean()) for depth in depths])
            held = [(at[:, :depth] < lists.width_of(depth)).mean(axis=1) for depth in depths]
            worst = np.minimum(worst, cautious(np.stack(held, axis=1)))
            asked = probe.queries[:TIMED_WALKS]
            us = one_thread_us(partial(_choose, field, lists, None, narrow, effort=effort), asked)
            wide_us = one_thread_us(partial(_choose, field, lists, sieve, wide, effort=effort), asked)
            slowest = max(slowest, us)
            more.append((wide_us - us) * (lists.width_of(1) - lists.width_of(0)) / max(1, wide - narrow))
        found.append(Reach(effort, slowest, tuple(worst.tolist())))
        if worst.min() >= GOOD_ENOUGH or slowest > limit_us or effort >= len(lists.lists.centroids):
            break
    return Swept(
        tuple(found),
        tuple(np.maximum.accumulate(np.mean(means[-len(probes) :], axis=0)).tolist()),
        max(0.0, float(np.median(more))),
        lone_us(
            lambda some, effort: _choose(field, lists, None, narrow, some, effort),
            probes[0].queries[:TIMED_WALKS],
            found,
        ),
        _heeding(field, lists, narrow, probes[0].queries[:TIMED_WALKS], usual_effort(found), random),
        _picking(field, lists, probes[0].queries[:TIMED_WALKS], usual_effort(found), random),
    )


def _picking(
    field: FieldPart, lists: CodedIvf, queries: Floats, effort: int, random: np.random.Generator
) -> tuple[float, float, float]:
    """What picking costs a call, a row that passes, and one that is picked: told by few rows and by some, and by some
    out of twice as many lists."""
    n, count = len(field), len(lists.lists.centroids)
    effort = max(effort, _PICKED_ROWS * count // max(1, int(_PICKED[0] * n)))  # else many would be answered exactly
    effort = max(1, min(effort, count // 2))
    order = random.permutation(n).astype(np.int32)  # in none, as posting lists have rows
    taken = []
    for share, times in ((_PICKED[0], 1), (_PICKED[1], 1), (_PICKED[1], 2)):
        size, us = max(1, int(share * n)), []
        for number, query in enumerate(queries):
            start = number % (n // size) * size  # the rows of the last query are still at hand
            passing = Span(n, Postings(np.arange(size + 1), order[start : start + size]), 0, size)
            passing.listed()
            asked = Asked(field, _UNKNOWN, passing, query[None], DEPTHS[0], 0.0)
            us.append(one_thread_us(partial(_pick, asked, times * effort), asked.queries))
        taken.append((size, float(np.median(us))))
    (few, few_us), (some, some_us), (_, twice_us) = taken
    a_row = max(0.0, (some_us - few_us) / max(1, some - few))
    picked = max(1e-9, some * effort / max(1, count))
    picked_us = min(max(0.0, twice_us - some_us) / picked, a_row * count / max(1, effort))
    return max(0.0, few_us - few * a_row), a_row - picked_us * effort / max(1, count), picked_us


def _heeding(
    field: FieldPart, lists: CodedIvf, width: int, queries: Floats, effort: int, random: np.random.Generator
) -> float:
    within = Known(Bitmap.from_mask(random.random(len(field)) < _HEEDED))
    plain = one_thread_us(partial(_choose, field, lists, None, width, effort=effort), queries)
    heeded = one_by_one_us(lambda some: _heeded(lists, some, effort, within.bitmap), queries)
    return max(1.0, heeded / plain) if plain else 1.0


def _pick(asked: Asked, effort: int, queries: Floats) -> None:
    pick(asked, effort=effort, recall=0.0)


def _heeded(lists: CodedIvf, queries: Floats, effort: int, within: Bitmap) -> None:
    lists.heeding(queries, DEPTHS[0], effort=effort, within=within)


def ranked(lists: CodedIvf, queries: Floats, wanted: Rows, effort: int, wide: int, n: int) -> Rows:
    """Where the codes of so many lists rank the rows wanted of ``n``, same shape; n where not among the first ``wide``
    they find."""
    some = blocks(len(wanted), wide)
    return np.concatenate([_places(lists.candidates(queries[at], wide, effort), wanted[at], n) for at in some])


def _places(found: Rows, wanted: Rows, n: int) -> Rows:
    """The place in each ranking (-1: no row) of the rows that were wanted, same shape; n where it is not there."""
    place = np.full(n + 1, n)
    out = np.empty(wanted.shape, dtype=np.int64)
    for number, (got, asked) in enumerate(zip(found, wanted, strict=True)):
        place[got] = np.arange(len(got))
        place[-1] = n
        out[number] = place[asked]
        place[got] = n
    return out


def _choose(
    field: FieldPart, lists: CodedIvf, sieve: Compiled | None, width: int, queries: Floats, effort: int
) -> None:
    """Find ``width`` candidates, of which those are scored that pass."""
    rows = lists.candidates(queries, width, effort)
    choose(field, _UNKNOWN, queries, rows, passes(rows, sieve), k=DEPTHS[0], effort=effort)
