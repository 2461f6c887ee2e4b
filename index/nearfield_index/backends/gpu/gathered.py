"""Exact search in PyTorch: all rows, or those that pass picked out on the device, are multiplied and compared there.

What FAISS does badly on a GPU: a filter that selects little makes it multiply everything, or keep an entry for every
query and row. Needs no FAISS on the device; tensors may as well lie on the CPU.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from nearfield_index.backends.base import Floats, Rows, Space
from nearfield_index.backends.exact import nothing, scan
from nearfield_index.backends.gpu.device import Device
from nearfield_index.backends.gpu.flat import (
    MOST_WIDTH,
    deviation,
    first_width,
    half_error,
    longest_half,
    single_error,
    trusted,
)
from nearfield_index.backends.gpu.lengths import lengths, odd, power_of_two
from nearfield_index.backends.gpu.searcher import MOST_QUERIES, OnDevice
from nearfield_index.backends.gpu.tensors import LOST, Halves, arithmetic, best, free, passing, tensor, whole
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric

_ROUND_PRODUCT = 2.0**-11  # a matrix product of float16 tensors is one of those, too
_ANSWER_BYTES = 48  # of scratch for each candidate of a query: its product and row, while they are merged and compared


class Gathered(OnDevice):
    """Rows as two float16 halves each (under l2: as float32 tensors); answers as exact as a float32 scan, in units of
    the longest row.

    A rough pass reads the upper halves; more candidates than asked are compared again with both. How many more is
    decided by each query, as in ``gpu-flat16``: the answer is given once no row that was left out could belong.
    ``effort`` means nothing here.
    """

    kind: ClassVar[str] = "gpu-gather"

    off: float = 0.0
    """How far products of answers were seen to be off, in units of query length x longest row."""

    def __init__(self, space: Space, device: Device) -> None:
        self._half = space.metric is not Metric.L2
        self._longest = longest_half(space.vectors.matrix) if self._half else 0.0
        self._scale = float(power_of_two(np.float64(self._longest))) if self._half else 1.0
        self._rough = half_error(space.vectors.matrix.shape[1]) + _ROUND_PRODUCT
        super().__init__(space, device)

    def _look(self) -> None:
        if self._half:
            self._rough = trusted(self._rough, deviation(self, self._roughly))
        self.off = deviation(self, self.call)

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
        return trusted(usual, self.off)

    def _put(self) -> Any:
        import torch

        # Sums of products would else be rounded to float16 on the way, for some shapes.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        self._arithmetic = arithmetic()
        matrix, name = self.space.vectors.matrix, self.device.torch_name
        held = Halves.of(matrix, self._scale, name) if self._half else whole(matrix, name)
        free()
        return held

    def _drop(self) -> None:
        super()._drop()
        free()

    def most_queries(self, k: int, within: Bitmap | None) -> int:
        """Of one call, which goes through them in blocks: rows that pass are picked out once for all."""
        return MOST_QUERIES

    def call(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        """A query whose best cannot be told comes back without rows."""
        import torch

        if arithmetic() != self._arithmetic:  # how far off it is was seen with other settings
            return nothing(len(queries), k)
        asked, times, slack = self._scaled(queries)
        chosen = None if within is None else passing(within, asked.device)
        available = len(self.space.vectors.matrix) if chosen is None else len(chosen)
        found = torch.full((len(queries), k), -torch.inf, dtype=torch.float32, device=asked.device)
        at = torch.full((len(queries), k), -1, dtype=torch.int64, device=asked.device)
        width, open_ = first_width(k, available) if self._half else k, torch.arange(len(queries), device=asked.device)
        while len(open_) and width <= MOST_WIDTH:
            left = []
            for some in open_.split(max(1, self.device.scratch_bytes // (_ANSWER_BYTES * width))):
                products, rows, sure = self._best(asked[some], slack[some], chosen, k, width)
                sure |= width == available
                found[some] = products.where(sure[:, None], -torch.inf)
                at[some] = rows.where(sure[:, None], -1)
                left.append(some[~sure])
            open_, width = torch.cat(left), min(available, 4 * width)
        return found.cpu().numpy() / times, at.cpu().numpy()

    def _best(self, asked: Any, slack: Any, chosen: Any, k: int, width: int) -> tuple[Any, Any, Any]:
        """The best k of a block of queries, by the ``width`` best of a rough pass, and whether they are that for sure:
        no row that is left out had a better product there than the last one given."""
        import torch

        scratch = self.device.scratch_bytes
        if not self._half:
            return *best(asked, self.held, chosen, k, scratch), torch.ones_like(asked[:, 0], dtype=torch.bool)
        rough, rows = best(asked.half(), self.held.high, chosen, width, scratch)
        products, rows = self.held.compared(asked, rows, k, scratch)
        # False where something is no number.
        return products, rows, products[:, -1] >= rough[:, -1].float() + slack

    def _scaled(self, queries: Floats) -> tuple[Any, Floats, Any]:
        """Queries at most 1 long, on the device, by what their products were multiplied on the whole, ``(n, 1)``, and
        how far rough ones may be off, in the units of the device; those of odd lengths are never sure."""
        long = lengths(queries, precise=False)
        scales = power_of_two(long) if self._half else np.ones_like(long)
        slack = np.where(odd(long), np.inf, long * scales * (self._rough * self._longest * self._scale))
        times = scales.astype(np.float32)[:, None]
        asked, narrow, wide = (tensor(each, self.device.torch_name) for each in (queries, times, slack))
        return asked * narrow, times * np.float32(self._scale), wide.float()

    def _roughly(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        """The first pass alone."""
        asked, times, _ = self._scaled(queries)
        found, at = best(asked.half(), self.held.high, None, k, self.device.scratch_bytes)
        return found.float().cpu().numpy() / times, at.cpu().numpy()

    def _search(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        found, rows = super()._search(queries, k, effort, within)
        unsure = np.flatnonzero(rows[:, 0] < 0)
        if len(unsure):
            vectors = self.space.vectors
            found[unsure], rows[unsure] = scan(vectors.matrix, vectors.flat, queries[unsure], k, within)
        return found, rows
