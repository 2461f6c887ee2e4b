"""Which rows of a segment lie together, learned from the filters it is asked: a balanced qd-tree (arXiv 2304.01926).

Inner nodes ask one question of a row: does it hold a condition that logged filters are made of, or does it lie in one
of a set of clusters? A question is worth the rows that queries are spared: those of the other side, for every query
whose rows all lie on one. Leaves become contiguous row ranges, so the rows of a filter fall into few long runs.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import orjson
import xxhash

from nearfield_index.backends.base import Floats, Lists
from nearfield_index.filters.compile import compile_filter
from nearfield_index.filters.compiled import Compiled
from nearfield_index.filters.expr import Expr
from nearfield_index.filters.unparse import conditions, to_wire
from nearfield_index.segments.partition import Clustering
from nearfield_index.storage.columns import Columns

Rows = np.ndarray[Any, np.dtype[np.int64]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

SMALLEST = 2_000
"""Segments of fewer rows are not worth a layout."""

LONG = 32
"""So many rows that follow each other count as a long run: fewer are read hardly quicker than scattered ones."""

_SHARE = 0.2  # a cut leaves at least this share of a node's rows on either side
_LEAST_ROWS = 256
_MOST_LEAVES = 200
_SAMPLE = 20_000
_MOST_FILTERS = 256
_MOST_CONDITIONS = 256
_CLUSTER_DEPTH = 6
_ROUNDS = 5
_SEED = 20_261_125


@dataclass(frozen=True)
class Workload:
    """Distinct filters, each with how often it was asked."""

    counts: Mapping[Expr, int]

    @cached_property
    def digest(self) -> str:
        """Equal for equal workloads."""
        known = sorted((expr.key, count) for expr, count in self.counts.items())
        return xxhash.xxh3_64_hexdigest(orjson.dumps(known))

    def most_asked(self) -> tuple[list[Expr], Doubles]:
        """The filters that a layout goes by, with their weights, most asked first."""
        ranked = sorted(self.counts.items(), key=lambda item: (-item[1], item[0].key))[:_MOST_FILTERS]
        return [expr for expr, _ in ranked], np.array([count for _, count in ranked], dtype=np.float64)


Cut = Expr | tuple[int, ...]
"""A question to a row: a condition on an attribute, or whether its cluster is one of these."""


@dataclass(frozen=True)
class Layout:
    """``leaf`` (rows,) int64 numbers the leaf of each row. A leaf is described by the ``cuts`` (by number) that hold
    for all of its rows, and those that hold for none."""

    leaf: Rows
    cuts: tuple[Cut, ...]
    leaves: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    def to_json(self) -> dict[str, Any]:
        """Cuts and descriptions, for the segment's file."""
        cuts = [{"clusters": cut} if isinstance(cut, tuple) else {"filter": to_wire(cut)} for cut in self.cuts]
        return {"cuts": cuts, "leaves": [{"holds": holds, "not": fails} for holds, fails in self.leaves]}


@dataclass(frozen=True)
class Touched:
    """What exact answers read, per filter (float64, parallel): rows, runs they fall into, rows in long runs."""

    rows: Doubles
    runs: Doubles
    long: Doubles


@dataclass(frozen=True)
class Proposal:
    """A layout with the filters it was made for, and what they touch without and with it."""

    layout: Layout
    filters: list[Expr]
    weights: Doubles
    before: Touched
    after: Touched


Propose = Callable[[Columns, Lists], tuple[Layout, dict[str, Any]] | None]
"""Asked by the writer of a segment, with its rows in cluster order: how to lay them out and what
to note of it (JSON-able), or None to leave them so."""


def propose(columns: Columns, lists: Lists, workload: Workload, *, check: Callable[[], None]) -> Proposal | None:
    """A layout of the rows that ``lists`` covers (the first of ``columns``); None where nothing can be gained.

    ``check`` is called between steps, and raises to stop. Deterministic.
    """
    rows = int(lists.offsets[-1])
    filters, weights = workload.most_asked()
    if rows < SMALLEST or not filters:
        return None
    cluster = _cluster_of(lists, rows)
    sample = np.sort(np.random.default_rng(_SEED).permutation(rows)[:_SAMPLE])
    bound = [bind(columns, expr) for expr in filters]
    passes = np.stack([each.test(sample) for each in bound])
    cuts: list[Cut] = [*_conditions(filters, weights), *cluster_sets(lists)]
    holds = np.empty((len(cuts), len(sample)), dtype=np.bool_)
    for number, cut in enumerate(cuts):
        check()
        holds[number] = _holds(columns, cluster, cut, sample)
    least = max(_LEAST_ROWS, rows // _MOST_LEAVES)
    tree = grow(passes, holds, weights, least=max(1.0, least * len(sample) / rows), check=check)
    if tree.cut is None:
        return None
    layout = _laid_out(tree, cuts, lambda cut: _holds(columns, cluster, cut, np.arange(rows)), rows)
    place = np.lexsort((cluster, layout.leaf))
    before, after = [], []
    for each in bound:
        check()
        mask = each.bitmap.mask()[:rows]
        before.append(runs_of(mask))
        after.append(runs_of(mask[place]))
    return Proposal(layout, filters, weights, _touched(before), _touched(after))


def bind(columns: Columns, expr: Expr) -> Compiled:
    """A filter over the rows of ``columns``; ids, which no workload keeps, are unknown."""
    return compile_filter(expr, columns, lambda ids: np.empty(0, dtype=np.int64))


def arranged(clustering: Clustering, layout: Layout) -> tuple[Clustering, Rows]:
    """Rows by leaf, then by cluster, with lists cut to match; and where each leaf begins, ``(leaves + 1,)``."""
    lists = clustering.lists
    cluster = _cluster_of(lists, len(layout.leaf))
    place = np.lexsort((cluster, layout.leaf))
    number = (layout.leaf * len(lists.centroids) + cluster)[place]
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    offsets = np.append(starts, len(number)).astype(np.int64)
    leaves = np.searchsorted(layout.leaf[place], np.arange(len(layout.leaves) + 1)).astype(np.int64)
    return Clustering(clustering.order[place], Lists(offsets, lists.centroids, cluster[place][starts])), leaves


def runs_of(mask: Mask) -> tuple[int, int, int]:
    """Of the rows marked: how many, in how many runs, how many of them in long ones."""
    edges = np.flatnonzero(np.diff(mask.view(np.int8), prepend=0, append=0))
    lengths = edges[1::2] - edges[::2]
    return int(lengths.sum()), len(lengths), int(lengths[lengths >= LONG].sum())


# ---------------------------------------------------------------------- the tree


@dataclass
class Node:
    """Sampled ``rows`` and the ``filters`` that pass some of them (numbers); ``cut`` is None at a leaf."""

    rows: Rows
    filters: Rows
    cut: int | None = None
    yes: Node | None = None
    no: Node | None = None


def grow(
    passes: Mask, holds: Mask, weights: Doubles, *, least: float, check: Callable[[], None] = lambda: None
) -> Node:
    """The tree over a sample of rows: ``passes`` (filters, rows), ``holds`` (cuts, rows). ``least`` rows a leaf.

    The node with most to gain is cut next, until none gains anything or there are 200 leaves.
    """
    root = Node(np.arange(passes.shape[1]), np.flatnonzero(passes.any(axis=1)))
    waiting: list[tuple[float, int, int, Node]] = []
    made = 0

    def consider(node: Node) -> None:
        nonlocal made
        check()
        gain, cut = _best_cut(node, passes, holds, weights, least)
        if gain > 0:
            heapq.heappush(waiting, (-gain, made, cut, node))
            made += 1

    consider(root)
    leaves = 1
    while waiting and leaves < _MOST_LEAVES:
        _, _, cut, node = heapq.heappop(waiting)
        side = holds[cut, node.rows]
        node.cut = cut
        node.yes, node.no = (_child(node, passes, node.rows[part]) for part in (side, ~side))
        leaves += 1
        consider(node.yes)
        consider(node.no)
    return root


def _child(node: Node, passes: Mask, rows: Rows) -> Node:
    return Node(rows, node.filters[passes[np.ix_(node.filters, rows)].any(axis=1)])


def _best_cut(node: Node, passes: Mask, holds: Mask, weights: Doubles, least: float) -> tuple[float, int]:
    size = len(node.rows)
    bound = max(least, _SHARE * size)
    if size < 2 * bound or not len(node.filters):
        return 0.0, -1
    holding: Any = holds[:, node.rows].astype(np.float32)
    passing: Any = passes[np.ix_(node.filters, node.rows)].astype(np.float32)
    yes = holding.sum(axis=1)
    both = passing @ holding.T
    spared = (both == passing.sum(axis=1)[:, None]) * (size - yes) + (both == 0) * yes
    gains = weights[node.filters] @ spared
    gains[np.minimum(yes, size - yes) < bound] = 0.0
    best = int(np.argmax(gains))
    return float(gains[best]), best


def _laid_out(tree: Node, cuts: Sequence[Cut], holds: Callable[[Cut], Mask], count: int) -> Layout:
    """The tree over all rows. A leaf that its sample promised may be small here, but it is never empty."""
    used: dict[int, int] = {}
    masks: list[Mask] = []
    leaf = np.empty(count, dtype=np.int64)
    leaves: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    waiting: list[tuple[Node, Rows, tuple[int, ...], tuple[int, ...]]] = [(tree, np.arange(count), (), ())]
    while waiting:
        node, rows, held, failed = waiting.pop()
        if node.cut is None or node.yes is None or node.no is None:
            leaf[rows] = len(leaves)
            leaves.append((held, failed))
            continue
        if node.cut not in used:
            used[node.cut] = len(used)
            masks.append(holds(cuts[node.cut]))
        number = used[node.cut]
        side = masks[number][rows]
        waiting.append((node.no, rows[~side], held, (*failed, number)))
        waiting.append((node.yes, rows[side], (*held, number), failed))
    return Layout(leaf, tuple(cuts[cut] for cut in used), tuple(leaves))


# ---------------------------------------------------------------------- the questions


def _conditions(filters: Sequence[Expr], weights: Doubles) -> list[Expr]:
    """What the filters are made of, most asked first."""
    asked: Counter[Expr] = Counter()
    for expr, weight in zip(filters, weights.tolist(), strict=True):
        for condition in set(conditions(expr)):
            asked[condition] += weight
    ranked = sorted(asked.items(), key=lambda item: (-item[1], item[0].key))
    return [condition for condition, _ in ranked[:_MOST_CONDITIONS]]


def cluster_sets(lists: Lists) -> list[tuple[int, ...]]:
    """Sets of near clusters by recursive 2-means over the centroids, halves of about as many rows."""
    sizes = np.bincount(_cluster_of(lists, int(lists.offsets[-1])), minlength=len(lists.centroids))
    found: list[tuple[int, ...]] = []
    waiting = [(np.arange(len(lists.centroids)), 0)]
    while waiting:
        members, depth = waiting.pop()
        if len(members) < 2 or depth == _CLUSTER_DEPTH:
            continue
        near = _near_half(lists.centroids[members], sizes[members])
        for half in (members[near], members[~near]):
            found.append(tuple(half.tolist()))
            waiting.append((half, depth + 1))
    return found


def _near_half(centroids: Floats, sizes: Rows) -> Mask:
    """Which centroids are the first of two balanced halves."""
    centred = centroids - centroids.mean(axis=0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    near = np.zeros(len(centroids), dtype=np.bool_)
    for _ in range(_ROUNDS):
        order = np.argsort(-(centred @ direction), kind="stable")
        upto = np.cumsum(sizes[order])
        half = int(np.clip(np.searchsorted(upto, upto[-1] / 2) + 1, 1, len(order) - 1))
        near[:] = False
        near[order[:half]] = True
        direction = centred[near].mean(axis=0) - centred[~near].mean(axis=0)
    return near


def _holds(columns: Columns, cluster: Rows, cut: Cut, rows: Rows) -> Mask:
    return np.isin(cluster[rows], cut) if isinstance(cut, tuple) else bind(columns, cut).test(rows)


def _cluster_of(lists: Lists, rows: int) -> Rows:
    """The cluster of each row."""
    sizes = np.diff(lists.offsets)
    clusters: Rows = np.repeat(np.arange(len(sizes)) if lists.of is None else lists.of, sizes)
    assert len(clusters) == rows
    return clusters


def _touched(counts: list[tuple[int, int, int]]) -> Touched:
    rows, runs, long = np.array(counts, dtype=np.float64).T
    return Touched(rows, runs, long)
