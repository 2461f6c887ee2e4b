"""Search by inner product less a bias an item: ``queries @ rows.T - strength * bias``, exact, in lists, in a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import faiss
import numpy as np

from nearfield_index.backends.base import Floats, Rows, Searcher, Space
from nearfield_index.backends.exact import nothing, pad
from nearfield_index.backends.fitcodes import FitCodes, FitCodeScan
from nearfield_index.backends.hnsw import Hnsw, walk_parameters
from nearfield_index.backends.ivf import Ivf
from nearfield_index.bitmap import Bitmap
from nearfield_index.storage.vectors import MappedVectors

_GATHER_BYTES = 32 * 1024 * 1024
_OVERFETCH = 10
_LEAST_FETCH = 100
_MOST_FETCH = 16


class BiasedSearcher(Searcher, Protocol):
    """A searcher whose products are less a bias an item."""

    def at_strength(self, strength: float) -> BiasedSearcher | None:
        """The same for ``strength`` times the bias; None where only a scan can."""
        ...


def scan_biased(
    matrix: Floats, bias: Floats, strength: float, queries: Floats, k: int, within: Bitmap | None
) -> tuple[Floats, Rows]:
    """Exact top-k among ``within`` (None: all) ``(n, k)``, best first, padded with -inf and -1."""
    if within is not None and within.count < len(matrix):
        return scan_rows(matrix, bias, strength, queries, k, within.rows())
    step = max(1, _GATHER_BYTES // (4 * max(matrix.shape[1], len(queries))))
    best, at = nothing(len(queries), k)
    for start in range(0, len(matrix), step):
        block = matrix[start : start + step]
        inner = queries @ block.T
        inner -= np.float32(strength) * bias[start : start + step]
        best, at = _merged(best, at, inner, np.arange(start, start + len(block)), k)
    return best, at


def scan_rows(
    matrix: Floats, bias: Floats, strength: float, queries: Floats, k: int, rows: Rows
) -> tuple[Floats, Rows]:
    """Exact top-k among ``rows``, copied in bounded blocks."""
    step = max(1, _GATHER_BYTES // (4 * max(matrix.shape[1], len(queries))))
    best, at = nothing(len(queries), k)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        inner = queries @ matrix[part].T
        inner -= np.float32(strength) * bias[part]
        best, at = _merged(best, at, inner, part, k)
    return best, at


def _merged(best: Floats, at: Rows, inner: Floats, rows: Rows, k: int) -> tuple[Floats, Rows]:
    """The best k of what was found before and of one block ``inner`` ``(n, rows)``."""
    if inner.shape[1] > k:
        chosen = np.argpartition(-inner, k - 1, axis=1)[:, :k]
        inner, here = np.take_along_axis(inner, chosen, 1), rows[chosen]
    else:
        here = np.broadcast_to(rows, inner.shape)
    both, where = np.concatenate([best, inner], axis=1), np.concatenate([at, here], axis=1)
    order = np.argsort(-both, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(both, order, 1), np.take_along_axis(where, order, 1)


class BiasedHnsw:
    """The graph of :class:`Hnsw` walked by inner product less bias.

    FAISS computes L2 distances over cached squared norms as ``|q|^2 + norm - 2 q.x``. With twice the bias in the
    place of the norm that is ``|q|^2 - 2 (q.x - bias)``: the very order wanted, over the rows as they lie in the file.
    """

    kind: ClassVar[str] = "hnsw"
    efforts: ClassVar[tuple[int, ...]] = (*Hnsw.efforts, 1536, 2048)
    is_graph: ClassVar[bool] = True

    def __init__(self, graph: Any, storage: Any, keep: object, nbytes: int, strength: float = 1.0) -> None:
        self._graph = graph
        self._storage = storage
        self._keep = keep
        self._nbytes = nbytes
        self._strength = strength

    @classmethod
    def over(cls, path: Path, vectors: Path, bias: Floats) -> Self:
        """The graph in ``path`` (verified) over the vector file; ``bias`` ``(rows,)``."""
        mapped = MappedVectors.open(vectors, squared=True)
        faiss.copy_array_to_vector(np.ascontiguousarray(2.0 * bias, np.float32), mapped.flat.cached_l2norms)
        graph = faiss.read_index(str(path), faiss.IO_FLAG_SKIP_STORAGE)
        graph.storage = mapped.flat
        graph.own_fields = False
        graph.d = mapped.flat.d
        graph.metric_type = faiss.METRIC_L2
        graph.hnsw.is_similarity = False
        return cls(graph, mapped.flat, mapped, path.stat().st_size + 4 * len(bias))

    def at_strength(self, strength: float) -> BiasedHnsw | None:
        """The same graph for ``strength`` times the bias: ``q.x - s b`` ranks as ``(q / s).x - b``."""
        if not 0.01 <= strength <= 1.0:
            return None
        return BiasedHnsw(self._graph, self._storage, self._keep, self._nbytes, strength)

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def search(self, queries: Floats, k: int, *, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        fetch = min(k, int(self._graph.ntotal))
        if fetch == 0 or (within is not None and within.count == 0):
            return nothing(len(queries), k)
        asked = queries if self._strength == 1.0 else np.asarray(queries / np.float32(self._strength))
        distances, rows = self._graph.search(asked, fetch, params=walk_parameters(max(effort, fetch), within))
        squares = np.einsum("ij,ij->i", asked, asked)
        inner = (squares[:, None] - distances) * np.float32(self._strength / 2)
        return pad(inner, rows, k)


class BiasedIvf(Ivf):
    """The same lists, chosen by their centre less the mean bias of their rows."""

    def __init__(self, space: Space, bias: Floats, strength: float = 1.0) -> None:
        super().__init__(space)
        self._bias = bias
        self._strength = strength
        starts = space.lists.offsets
        before = np.concatenate([[0.0], np.cumsum(bias, dtype=np.float64)])
        sums, lengths = before[starts[1:]] - before[starts[:-1]], space.lists.sums(np.diff(starts))
        if space.lists.of is not None:
            sums = np.bincount(space.lists.of, weights=sums, minlength=len(lengths))
        self._means = (sums / np.maximum(1, lengths)).astype(np.float32)

    def at_strength(self, strength: float) -> BiasedIvf | None:
        """The same lists for ``strength`` times the bias."""
        return BiasedIvf(self.space, self._bias, strength) if strength <= 1.0 else None

    @property
    def nbytes(self) -> int:
        return int(self._means.nbytes)

    def nearness(self, queries: Floats) -> Floats:
        found: Floats = super().nearness(queries) - np.float32(self._strength) * self._means
        return found

    def best(self, query: Floats, k: int, rows: Rows) -> tuple[Floats, Rows]:
        return scan_rows(self.space.vectors.matrix, self._bias, self._strength, query, k, rows)


class OverFetch:
    """Normalised search through a backend that cannot hold a bias: it fetches more by raw score, ranks anew, and
    accepts only what is certain: no row beyond the last one fetched could still belong, whatever its bias. Doubles
    what it fetches until that holds; past its bound it scans.
    """

    is_graph: ClassVar[bool] = True

    def __init__(self, raw: Searcher, matrix: Floats, bias: Floats, strength: float = 1.0) -> None:
        self._raw = raw
        self._matrix = matrix
        self._bias = bias
        self._strength = strength

    @property
    def kind(self) -> str:
        return self._raw.kind

    @property
    def efforts(self) -> tuple[int, ...]:
        return self._raw.efforts

    def at_strength(self, strength: float) -> OverFetch:
        """The same for ``strength`` times the bias."""
        return OverFetch(self._raw, self._matrix, self._bias, strength)

    @property
    def nbytes(self) -> int:
        return 0

    def search(self, queries: Floats, k: int, *, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        best, at = nothing(len(queries), k)
        open_ = np.arange(len(queries))
        available = len(self._matrix) if within is None else within.count
        fetch = min(available, max(_OVERFETCH * k, _LEAST_FETCH))
        if fetch == 0:
            return best, at
        least = self._strength * float(self._bias.min(initial=np.inf))
        for _ in range(_MOST_FETCH):
            found, rows = self._raw.search(queries[open_], fetch, effort=effort, within=within)
            bias = self._bias[np.maximum(rows, 0)] * np.float32(self._strength)
            adjusted = np.where(rows >= 0, found - bias, np.float32(-np.inf))
            order = np.argsort(-adjusted, axis=1, kind="stable")[:, :k]
            adjusted, chosen = np.take_along_axis(adjusted, order, 1), np.take_along_axis(rows, order, 1)
            best[open_], at[open_] = pad(adjusted, chosen, k)
            certain = (fetch >= available) | (adjusted[:, -1] >= found[:, -1] - least)
            open_ = open_[~certain]
            if not len(open_) or fetch >= available:
                return best, at
            if fetch * 2 > available // 2 or fetch >= _MOST_FETCH * _LEAST_FETCH * _OVERFETCH:
                break
            fetch *= 2
        best[open_], at[open_] = scan_biased(self._matrix, self._bias, self._strength, queries[open_], k, within)
        return best, at


def biased(
    raw: Searcher, clusters: Ivf, graph: Path, vectors: Path, bias: Floats, codes: FitCodes | None = None
) -> tuple[BiasedSearcher, BiasedIvf]:
    """What searches the rows of ``raw`` and of its ``clusters`` with a bias ``(rows,)``; the files are verified.
    ``codes`` of the rows are scanned instead of walking a graph."""
    lists = BiasedIvf(clusters.space, bias)
    if codes is not None:
        return FitCodeScan(codes, clusters.space.vectors, bias), lists
    if isinstance(raw, Hnsw):
        return BiasedHnsw.over(graph, vectors, bias), lists
    if isinstance(raw, Ivf):
        return lists, lists
    return OverFetch(raw, clusters.space.vectors.matrix, bias), lists
