"""A navigable small-world graph (HNSW, arXiv 1603.09320) through FAISS, over the segment's one matrix.

The file holds links only; the vectors are those of the segment. Points are added in a seeded random order (rows lie
sorted by cluster, which is a bad order to insert in) and renumbered afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import faiss
import numpy as np

from nearfield_index.backends.base import BuildParams, Floats, Rows, Space, Step
from nearfield_index.backends.exact import nothing, pad
from nearfield_index.backends.space import original
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric
from nearfield_index.storage.indexes import write_index

_CHUNK = 2_000
_SEED = 20_261_125


class Hnsw:
    """Graph search; ``effort`` is efSearch, and never below k."""

    kind: ClassVar[str] = "hnsw"
    efforts: ClassVar[tuple[int, ...]] = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
    is_graph: ClassVar[bool] = True

    def __init__(self, graph: Any, space: Space, nbytes: int) -> None:
        self._graph = graph
        self._space = space
        self._nbytes = nbytes
        self._plain: dict[int, Any] = {}

    @classmethod
    def build(cls, path: Path, space: Space, params: BuildParams, *, threads: int, step: Step) -> None:
        matrix = original(space.vectors.matrix, space.metric)
        if space.metric is Metric.DOT:
            matrix = equally_long(matrix)
        n, dim = matrix.shape
        inner = faiss.METRIC_INNER_PRODUCT if space.metric is Metric.COSINE else faiss.METRIC_L2
        graph = faiss.IndexHNSWFlat(dim, params.m, inner)
        graph.hnsw.efConstruction = params.ef_construction
        order = np.random.default_rng(_SEED).permutation(n)
        faiss.omp_set_num_threads(threads)
        done = 0
        while done < n:
            # The first chunks are small: a graph grown in parallel from nothing starts badly.
            chunk = order[done : done + min(_CHUNK, max(256, done))]
            graph.add(np.ascontiguousarray(matrix[chunk]))
            done += len(chunk)
            step(done / n)
        graph.permute_entries(np.argsort(order).astype(np.int64))
        write_index(graph, path, links_only=True)

    @classmethod
    def open(cls, path: Path, space: Space, params: BuildParams) -> Self:
        graph = faiss.read_index(str(path), faiss.IO_FLAG_SKIP_STORAGE)
        graph.storage = space.vectors.flat
        graph.own_fields = False
        graph.d = space.vectors.flat.d
        # A graph built under L2 is searched through inner products of the stored rows: the same order.
        graph.metric_type = faiss.METRIC_INNER_PRODUCT
        graph.hnsw.is_similarity = True
        return cls(graph, space, path.stat().st_size)

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def search(self, queries: Floats, k: int, *, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        fetch = min(k, int(self._graph.ntotal))
        if fetch == 0 or (within is not None and within.count == 0):
            return nothing(len(queries), k)
        width = max(effort, fetch)
        params = self._plain.get(width) if within is None else None
        if params is None:
            params = walk_parameters(width, within)
            if within is None:
                self._plain[width] = params
        found = self._graph.search(queries, fetch, params=params)
        return pad(found[0], found[1], k)


def walk_parameters(width: int, within: Bitmap | None) -> Any:
    """What FAISS wants to know of a walk: how many candidates it holds, and which rows may be told."""
    if within is None:
        return faiss.SearchParametersHNSW(efSearch=width)
    return faiss.SearchParametersHNSW(efSearch=width, sel=faiss.IDSelectorBitmap(within.bits()))


def equally_long(matrix: Floats) -> Floats:
    """Rows with one more column that makes all of them as long as the longest (arXiv 1410.5518).

    Among equally long rows the nearest is the one with the largest product. Linked by plain products, short rows
    are nobody's neighbours: up to 6 % of them could not be reached at any effort.
    """
    squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
    out = np.empty((len(matrix), matrix.shape[1] + 1), dtype=np.float32)
    out[:, :-1] = matrix
    out[:, -1] = np.sqrt(np.maximum(squares.max(initial=0.0) - squares, 0.0))
    return out
