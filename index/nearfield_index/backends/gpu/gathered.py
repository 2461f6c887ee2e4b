"""Exact search in PyTorch: all rows, or those that pass picked out on the device, are multiplied and compared there.

What FAISS does badly on a GPU: a filter that selects little makes it multiply everything, or keep an entry for every
query and row. Needs no FAISS on the device; tensors may as well lie on the CPU.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from nearfield_index.backends.base import Floats, Rows, Space
from nearfield_index.backends.exact import scan
from nearfield_index.backends.gpu.device import Device
from nearfield_index.backends.gpu.flat import (
    MOST_WIDTH,
    SAFETY,
    deviation,
    first_width,
    half_error,
    longest_half,
    single_error,
)
from nearfield_index.backends.gpu.lengths import longest_row, odd, power_of_two
from nearfield_index.backends.gpu.searcher import OnDevice
from nearfield_index.backends.gpu.tensors import LOST, Halves, best, passing, tensor, whole
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric

_ROUND_PRODUCT = 2.0**-11  # a matrix product of float16 tensors is one of those, too


class Gathered(OnDevice):
    """Rows as two float16 halves each (under l2: as float32 tensors); answers as exact as a float32 scan.

    A rough pass reads the upper halves; more candidates than asked are compared again with both. How many more is
    decided by each query, as in ``gpu-flat16``: the answer is given once no row that was left out could belong.
    ``effort`` means nothing here.
    """

    kind: ClassVar[str] = "gpu-gather"

    def __init__(self, space: Space, device: Device) -> None:
        self._half = space.metric is not Metric.L2
        columns = space.vectors.matrix.shape[1]
        self._longest = longest_half(space.vectors.matrix) if self._half else longest_row(space.vectors.matrix)
        self._scale = float(power_of_two(np.float64(self._longest))) if self._half else 1.0
        self._rough = half_error(columns) + _ROUND_PRODUCT
        super().__init__(space, device)
        self.off = deviation(self, self.call)
        if self._half:
            self._rough = max(self._rough, SAFETY * deviation(self, self._called_roughly))

    @classmethod
    def available(cls) -> bool:
        """Whether PyTorch is installed; it is not imported to find out."""
        return find_spec("torch") is not None

    @classmethod
    def bytes_needed(cls, rows: int, columns: int, metric: Metric) -> int:
        return rows * columns * 4

    @property
    def error(self) -> float:
        """How far the products of an answer may be off, as :attr:`GpuFlat.error`."""
        usual = single_error(self.space.vectors.matrix.shape[1]) + (LOST if self._half else 0.0)
        return max(usual, SAFETY * self.off)

    def _put(self) -> Any:
        import torch

        # Sums of products would else be rounded to float16 on the way, for some shapes.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        matrix, name = self.space.vectors.matrix, self.device.torch_name
        if self._half:
            return Halves.of(matrix, self._scale, name)
        return whole(matrix, name)

    def close(self) -> None:
        import torch

        super().close()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # or the memory stays PyTorch's, and FAISS finds none

    def call(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        """A query whose best cannot be told comes back without rows."""
        import torch

        held, name = self.held, self.device.torch_name
        asked = tensor(queries, name)
        chosen = None if within is None else passing(within, name)
        if not self._half:
            found, at = best(asked, held, chosen, k, self.device.scratch_bytes)
            return found.cpu().numpy(), at.cpu().numpy()
        asked, scales, slack = self._scaled(asked)
        rough_asked = asked.half()
        available = len(held.high) if chosen is None else len(chosen)
        found = torch.full((len(asked), k), -torch.inf, dtype=torch.float32, device=asked.device)
        at = torch.full((len(asked), k), -1, dtype=torch.int64, device=asked.device)
        width, open_ = first_width(k, available), torch.arange(len(asked), device=asked.device)
        while len(open_) and width <= MOST_WIDTH:
            rough, candidates = best(rough_asked[open_], held.high, chosen, width, self.device.scratch_bytes)
            products, rows = held.compared(asked[open_], candidates, k, self.device.scratch_bytes)
            certain = products[:, -1] >= rough[:, -1].float() + slack[open_]  # False where something is no number
            if width == available:
                certain[:] = True
            sure = open_[certain]
            found[sure], at[sure] = products[certain], rows[certain]
            open_, width = open_[~certain], min(available, 4 * width)
        return found.cpu().numpy() / (scales[:, None] * np.float32(self._scale)), at.cpu().numpy()

    def _scaled(self, asked: Any) -> tuple[Any, Floats, Any]:
        """Queries at most 1 long, the powers of two that made them so, and how far their rough products may be off,
        in the units of the device; those of odd lengths are never certain."""
        import torch

        lengths = torch.linalg.vector_norm(asked, dim=1, dtype=torch.float64).cpu().numpy()
        scales = power_of_two(lengths).astype(np.float32)
        slack = np.where(odd(lengths), np.inf, lengths * scales * (self._rough * self._longest * self._scale))
        on_device = [tensor(each.astype(np.float32), asked.device) for each in (scales, slack)]
        return asked * on_device[0][:, None], scales, on_device[1]

    def _called_roughly(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        """The first pass alone."""
        asked, scales, _ = self._scaled(tensor(queries, self.device.torch_name))
        found, at = best(asked.half(), self.held.high, None, k, self.device.scratch_bytes)
        return found.float().cpu().numpy() / (scales[:, None] * np.float32(self._scale)), at.cpu().numpy()

    def _search(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        found, rows = super()._search(queries, k, effort, within)
        unsure = np.flatnonzero(rows[:, 0] < 0)
        if len(unsure):
            vectors = self.space.vectors
            found[unsure], rows[unsure] = scan(vectors.matrix, vectors.flat, queries[unsure], k, within)
        return found, rows
