"""Inverted lists on the device: whole vectors, or product-quantised ones with an exact second look."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from nearfield_index.backends.base import Floats, Rows, Space
from nearfield_index.backends.gpu import library as seam
from nearfield_index.backends.gpu.device import Device
from nearfield_index.backends.gpu.searcher import LEAST_ROWS, OnDevice, Plain, reranked
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric

_PER_LIST = 64
_LEAST_PER_LIST = 39
_DIMS_PER_CODE = 8
_REFINED, _LEAST_REFINED = 8, 128
_MOST_K = 2_048
_BLOCK_BYTES = 512 * 1024 * 1024
_SEED = 20_261_125


class GpuIvf(OnDevice):
    """IVF-Flat; ``effort`` is how many lists are scanned (nprobe)."""

    kind: ClassVar[str] = "gpu-ivf"
    efforts: ClassVar[tuple[int, ...]] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)
    least: ClassVar[int] = LEAST_ROWS
    most_k: ClassVar[int] = _MOST_K
    multiple: ClassVar[int] = 1
    """Columns are filled up to a multiple of it."""

    def __init__(self, space: Space, device: Device) -> None:
        rows = len(space.vectors.matrix)
        self.lists = max(1, min(len(space.lists.centroids), rows // _LEAST_PER_LIST))
        self._plain = Plain.of(space, multiple=self.multiple) if rows >= self.least else None
        super().__init__(space, device)

    @classmethod
    def bytes_needed(cls, rows: int, columns: int, metric: Metric) -> int:
        return rows * (4 * (columns + 1) + 8)

    @classmethod
    def bytes_to_make(cls, rows: int, columns: int) -> int:
        """Those of a block of rows: what FAISS with cuVS is given, it has there in float32 first."""
        return min(rows, cls._block_rows(columns)) * 4 * (columns + cls.multiple)

    @classmethod
    def _block_rows(cls, columns: int) -> int:
        return max(1, _BLOCK_BYTES // (4 * columns))

    @property
    def plain(self) -> Plain:
        """The rows as they were put into lists."""
        assert self._plain is not None
        return self._plain

    def _put(self) -> seam.Held | str:
        if self._plain is None:
            return "too few rows: they are scanned"
        plain, library, rows = self._plain, self.device.faiss, len(self._plain.matrix)
        metric = library.METRIC_INNER_PRODUCT if plain.metric is Metric.COSINE else library.METRIC_L2
        index, made_with = self._empty(library, plain.columns, metric)
        block = self._block_rows(plain.columns)
        sample = np.random.default_rng(_SEED).permutation(rows)[: min(block, _PER_LIST * self.lists)]
        index.train(np.ascontiguousarray(plain.matrix[np.sort(sample)]))
        for start in range(0, rows, block):
            index.add(plain.matrix[start : start + block])
        # On the device now. What is left here is asked for form only.
        self._plain = plain.without_rows()
        return seam.Held(library, index, made_with)

    def _empty(self, library: Any, columns: int, metric: int) -> tuple[Any, Any]:
        made_with = seam.config(library, "GpuIndexIVFFlatConfig", self.device.number)
        return library.GpuIndexIVFFlat(self.device.resources, columns, self.lists, metric, made_with), made_with

    def call(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        asked, times = self.plain.asked(queries)
        held: seam.Held = self.held
        nprobe = max(1, min(effort, self.lists))
        found, rows = held.search(asked, k, within=within, parameters="SearchParametersIVF", nprobe=nprobe)
        return self.plain.products(asked, times, found), rows


class GpuIvfPq(GpuIvf):
    """IVF-PQ in about a byte for eight dimensions. More candidates than asked are compared again by the rows
    themselves, which lie in the segment's file, not on the device."""

    kind: ClassVar[str] = "gpu-ivfpq"
    multiple: ClassVar[int] = _DIMS_PER_CODE

    @classmethod
    def bytes_needed(cls, rows: int, columns: int, metric: Metric) -> int:
        return rows * (columns // _DIMS_PER_CODE + 1 + 8)

    def _empty(self, library: Any, columns: int, metric: int) -> tuple[Any, Any]:
        made_with = seam.config(
            library, "GpuIndexIVFPQConfig", self.device.number, interleavedLayout=True, useFloat16LookupTables=True
        )
        args = (self.device.resources, columns, self.lists, columns // _DIMS_PER_CODE, 8, metric, made_with)
        return library.GpuIndexIVFPQ(*args), made_with

    def _search(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        matrix = self.space.vectors.matrix
        available = len(matrix) if within is None else within.count
        width = min(available, max(_REFINED * k, _LEAST_REFINED), max(_MOST_K, k))
        _, rows = super()._search(queries, width, effort, within)
        return reranked(matrix, queries, rows, k)
