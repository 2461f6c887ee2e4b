"""FAISS behind a filter, in this process: its own indexes under a bitmap, at the effort that a recall needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import sqrt
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from loadtests.targets.faiss_hnsw import EF_CONSTRUCTION, M, prepared

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

MOST_EF = 4_096
_STRIDE = 4


class FilteredFaiss:
    """Indexes over one base: ``hnsw`` (effort: efSearch), ``ivf`` (nprobe), ``flat`` (none). Threads are the caller's.

    ``ivf`` has 4 sqrt(n) lists of float32 rows.
    """

    def __init__(self, base: Floats, metric: str, *, kinds: Sequence[str], say: Callable[[str], None]) -> None:
        self._metric = metric
        rows = self.prepared(base)
        dim = rows.shape[1]
        kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        self.lists = max(1, min(len(rows), round(4 * sqrt(len(rows)))))
        self._indexes: dict[str, Any] = {}
        for name in kinds:
            say(f"building FAISS {name}")
            if name == "hnsw":
                index = faiss.IndexHNSWFlat(dim, M, kind)
                index.hnsw.efConstruction = EF_CONSTRUCTION
            elif name == "ivf":
                index = faiss.IndexIVFFlat(faiss.IndexFlat(dim, kind), dim, self.lists, kind)
                index.cp.min_points_per_centroid = 1  # small data are no reason to warn
                index.train(rows)
            else:
                index = faiss.IndexFlat(dim, kind)
            index.add(rows)
            self._indexes[name] = index

    def prepared(self, vectors: Floats) -> Floats:
        """Vectors as the indexes take them: of length 1 for cosine."""
        return prepared(vectors, self._metric)

    def efforts(self, kind: str) -> list[int]:
        """The efforts that are tried, cheapest first, about 19 % apart."""
        if kind == "flat":
            return [0]
        low, high = (10, MOST_EF) if kind == "hnsw" else (1, self.lists)
        steps = np.unique(np.round(low * 2 ** np.arange(0.0, 16.0, 0.25)).astype(int))
        return [*steps[steps < high].tolist(), high]

    def search(self, kind: str, query: Floats, k: int, effort: int, selector: Any) -> Integers:
        """The ids (k,) of one prepared query (1, d), padded with -1."""
        if kind == "hnsw":
            params = faiss.SearchParametersHNSW(efSearch=max(k, effort), sel=selector)
        elif kind == "ivf":
            params = faiss.SearchParametersIVF(nprobe=effort, sel=selector)
        else:
            params = faiss.SearchParameters(sel=selector)
        ids: Integers = self._indexes[kind].search(query, k, params=params)[1][0]
        return ids


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS stays on one thread in this process, also where the engine asks for all cores, as it does for a batch."""
    real = faiss.omp_set_num_threads
    real(1)
    faiss.omp_set_num_threads = lambda threads: real(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads = real


def bitmap(mask: NDArray[np.bool_]) -> Any:
    """A selector of these rows: one bit each."""
    return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


def id_list(mask: NDArray[np.bool_]) -> Any:
    """A selector of these rows: their numbers."""
    rows = np.flatnonzero(mask)
    return faiss.IDSelectorArray(rows)


def cheapest(efforts: Sequence[int], reaches: Callable[[int], bool]) -> int | None:
    """The first effort that reaches the goal, or None where the last does not; recall is taken to grow with effort."""
    failed, at = -1, min(_STRIDE, len(efforts) - 1)
    while not reaches(efforts[at]):
        if at == len(efforts) - 1:
            return None
        failed, at = at, min(at + _STRIDE, len(efforts) - 1)
    low, high = failed + 1, at
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(efforts[middle]) else (middle + 1, high)
    return efforts[high]
