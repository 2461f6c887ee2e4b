"""FAISS itself, in this process and in memory: what its bare HNSW graph gives, with no service around it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
from numpy.typing import NDArray

from loadtests.targets.base import Answer, Floats, Integers, Setting, Where
from loadtests.targets.process import Usage, usage_of

M = 16
EF_CONSTRUCTION = 100
_CORES = os.cpu_count() or 1


class FaissHnsw:
    """``IndexHNSWFlat`` with the build parameters that Nearfield has by default; ``ef`` is swept.

    FAISS neither deletes from a graph nor searches while it adds: dead rows stay and are skipped by a selector, and a
    lock keeps the two apart. Nothing is durable.
    """

    name: ClassVar[str] = "faiss"
    durable: ClassVar[bool] = False
    settings: ClassVar[tuple[Setting, ...]] = tuple(
        {"ef": ef} for ef in (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
    )
    usual: ClassVar[Setting] = {"ef": 64}
    thorough: ClassVar[Setting] = {"ef": 1024}

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._metric = ""
        self._empty()

    def _empty(self) -> None:
        self._index: Any = None
        self._rows: dict[int, int] = {}
        self._ids: Integers = np.empty(0, dtype=np.int64)
        self._alive: NDArray[np.bool_] = np.empty(0, dtype=bool)
        self._columns: dict[str, NDArray[Any]] = {}

    def start(self, directory: Path, *, dim: int, metric: str) -> None:
        kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexHNSWFlat(dim, M, kind)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        self._empty()
        self._index, self._metric = index, metric

    def load(self, ids: Integers, vectors: Floats, attributes: Mapping[str, NDArray[Any]]) -> None:
        with self._lock:
            self._kill(ids)
            first = int(self._index.ntotal)
            faiss.omp_set_num_threads(_CORES)
            self._index.add(prepared(vectors, self._metric))
            self._rows.update(zip(ids.tolist(), range(first, first + len(ids)), strict=True))
            self._ids = np.concatenate([self._ids, ids])
            self._alive = np.concatenate([self._alive, np.ones(len(ids), dtype=bool)])
            for name, values in attributes.items():
                self._columns[name] = np.concatenate([self._columns.get(name, values[:0]), values])

    def optimize(self, queries: Floats | None = None) -> None:
        """Nothing to do: adding a row built its links."""

    def query(self, vector: Floats, k: int, setting: Setting, where: Where = None) -> Answer:
        return Answer(self._search(vector[None, :], k, setting, where, threads=1)[0])

    def query_batch(self, vectors: Floats, k: int, setting: Setting, where: Where = None) -> Integers:
        return self._search(vectors, k, setting, where, threads=_CORES)

    def delete(self, ids: Integers) -> None:
        with self._lock:
            self._kill(ids)

    def usage(self) -> Usage:
        """Of this process, the load generator included."""
        return usage_of()

    def describe(self) -> dict[str, Any]:
        return {"index": {"kind": "hnsw", "m": M, "ef_construction": EF_CONSTRUCTION}, "points": int(self._alive.sum())}

    def stop(self) -> None:
        self._empty()

    def _search(self, vectors: Floats, k: int, setting: Setting, where: Where, *, threads: int) -> Integers:
        with self._lock:
            if not len(self._ids):
                return np.full((len(vectors), k), -1, dtype=np.int64)
            faiss.omp_set_num_threads(threads)
            passing = self._alive if where is None else self._alive & (self._columns[where[0]] == where[1])
            selector = None
            if not passing.all():
                selector = faiss.IDSelectorBitmap(np.packbits(passing, bitorder="little"))
            params = faiss.SearchParametersHNSW(efSearch=max(k, int(setting["ef"])), sel=selector)
            rows = self._index.search(prepared(vectors, self._metric), k, params=params)[1]
            return np.where(rows >= 0, self._ids[np.maximum(rows, 0)], -1)

    def _kill(self, ids: Integers) -> None:
        dead = [row for each in ids.tolist() if (row := self._rows.pop(each, None)) is not None]
        self._alive[dead] = False


def prepared(vectors: Floats, metric: str) -> Floats:
    """Vectors as FAISS indexes of that metric take them: of length 1 for cosine."""
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if metric == "l2":
        return rows
    normal: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-30))
    return normal
