"""From a view to the items that a search under a scorer looks at in each round.

A collection of up to 10,000 points that pass is looked at whole. A larger one gives a shortlist: the clusters nearest
to the query, the items of the best mean score, and, round by round, the clusters nearest to where the scorer points,
so that a round costs the same at any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearfield_index.backends.base import Lists
from nearfield_index.backends.space import original, queried
from nearfield_index.bitmap import Bitmap
from nearfield_index.execution.topk import Candidates
from nearfield_index.filters.expr import Expr
from nearfield_index.ranking.latents import Latents
from nearfield_index.ranking.pool import Block
from nearfield_index.schema import Metric
from nearfield_index.segments.part import FieldPart, FindKeys, Floats, Keys, LivePart, Rows
from nearfield_index.segments.segment import Segment
from nearfield_index.segments.view import View

WHOLE = 10_000
"""Up to so many passing points every round looks at all of them."""
_NEAR = 4_000
_POPULAR = 1_000
_PROBED = 500
_PATIENCE = 4
"""A probe gives up after so many times the clusters that should have been enough: the pool holds the others."""


@dataclass
class _Source:
    """One part's field: which matrix rows pass, and which the pool holds already."""

    number: int
    part: LivePart
    here: FieldPart
    within: Bitmap | None
    taken: Any = field(default=None)

    @property
    def passing(self) -> int:
        return len(self.here) if self.within is None else self.within.count

    @property
    def lists(self) -> Lists | None:
        """The clusters of the matrix, where there are any."""
        return None if self.here.clusters is None else self.here.clusters.lists

    def fresh(self, rows: Rows, most: int | None = None) -> Rows:
        """The first ``most`` of the matrix rows that pass and are not in the pool; from now on they are."""
        if self.within is not None:
            rows = rows[self.within.test(rows)]
        if self.taken is None:
            self.taken = np.zeros(len(self.here), np.bool_)
        rows = rows[~self.taken[rows]][:most]
        self.taken[rows] = True
        return rows


class Shortlist:
    """The items of one query: ``query`` ``(dim,)`` raw, those that pass ``expr`` and have a vector in ``field``."""

    def __init__(
        self,
        view: View,
        field: str,
        query: Floats,
        expr: Expr | None,
        find_keys: FindKeys,
        metric: Metric,
        latents: Latents | None,
        without: Keys,
    ) -> None:
        """``without``: row keys that are no candidates (the point a query was made from)."""
        self._metric = metric
        self._latents = latents
        self._without = without
        self._asked = queried(query.reshape(1, -1), metric)[0]
        self._sources: list[_Source] = []
        for number, part in enumerate(view.parts):
            here = part.part.fields.get(field)
            if here is None or not len(here):
                continue
            passing = part.passing(expr, find_keys)
            within = None if passing is None else here.translate(passing).bitmap
            if within is None or within.count:
                self._sources.append(_Source(number, part, here, within))
        self.count = sum(source.passing for source in self._sources)
        """Points that pass."""

    @property
    def whole(self) -> bool:
        """Whether every round looks at all of them."""
        return self.count <= WHOLE

    def everything(self) -> list[Block]:
        """All items."""
        return self._kept([self._block(s, None if s.within is None else s.within.rows()) for s in self._sources])

    def first(self, found: Candidates) -> list[Block]:
        """The items of an ordinary search (one row of candidates), those near the query, and the popular ones."""
        blocks = [self._block_of(source, found) for source in self._sources]
        for source in self._sources:
            quota = max(64, _NEAR * source.passing // max(1, self.count))
            blocks.append(self._block(source, source.fresh(_near(source, self._asked, quota))))
        if self._latents is not None:
            blocks += self._by_key(self._latents.popular, _POPULAR)
        return self._kept(blocks)

    def probe(self, stored: Floats | None, latent: Floats | None, slope: float) -> list[Block]:
        """Items near a direction that were not given out yet."""
        blocks: list[Block] = []
        if stored is not None:
            towards = slope * self._asked
            towards[: len(stored)] += stored
            for source in self._sources:
                if source.lists is not None:
                    quota = max(16, _PROBED * source.passing // max(1, self.count))
                    rows = _in_lists(source.lists, towards, quota, source)
                    blocks.append(self._block(source, rows))
        if latent is not None and self._latents is not None and self._latents.lists is not None:
            lists = self._latents.lists
            order = np.argsort(-(lists.centroids @ latent), kind="stable")
            rows = _ranges(lists, order[: _step(lists, 2 * _PROBED)])
            blocks += self._by_key(self._latents.pks[rows], _PROBED)
        return self._kept(blocks)

    # ------------------------------------------------------------------ blocks

    def _block(self, source: _Source, rows: Rows | None) -> Block:
        """Matrix rows (None: all) as a block."""
        here = source.here
        stored = here.matrix if rows is None else here.matrix[rows]
        rows = np.arange(len(here)) if rows is None else rows
        vectors = original(stored, self._metric)
        inner = (stored @ self._asked).astype(np.float64)
        if self._metric is Metric.L2:
            own = self._asked[:-1].astype(np.float64)
            inner = -np.sqrt(np.maximum(0.0, float(own @ own) - 2 * inner))
        at = here.part_rows(rows)
        pks = source.part.part.pks[at]
        latents, means = (None, None)
        if self._latents is not None:
            latents, means = self._latents.of(self._latent_rows(source, at, pks), vectors)
        return Block(source.number, at, pks, vectors, inner, latents, means)

    def _latent_rows(self, source: _Source, at: Rows, pks: Keys) -> Rows:
        assert self._latents is not None
        part = source.part.part
        if isinstance(part, Segment):
            return self._latents.rows_of_part(part.name, part.pks)[at]
        return self._latents.rows_of(pks)

    def _block_of(self, source: _Source, found: Candidates) -> Block:
        mine = np.flatnonzero((found.parts[0] == source.number) & (found.pks[0] >= 0))
        return self._block(source, source.fresh(_matrix_rows(source.here, found.rows[0][mine])))

    def _by_key(self, pks: Keys, most: int) -> list[Block]:
        """Of each part the first ``most`` of these row keys that pass and are not in the pool."""
        blocks = []
        order = np.argsort(pks, kind="stable")
        for source in self._sources:
            rows = _matrix_rows(source.here, source.part.part.rows_of(pks[order]))
            keys = source.part.part.pks[source.here.part_rows(rows)]
            rank = order[np.searchsorted(pks[order], keys)]
            blocks.append(self._block(source, source.fresh(rows[np.argsort(rank)], most)))
        return blocks

    def _kept(self, blocks: Sequence[Block]) -> list[Block]:
        """Blocks without the items that are no candidates."""
        kept = []
        for block in blocks:
            if len(self._without) and np.isin(block.pks, self._without).any():
                keep = np.flatnonzero(~np.isin(block.pks, self._without))
                latents = None if block.latents is None else block.latents[keep]
                means = None if block.means is None else block.means[keep]
                block = Block(
                    block.part, block.rows[keep], block.pks[keep], block.vectors[keep], block.base[keep], latents, means
                )
            if len(block):
                kept.append(block)
        return kept


def _near(source: _Source, asked: Floats, quota: int) -> Rows:
    """About ``quota`` matrix rows near a query: from the clusters where there are any, else by an exact scan."""
    here = source.here
    if source.passing <= quota:
        return np.arange(len(here)) if source.within is None else source.within.rows()
    if source.lists is not None and len(source.lists.offsets) > 2:
        return _in_lists(source.lists, asked, quota, None, source.within)
    rows = None if source.within is None else source.within.rows()
    inner = here.matrix @ asked if rows is None else here.matrix[rows] @ asked
    best = np.argpartition(-inner, quota)[:quota]
    return np.asarray(best if rows is None else rows[best], np.int64)


def _in_lists(lists: Lists, towards: Floats, quota: int, fresh: _Source | None, within: Bitmap | None = None) -> Rows:
    """Rows of the clusters best first until there are about ``quota`` (that pass, or are ``fresh``)."""
    order = np.argsort(-(lists.centroids @ towards), kind="stable")
    found: list[Rows] = []
    total = 0
    step = _step(lists, quota)
    for start in range(0, len(order), step):
        rows = _ranges(lists, order[start : start + step])
        if fresh is not None:
            rows = fresh.fresh(rows)
        elif within is not None:
            rows = rows[within.test(rows)]
        found.append(rows)
        total += len(rows)
        if total >= quota or (fresh is not None and start >= _PATIENCE * step):
            break
    return np.concatenate([np.empty(0, np.int64), *found])


def _step(lists: Lists, quota: int) -> int:
    """How many clusters hold about ``quota`` rows."""
    return max(1, -(-quota * (len(lists.offsets) - 1) // max(1, int(lists.offsets[-1]))))


def _ranges(lists: Lists, chosen: Rows) -> Rows:
    """Rows of these clusters."""
    starts, ends = lists.offsets[chosen], lists.offsets[chosen + 1]
    lengths = ends - starts
    shift = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    return np.asarray(np.arange(int(lengths.sum())) + shift, np.int64)


def _matrix_rows(here: FieldPart, rows: Rows) -> Rows:
    """Rows of a part as rows of the field's matrix; rows without a vector are left out."""
    if here.rows is None:
        return rows
    order = np.argsort(here.rows, kind="stable")
    at = np.minimum(np.searchsorted(here.rows[order], rows), len(order) - 1)
    hit = here.rows[order][at] == rows
    return np.asarray(order[at[hit]], np.int64)
