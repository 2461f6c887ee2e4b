"""What a query sees of a segment or of the tail: rows, attributes and fields, all frozen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, Protocol

import numpy as np

from nearfield_index.backends.base import Lists, Searcher
from nearfield_index.backends.exact import scan
from nearfield_index.backends.ivf import Ivf
from nearfield_index.backends.space import Doubles, as_inner, rounding, scores
from nearfield_index.bitmap import Bitmap
from nearfield_index.filters.compiled import Compiled, Known, Living, Mapped
from nearfield_index.filters.expr import Expr
from nearfield_index.points import PointId
from nearfield_index.schema import Metric

Floats = np.ndarray[Any, np.dtype[np.float32]]
Rows = np.ndarray[Any, np.dtype[np.int64]]
Keys = np.ndarray[Any, np.dtype[np.int64]]

FindKeys = Callable[[Sequence[PointId]], Keys]
"""Row keys of the ids that exist, from the row store."""

_CACHE_BYTES = 16 * 1024 * 1024
_CACHE_ENTRIES = 1_024


@dataclass(frozen=True)
class FieldPart:
    """One vector field of a part: a matrix in stored form, and what searches it.

    ``rows[i]`` is the part's row of matrix row ``i`` (None where they are the same), ascending only where the
    part says nothing else. ``flat`` is the FAISS face of the matrix where there is one; ``backend`` is None where
    every answer is exact, ``clusters`` where there are none to search by; ``longest`` bounds the length of its
    vectors; ``lists`` are its clusters as they lie, searched or not.
    """

    metric: Metric
    matrix: Floats
    rows: Rows | None
    flat: Any
    backend: Searcher | None
    clusters: Ivf | None
    longest: float
    normal: FieldPart | None = None
    """The same vectors with the bias of a hubness fit, where there is one."""
    lists: Lists | None = None
    leaves: Rows | None = None
    """Where each leaf of a layout begins, ``(leaves + 1,)``; None without a layout."""

    def __len__(self) -> int:
        return len(self.matrix)

    def biased(self, use: BiasUse) -> FieldPart:
        """The face that ranks by ``score - strength * bias``; itself where no fit is."""
        return self if self.normal is None else self.normal.biased(use)

    @cached_property
    def by_cluster(self) -> Rows | None:
        """Matrix rows, cluster after cluster; None where they lie in that order."""
        return None if self.lists is None or self.lists.of is None else self.lists.by_cluster()

    def leaves_touched(self, passing: Compiled | None) -> int:
        """How many leaves hold rows that pass."""
        assert self.leaves is not None
        if passing is None:
            return len(self.leaves) - 1
        return len(np.unique(np.searchsorted(self.leaves, passing.bitmap.rows(), side="right")))

    def scores(self, queries: Floats, rows: Rows, *, precise: bool) -> Doubles:
        """Scores ``(n, k)`` of rows ``(n, k)``, computed from the rows themselves; -1 gives -inf."""
        return self.settled(scores(queries, self.matrix, rows, self.metric, precise=precise), rows)

    def settled(self, scored: Doubles, rows: Rows) -> Doubles:
        """What the ranking makes of plain scores ``(n, k)`` of rows ``(n, k)`` or ``(k,)``: the same."""
        return scored

    def found_scores(self, queries: Floats, rows: Rows, inner: Floats) -> Doubles:
        """Scores of rows found by an index with these products, which are the scores of cosine and dot; a distance
        is taken from the rows, where nothing cancels."""
        if self.metric is Metric.L2:
            return self.scores(queries, rows, precise=False)
        return inner.astype(np.float64)

    def as_inner(self, scored: Doubles, queries: Floats) -> Doubles:
        """The inner products (less the bias) that such scores stand for."""
        return as_inner(scored, queries, self.metric)

    def rounding(self, queries: Floats) -> Doubles:
        """How far such a product of a scan may be off, ``(n,)``."""
        return rounding(queries, self.longest, self.metric)

    def translate(self, passing: Compiled) -> Compiled:
        """A filter over the part's rows as one over matrix rows."""
        return passing if self.rows is None else Mapped(passing, self.rows)

    def part_rows(self, rows: Rows) -> Rows:
        """Matrix rows as the part's rows; -1 stays -1."""
        if self.rows is None:
            return rows
        if not len(self.rows):
            return np.full_like(rows, -1)
        return np.where(rows >= 0, self.rows[np.maximum(rows, 0)], -1)

    def scan(self, queries: Floats, k: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        """Exact top-k by inner product among ``within`` (matrix rows)."""
        return scan(self.matrix, self.flat, queries, k, within)


@dataclass(frozen=True)
class BiasUse:
    """How a search uses the biases of a fit: how strongly (1: as fitted), and which of an item's biases."""

    version: str
    strength: float = 1.0
    variant: int = 0


class Part(Protocol):
    """A frozen set of rows with ids, row keys, attributes and vector fields."""

    @property
    def count(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def pks(self) -> Keys: ...

    @property
    def ties(self) -> Keys: ...

    @property
    def fields(self) -> dict[str, FieldPart]: ...

    def ids(self, rows: Rows) -> list[PointId]:
        """By row; anything for a row of -1, of a part that has rows."""
        ...

    def rows_of(self, pks: Keys) -> Rows:
        """Rows of the keys that lie here, in any order."""
        ...

    def matching(self, expr: Expr, find_keys: FindKeys) -> Compiled:
        """The filter over the rows, dead ones included."""
        ...

    def facet(self, name: str, within: Bitmap) -> list[tuple[Any, int]]: ...

    def types(self) -> dict[str, list[str]]: ...


@dataclass(frozen=True)
class LivePart:
    """A part with its tombstones, as one view sees it."""

    part: Part
    dead: Bitmap

    @property
    def count(self) -> int:
        """Live rows."""
        return self.part.count - self.dead.count

    @cached_property
    def alive(self) -> Compiled | None:
        """The rows that are alive; None when all are."""
        return Known(~self.dead) if self.dead.count else None

    def passing(self, expr: Expr | None, find_keys: FindKeys) -> Compiled | None:
        """The filter over live rows; None when every row is alive and passes."""
        if expr is None:
            return self.alive
        matched = self.part.matching(expr, find_keys)
        return matched if self.alive is None else Living(matched, self.alive)


class FilterCache:
    """Compiled filters of one immutable part, bounded by bytes, least recently used out.

    Filters that name ids are not kept: which row key an id has changes from view to view.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: OrderedDict[Expr, Compiled] = OrderedDict()
        self._bytes = 0

    def get(self, expr: Expr, make: Callable[[], Compiled]) -> Compiled:
        with self._lock:
            found = self._held.get(expr)
            if found is not None:
                self._held.move_to_end(expr)
                return found
        made = make()
        if expr.point_ids():
            return made
        with self._lock:
            held = self._held
            if held.setdefault(expr, made) is made:
                self._bytes += made.nbytes
                while len(held) > _CACHE_ENTRIES or (self._bytes > _CACHE_BYTES and len(held) > 1):
                    self._bytes -= held.popitem(last=False)[1].nbytes
        return made
