"""Exact search in PyTorch: the passing rows are picked out on the device and multiplied.

What FAISS does badly on a GPU: a filter that selects little makes it multiply everything, or keep an entry for every
query and row. Needs no FAISS on the device; tensors may as well lie on the CPU.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from nearfield_index.backends.base import Floats, Rows, Space
from nearfield_index.backends.gpu.device import Device
from nearfield_index.backends.gpu.flat import (
    SAFETY,
    certain,
    deviation,
    half_error,
    longest_row,
    scale_of,
    single_error,
)
from nearfield_index.backends.gpu.searcher import OnDevice
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric

_BLOCK_ROWS = 1 << 18
_MOST_QUERIES = 8_192
_ROUND_PRODUCT = 2.0**-11  # a matrix product of float16 tensors is one of those, too


class Gathered(OnDevice):
    """Rows as float16 tensors (float32 under l2), answers as exact as a float32 scan; ``effort`` means nothing."""

    kind: ClassVar[str] = "gpu-gather"

    def __init__(self, space: Space, device: Device) -> None:
        self._half = space.metric is not Metric.L2
        self._longest = longest_row(space.vectors.matrix)
        self._scale = scale_of(self._longest) if self._half else 1.0
        super().__init__(space, device)
        self.off = deviation(self)

    @classmethod
    def available(cls) -> bool:
        """Whether PyTorch is installed; it is not imported to find out."""
        return find_spec("torch") is not None

    @classmethod
    def bytes_needed(cls, rows: int, columns: int, metric: Metric) -> int:
        return rows * columns * (4 if metric is Metric.L2 else 2)

    @property
    def error(self) -> float:
        """How far the products of an answer may be off, as :attr:`GpuFlat.error`."""
        usual = single_error(self.space.vectors.matrix.shape[1])
        return usual if self._half else max(usual, SAFETY * self.off)

    def _put(self) -> Any:
        import torch

        matrix = self.space.vectors.matrix
        kind = torch.float16 if self._half else torch.float32
        held = torch.empty(matrix.shape, dtype=kind, device=self.device.torch_name)
        for start in range(0, len(matrix), _BLOCK_ROWS):
            block = matrix[start : start + _BLOCK_ROWS] * np.float32(self._scale)
            held[start : start + len(block)] = torch.from_numpy(block)
        return held

    def close(self) -> None:
        import torch

        super().close()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # or the memory stays PyTorch's, and FAISS finds none

    def most_queries(self, k: int, within: Bitmap | None) -> int:
        return max(1, min(_MOST_QUERIES, self.device.scratch_bytes // (8 * _BLOCK_ROWS)))

    def call(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        import torch

        held = self.held
        scales = np.ones(len(queries), dtype=np.float32)
        if self._half:
            scales[:] = [scale_of(length) for length in np.linalg.norm(queries, axis=1).tolist()]
        asked = torch.from_numpy(queries * scales[:, None]).to(held.device, held.dtype)
        rows = None if within is None else torch.from_numpy(within.rows().copy()).to(held.device)
        count = len(held) if rows is None else len(rows)
        best: Any = None
        at: Any = None
        for start in range(0, count, _BLOCK_ROWS):
            stop = min(count, start + _BLOCK_ROWS)
            chosen = None if rows is None else rows[start:stop]
            block = held[start:stop] if chosen is None else held.index_select(0, chosen)
            found, place = (asked @ block.T).float().topk(min(k, stop - start), dim=1)
            here = place + start if chosen is None else chosen[place]
            if best is not None:
                found, here = torch.cat([best, found], 1), torch.cat([at, here], 1)
                found, place = found.topk(min(k, found.shape[1]), dim=1)
                here = here.gather(1, place)
            best, at = found, here
        return best.cpu().numpy() / (scales[:, None] * np.float32(self._scale)), at.cpu().numpy()

    def _search(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        if not self._half:
            return super()._search(queries, k, effort, within)
        error = max(half_error(queries.shape[1]) + _ROUND_PRODUCT, SAFETY * self.off) * self._longest

        def rough(asked: Floats, width: int) -> tuple[Floats, Rows]:
            return OnDevice._search(self, asked, width, effort, within)

        return certain(self.space, queries, k, within, rough, error)
