"""HNSW through hnswlib (extra ``hnswlib``): the second implementation of the graph. It keeps its own vectors."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Self

import hnswlib
import numpy as np

from nearfield_index.backends.base import BuildParams, Floats, Rows, Space, Step
from nearfield_index.backends.exact import Exact, nothing
from nearfield_index.backends.space import original
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric
from nearfield_index.storage.indexes import check_whole

_CHUNK = 2_000
_SEED = 20_261_125


class HnswlibGraph:
    """Graph search; ``effort`` is ef. A filter is a Python callable there, so small bitmaps are scanned instead."""

    kind: ClassVar[str] = "hnswlib"
    efforts: ClassVar[tuple[int, ...]] = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
    is_graph: ClassVar[bool] = True

    def __init__(self, graph: Any, space: Space, nbytes: int) -> None:
        self._graph = graph
        self._space = space
        self._exact = Exact(space)
        self._nbytes = nbytes
        self._lock = Lock()

    @classmethod
    def build(cls, path: Path, space: Space, params: BuildParams, *, threads: int, step: Step) -> None:
        matrix = original(space.vectors.matrix, space.metric)
        n, dim = matrix.shape
        graph = hnswlib.Index(space="l2" if space.metric is Metric.L2 else "ip", dim=dim)
        graph.init_index(max_elements=max(n, 1), M=params.m, ef_construction=params.ef_construction, random_seed=_SEED)
        order = np.random.default_rng(_SEED).permutation(n)
        for start in range(0, n, _CHUNK):
            chunk = order[start : start + _CHUNK]
            graph.add_items(np.ascontiguousarray(matrix[chunk]), chunk, num_threads=threads)
            step(min(1.0, (start + _CHUNK) / n))
        graph.save_index(str(path))
        check_whole(path, graph.index_file_size())

    @classmethod
    def open(cls, path: Path, space: Space, params: BuildParams) -> Self:
        dim = original(space.vectors.matrix, space.metric).shape[1]
        graph = hnswlib.Index(space="l2" if space.metric is Metric.L2 else "ip", dim=dim)
        graph.load_index(str(path))
        graph.set_num_threads(1)
        return cls(graph, space, path.stat().st_size)

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def search(self, queries: Floats, k: int, *, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        available = self._graph.element_count if within is None else within.count
        fetch = min(k, available)
        if fetch == 0:
            return nothing(len(queries), k)
        passes = None if within is None else within.mask()
        best, at = nothing(len(queries), k)
        plain = original(queries, self._space.metric)
        try:
            accept = None if passes is None else lambda row: bool(passes[row])
            with self._lock:  # ef belongs to the graph, not to the call
                self._graph.set_ef(max(effort, fetch))
                labels, _ = self._graph.knn_query(plain, k=fetch, filter=accept)
        except RuntimeError:  # it found fewer than asked and reports none of them
            return self._exact.search(queries, k, effort=0, within=within)
        rows = labels.astype(np.int64)
        at[:, :fetch] = rows
        best[:, :fetch] = np.einsum("nkd,nd->nk", self._space.vectors.matrix[rows], queries)
        return best, at
