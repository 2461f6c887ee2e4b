"""The seam: what a backend must do to be searched, and nothing more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from nearfield_index.bitmap import Bitmap, Cuts
from nearfield_index.schema import Metric
from nearfield_index.storage.vectors import MappedVectors

Floats = np.ndarray[Any, np.dtype[np.float32]]
Rows = np.ndarray[Any, np.dtype[np.int64]]

Mask = np.ndarray[Any, np.dtype[np.bool_]]


class RowTest(Protocol):
    """Anything that can say whether rows pass, without a bitmap of all of them."""

    @property
    def share(self) -> float:
        """The share of all rows that pass, as far as is known."""
        ...

    @property
    def bitmap(self) -> Bitmap:
        """All rows that pass, made when first asked for."""
        ...

    def test(self, rows: Rows) -> Mask:
        """Whether each of ``rows`` passes: bool, same shape."""
        ...


Step = Callable[[float], None]
"""Told the share done, 0 to 1; raises to stop the build."""


@dataclass(frozen=True)
class Lists:
    """Clusters as row ranges: list ``i`` is rows ``offsets[i]`` to ``offsets[i + 1]`` of the matrix.

    ``centroids`` is ``(clusters, columns)`` in stored form, so that a query's inner product ranks the clusters.
    ``of`` is the cluster of each list where a layout has cut clusters apart; None where list ``i`` is cluster ``i``.
    """

    offsets: Rows
    centroids: Floats
    of: Rows | None = None

    def ranges(self, clusters: Rows) -> tuple[Rows, Rows]:
        """The row ranges of these clusters (any order) by their first row: where each begins, how long it is."""
        chosen = np.sort(clusters) if self.of is None else self._lists_of(clusters)
        first = self.offsets[:-1][chosen]
        return first, self.offsets[chosen + 1] - first

    def sums(self, counts: Rows) -> Rows:
        """Counts by list as counts by cluster."""
        if self.of is None:
            return counts
        return np.bincount(self.of, weights=counts, minlength=len(self.centroids)).astype(np.int64)

    def passing(self, within: Bitmap) -> Rows:
        """How many rows of a set lie in each cluster."""
        return self.sums(np.diff(within.before(self._ends)))

    def among(self, clusters: Rows, within: Bitmap) -> tuple[Rows, Rows]:
        """Of clusters (-1: none): how many of their rows are in a set, and how many rows they have, both same shape."""
        there = clusters >= 0
        return self.passing(within)[clusters] * there, self.sizes[clusters] * there

    def by_cluster(self) -> Rows:
        """Every row, cluster after cluster."""
        sizes = np.diff(self.offsets)
        cluster = np.arange(len(sizes)) if self.of is None else self.of
        order: Rows = np.argsort(np.repeat(cluster, sizes), kind="stable")
        return order

    @cached_property
    def sizes(self) -> Rows:
        """How many rows each cluster has."""
        return self.sums(np.diff(self.offsets))

    @cached_property
    def by_row(self) -> np.ndarray[Any, np.dtype[np.signedinteger[Any]]]:
        """The cluster of each row: 2 bytes a row, or 4 where there are many clusters."""
        kind = np.int16 if len(self.centroids) <= np.iinfo(np.int16).max else np.int32
        of = np.arange(len(self.centroids)) if self.of is None else self.of
        return np.repeat(of.astype(kind), np.diff(self.offsets))

    @cached_property
    def _ends(self) -> Cuts:
        return Cuts.at(self.offsets)

    def _lists_of(self, clusters: Rows) -> Rows:
        order, starts = self._places
        found = [order[starts[cluster] : starts[cluster + 1]] for cluster in clusters.tolist()]
        return np.sort(np.concatenate(found))

    @cached_property
    def _places(self) -> tuple[Rows, Rows]:
        """Lists by cluster, and where each cluster's begin among them."""
        assert self.of is not None
        counts = np.bincount(self.of, minlength=len(self.centroids))
        return np.argsort(self.of, kind="stable"), np.concatenate([[0], np.cumsum(counts)])


@dataclass(frozen=True)
class Space:
    """The matrix a backend searches, in stored form (see ``backends.space``), with its clusters."""

    metric: Metric
    vectors: MappedVectors
    lists: Lists


@dataclass(frozen=True)
class BuildParams:
    """Recorded in the segment: ``m`` links a node, ``ef_construction`` the build effort, ``rescored`` how many rows
    are scored again for one that is wanted, where codes rank, and ``farther`` how many times more where the best may be
    far away."""

    m: int
    ef_construction: int
    rescored: int = 4
    farther: int = 4


class Searcher(Protocol):
    """Answers top-k by inner product over one matrix. Thread-safe; releases the GIL in its loops."""

    @property
    def kind(self) -> str: ...

    @property
    def is_graph(self) -> bool:
        """Whether it walks the same way whatever the filter, which then is better put to what the walk has found."""
        ...

    @property
    def efforts(self) -> tuple[int, ...]:
        """Settings to calibrate, cheap to expensive; empty when every answer is exact."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held beside the matrix."""
        ...

    def search(self, queries: Floats, k: int, *, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        """Best rows of each query (inner products, rows), both ``(n, k)``, best first, padded with -inf and -1.

        Only rows in ``within`` are returned when it is given.
        """
        ...


class Backend(Searcher, Protocol):
    """A searcher of a kind, which is built once and opened from files."""

    @classmethod
    def build(cls, path: Path, space: Space, params: BuildParams, *, threads: int, step: Step) -> None:
        """Write what the backend needs beside the matrix to ``path`` (or nothing)."""
        ...

    @classmethod
    def open(cls, path: Path, space: Space, params: BuildParams) -> Self:
        """The backend over a mapped matrix and what :meth:`build` wrote (already verified)."""
        ...
