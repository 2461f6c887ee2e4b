"""Every row compared on the device: in float32, or in half the memory as float16 with an exact second look."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any, ClassVar

import numpy as np

from nearfield_index.backends.base import Floats, Rows, Space
from nearfield_index.backends.exact import nothing, scan
from nearfield_index.backends.gpu import library as seam
from nearfield_index.backends.gpu.device import Device
from nearfield_index.backends.gpu.health import Unfit
from nearfield_index.backends.gpu.lengths import lengths, longest_row, odd, power_of_two
from nearfield_index.backends.gpu.searcher import OnDevice, reranked
from nearfield_index.backends.space import original
from nearfield_index.bitmap import Bitmap
from nearfield_index.errors import InvalidRequest
from nearfield_index.schema import Metric

Call = Callable[[Floats, int, int, Bitmap | None], tuple[Floats, Rows]]

_PROBES = 32
_SAFETY = 4.0

_ROUND_ROWS = 2.0**-10  # a product of two vectors that were both rounded to float16, by their lengths
_VANISHED = 2.0**-22  # what is too small for float16 is lost there, by the root of the columns
_SPARE = 32
_SEED = 20_261_125

MOST_WIDTH = 16_384
"""Candidates of a rough pass. Where so many decide nothing, the CPU scans."""


class GpuFlat(OnDevice):
    """A scan in float32. Stateless beside the rows; ``effort`` means nothing here."""

    kind: ClassVar[str] = "gpu-flat"
    half: ClassVar[bool] = False

    off: float = 0.0
    """How far products were seen to be off, in units of query length x longest row."""

    def _look(self) -> None:
        self.off = deviation(self, self.call)

    @classmethod
    def bytes_needed(cls, rows: int, columns: int, metric: Metric) -> int:
        return rows * columns * (2 if cls.half else 4)

    @property
    def error(self) -> float:
        """How far the products of an answer may be off, in those units: as float32 arithmetic has it, and more where
        this device was seen to be further off."""
        return trusted(single_error(self.space.vectors.matrix.shape[1]), self.off)

    def _put(self) -> seam.Held:
        matrix = self.space.vectors.matrix
        library = self.device.faiss
        made_with = seam.config(library, "GpuIndexFlatConfig", self.device.number, useFloat16=self.half)
        args = (self.device.resources, matrix.shape[1], library.METRIC_INNER_PRODUCT, made_with)
        index = library.GpuIndexFlat(*args)
        if len(matrix):
            index.add(self._rows(matrix))
        return seam.Held(library, index, made_with)

    def _rows(self, matrix: Floats) -> Floats:
        return np.ascontiguousarray(matrix)

    def call(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        held: seam.Held = self.held
        return held.search(queries, k, within=within, parameters="SearchParameters")


class GpuFlatHalf(GpuFlat):
    """A scan in float16 of more candidates than asked, which are compared again in float32.

    How many more is decided by each query: the answer is given once no row that was left out could belong, whatever
    its rounding; past 16,384 candidates the CPU scans. So answers are those of a scan in float32. Not for l2, whose
    squared lengths are too large a number to be kept as a float16.
    """

    kind: ClassVar[str] = "gpu-flat16"
    half: ClassVar[bool] = True

    def __init__(self, space: Space, device: Device) -> None:
        if space.metric is Metric.L2:
            raise InvalidRequest("float16 rows are for cosine and dot; use gpu-flat", field="index.kind")
        self.longest = longest_half(space.vectors.matrix)
        self._scale = float(power_of_two(np.float64(self.longest)))
        super().__init__(space, device)

    @classmethod
    def bytes_to_make(cls, rows: int, columns: int) -> int:
        """FAISS brings them there in float32, all at once."""
        return rows * columns * 4

    def _rows(self, matrix: Floats) -> Floats:
        return np.ascontiguousarray(matrix * np.float32(self._scale))

    def call(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        """Rough products in units of query length x longest row, a power of two either way."""
        scales = power_of_two(lengths(queries, precise=False)).astype(np.float32)
        found, rows = super().call(queries * scales[:, None], k, effort, within)
        return found / (scales[:, None] * np.float32(self._scale)), rows

    @property
    def error(self) -> float:
        return single_error(self.space.vectors.matrix.shape[1])

    def _search(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        def rough(asked: Floats, width: int) -> tuple[Floats, Rows]:
            return OnDevice._search(self, asked, width, effort, within)

        error = trusted(half_error(queries.shape[1]), self.off)
        return certain(self.space, queries, k, within, rough, error * self.longest)


def certain(
    space: Space, queries: Floats, k: int, within: Bitmap | None, rough: Any, error: float
) -> tuple[Floats, Rows]:
    """The exact best k through ``rough(queries, width)``, whose products are off by ``error`` x query length at most.

    A row that was not fetched had a rough product no better than the last one fetched.
    """
    matrix = space.vectors.matrix
    available = len(matrix) if within is None else within.count
    best, at = nothing(len(queries), k)
    long = lengths(queries, precise=False)
    slack = np.where(odd(long), np.inf, long * error)
    open_ = np.arange(len(queries))
    width = first_width(k, available)
    # The same on a device: ``Gathered.call``.
    while len(open_):
        asked = queries[open_]
        if width > MOST_WIDTH:
            found, rows = scan(matrix, space.vectors.flat, asked, k, within)
            best[open_], at[open_] = found, rows
            break
        products, rows = rough(asked, width)
        found, rows = reranked(matrix, asked, rows, k)
        best[open_], at[open_] = found, rows
        if width == available:
            break
        sure = found[:, -1] >= products[:, -1] + slack[open_]  # False where something is no number
        open_ = open_[~sure]
        width = min(available, 4 * width)
    return best, at


def first_width(k: int, available: int) -> int:
    """How many candidates a rough pass fetches at first."""
    return min(available, k + k // 2 + _SPARE)


def trusted(bound: float, seen: float) -> float:
    """How far off a device may be: as arithmetic has it, or much more than it was seen to be where that was more."""
    return bound if seen <= bound else _SAFETY * seen


def single_error(columns: int) -> float:
    """How far a float32 product of vectors may be off, in units of their lengths."""
    return 4 * sqrt(columns) * 2.0**-24


def half_error(columns: int) -> float:
    """The same of vectors that were rounded to float16, added up in float32."""
    return _ROUND_ROWS + sqrt(columns) * _VANISHED + single_error(columns)


def longest_half(matrix: Floats) -> float:
    """The length of the longest of rows that are to be float16. Raises :class:`Unfit` where no scale brings them
    there."""
    longest = longest_row(matrix)
    if longest and odd(np.float64(longest)):
        raise Unfit(f"rows of length {longest:.3g} are not for float16")
    return longest


def deviation(index: OnDevice, call: Call) -> float:
    """How far products of some rows that ``call``, of an exhaustive index, finds were off from float64, in units of
    query length x longest row (l2: plus half the square of that length, as the extra column has it). In the worker's
    thread."""
    matrix = index.space.vectors.matrix
    own = original(matrix, index.space.metric)
    chosen = np.sort(np.random.default_rng(_SEED).permutation(len(matrix))[:_PROBES])
    chosen = chosen[~odd(lengths(own[chosen], precise=False))]
    if not len(chosen):
        return 0.0
    queries = np.array(matrix[chosen])
    if index.space.metric is Metric.L2:
        queries[:, -1] = 1.0
    found, rows = call(queries, min(_PROBES, len(matrix)), 0, None)
    real = np.einsum("nkd,nd->nk", matrix[np.maximum(rows, 0)].astype(np.float64), queries.astype(np.float64))
    most = longest_row(own)
    size = lengths(own[chosen]) * most + (most**2 / 2 if index.space.metric is Metric.L2 else 0.0)
    apart = np.where(rows >= 0, np.abs(real - found), 0.0).max(axis=1)
    return float((apart / size).max())
