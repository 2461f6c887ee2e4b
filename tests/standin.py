"""A STAND-IN for FAISS on a GPU, made of real CPU indexes. No test that uses it says anything about a GPU.

It has the names, constructors, configs and search parameters that our adapters use of ``faiss-gpu-cuvs``, and its
trap: an index made without ``use_cuvs`` takes a selector and ignores it without a word. Vectors really are searched,
by faiss-cpu. What it cannot show: CUDA's arithmetic, its speed, its memory, its faults. ``tests/gpu`` runs the same
suite on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from nearfield_index.backends.gpu import health, searcher
from nearfield_index.backends.gpu import library as seam
from nearfield_index.backends.gpu.device import Device
from nearfield_index.backends.gpu.gathered import Gathered
from nearfield_index.quality import on_device

GIBIBYTE = 1 << 30
RETRY_S = 0.02


class _Config:
    def __init__(self) -> None:
        self.device = 0
        self.use_cuvs = False  # as it is from Python


class GpuIndexFlatConfig(_Config):
    def __init__(self) -> None:
        super().__init__()
        self.useFloat16 = False


class GpuIndexIVFFlatConfig(_Config):
    def __init__(self) -> None:
        super().__init__()
        self.flatConfig = GpuIndexFlatConfig()
        self.interleavedLayout = True


class GpuIndexIVFPQConfig(GpuIndexIVFFlatConfig):
    def __init__(self) -> None:
        super().__init__()
        self.interleavedLayout = self.useFloat16LookupTables = False


class GpuIndexCagraConfig(_Config):
    def __init__(self) -> None:
        super().__init__()
        self.graph_degree, self.intermediate_graph_degree = 64, 128
        self.build_algo = 0
        self.guarantee_connectivity = False


class SearchParametersCagra:
    def __init__(self, itopk_size: int = 64, sel: Any = None) -> None:
        self.itopk_size, self.sel = itopk_size, sel


class StandIn:
    """The module: hand it to ``monkeypatch`` in place of ``library.installed``. ``fail`` makes every search and build
    raise what it holds, ``gate`` (a lock) holds them up."""

    Float32, Float16 = faiss.Float32, faiss.Float16
    METRIC_INNER_PRODUCT, METRIC_L2 = faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2
    graph_build_algo_NN_DESCENT = 1
    IDSelectorBitmap = faiss.IDSelectorBitmap
    SearchParameters = faiss.SearchParameters
    SearchParametersIVF = faiss.SearchParametersIVF
    SearchParametersCagra = SearchParametersCagra
    GpuIndexFlatConfig = GpuIndexFlatConfig
    GpuIndexIVFFlatConfig = GpuIndexIVFFlatConfig
    GpuIndexIVFPQConfig = GpuIndexIVFPQConfig
    GpuIndexCagraConfig = GpuIndexCagraConfig

    def __init__(self, gpus: int = 1, memory: int = GIBIBYTE) -> None:
        self.gpus, self.memory = gpus, memory
        self.fail: Exception | None = None
        self.gate: Any = None
        self.threads: set[str] = set()
        self.searches: list[tuple[str, int, int]] = []
        self.filtered_without_cuvs = 0
        self.configs: list[Any] = []

    def StandardGpuResources(self) -> Any:
        return SimpleNamespace(setTempMemory=lambda nbytes: None)

    def get_num_gpus(self) -> int:
        return self.gpus

    def should_use_cuvs(self, config: Any) -> bool:
        return bool(config.use_cuvs)

    def GpuIndexFlat(self, resources: Any, d: int, metric: int, config: GpuIndexFlatConfig) -> Any:
        return _Flat(self, config, faiss.IndexFlat(d, metric))

    def GpuIndexIVFFlat(self, resources: Any, d: int, nlist: int, metric: int, config: GpuIndexIVFFlatConfig) -> Any:
        return _Lists(self, config, faiss.IndexIVFFlat(faiss.IndexFlat(d, metric), d, nlist, metric))

    def GpuIndexIVFPQ(
        self, resources: Any, d: int, nlist: int, m: int, bits: int, metric: int, config: GpuIndexIVFPQConfig
    ) -> Any:
        return _Lists(self, config, faiss.IndexIVFPQ(faiss.IndexFlat(d, metric), d, nlist, m, bits, metric))

    def GpuIndexCagra(self, resources: Any, d: int, metric: int, config: GpuIndexCagraConfig) -> Any:
        return _Graph(self, config, d, metric)

    def GpuDistanceParams(self) -> Any:
        return SimpleNamespace(use_cuvs=False, device=-1, outIndices=None)

    def swig_ptr(self, array: Any) -> Any:
        return array

    def bfKnn(self, resources: Any, asked: Any) -> None:
        assert asked.use_cuvs
        assert 0 <= asked.device < self.gpus
        assert asked.queries.shape == (asked.numQueries, asked.dims)
        assert asked.vectors.shape == (asked.numVectors, asked.dims)
        self.touched("brute force", asked.numQueries, asked.k)
        if asked.k < 0:
            assert asked.metric == faiss.METRIC_INNER_PRODUCT
            asked.outDistances[:] = asked.queries @ asked.vectors.T
        else:
            found = faiss.knn(asked.queries, asked.vectors, asked.k, metric=asked.metric)
            asked.outDistances[:], asked.outIndices[:] = found

    def touched(self, what: str, queries: int, k: int) -> None:
        self.threads.add(threading.current_thread().name)
        self.searches.append((what, queries, k))
        if self.gate is not None:
            with self.gate:
                pass
        if self.fail is not None:
            raise self.fail


class _Index:
    def __init__(self, module: StandIn, config: Any, inner: Any) -> None:
        assert config.device < module.gpus
        module.configs.append(config)
        self._module, self._config, self._inner = module, config, inner

    @property
    def ntotal(self) -> int:
        return int(self._inner.ntotal)

    def train(self, x: Any) -> None:
        self._module.touched(f"train {type(self).__name__}", len(x), 0)
        self._inner.train(x)

    def add(self, x: Any) -> None:
        self._module.touched(f"add {type(self).__name__}", len(x), 0)
        self._inner.add(x)

    def _heeded(self, params: Any) -> Any:
        """The selector, unless the index is of the kind that ignores it."""
        sel = None if params is None else params.sel
        if sel is not None and not self._config.use_cuvs:
            self._module.filtered_without_cuvs += 1
            return None
        return sel


class _Flat(_Index):
    def add(self, x: Any) -> None:
        super().add(x.astype(np.float16).astype(np.float32) if self._config.useFloat16 else x)

    def search(self, x: Any, k: int, params: Any = None) -> Any:
        self._module.touched("search flat", len(x), k)
        if self._config.useFloat16:
            x = x.astype(np.float16).astype(np.float32)
        sel = self._heeded(params)
        return self._inner.search(x, k, params=None if sel is None else faiss.SearchParameters(sel=sel))


class _Lists(_Index):
    def search(self, x: Any, k: int, params: Any = None) -> Any:
        self._module.touched("search lists", len(x), k)
        nprobe = 1 if params is None else params.nprobe
        settings = {"nprobe": nprobe, "sel": self._heeded(params)}
        return self._inner.search(x, k, params=faiss.SearchParametersIVF(**settings))


class _Graph(_Index):
    """HNSW for CAGRA; as there, ids that are missing come back as the largest number of 32 bits."""

    def __init__(self, module: StandIn, config: GpuIndexCagraConfig, d: int, metric: int) -> None:
        super().__init__(module, config, faiss.IndexHNSWFlat(d, config.graph_degree // 2, metric))
        self._inner.hnsw.efConstruction = config.intermediate_graph_degree

    def train(self, x: Any, numeric_type: int = faiss.Float32) -> None:
        self._module.touched("train graph", len(x), 0)
        self._type = numeric_type
        self._inner.add(self._as_held(x))

    def _as_held(self, x: Any) -> Any:
        return x.astype(np.float16).astype(np.float32) if self._type == faiss.Float16 else x

    def search(self, x: Any, k: int, params: Any = None, numeric_type: int = faiss.Float32) -> Any:
        assert params is None or k <= params.itopk_size
        assert numeric_type == self._type, "FAISS says so, too"
        x = self._as_held(x)
        self._module.touched("search graph", len(x), k)
        width = 64 if params is None else params.itopk_size
        settings = {"efSearch": width, "sel": self._heeded(params)}
        found, rows = self._inner.search(x, k, params=faiss.SearchParametersHNSW(**settings))
        return found, np.where(rows < 0, 2**32 - 1, rows)

    def copyTo(self, index: Any) -> None:
        index.hnsw = self._inner.hnsw
        index.ntotal = self._inner.ntotal


@contextmanager
def in_place(gpus: int = 1, memory: int = GIBIBYTE) -> Iterator[StandIn]:
    """Inside, engines find this stand-in where FAISS would be."""
    with pytest.MonkeyPatch.context() as patch:
        module = StandIn(gpus, memory)
        patch.setattr(seam, "installed", lambda: module)
        patch.setattr(seam, "memory", lambda number: (module.memory, module.memory))
        # Neither prices nor kernels are what is tested, and large batches take the CPU long.
        patch.setattr(on_device, "_BATCH", 64)
        patch.setattr(on_device, "_MANY", 1)
        patch.setattr(searcher, "_WARM_BATCHES", (1, 2))
        multiply = Gathered.call

        def called(self: Gathered, queries: Any, k: int, effort: int, within: Any) -> Any:
            module.touched("multiply", len(queries), k)  # so that PyTorch fails as the rest of a device does
            return multiply(self, queries, k, effort, within)

        patch.setattr(Gathered, "call", called)
        for name in ("_FIRST_RETRY_S", "_LAST_RETRY_S"):  # a lost device is tried again soon
            patch.setattr(health, name, RETRY_S)
        yield module


def healed(device: Device) -> bool:
    """Wait until a device that was lost is back."""
    wait = threading.Event()
    return any(device.health.up or wait.wait(RETRY_S) for _ in range(500))
