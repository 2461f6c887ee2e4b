"""What the indexes on a device have in common: the way through the worker, and products from distances."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import faiss
import numpy as np

from nearfield_index.backends.base import BuildParams, Floats, Rows, Space, Step
from nearfield_index.backends.exact import nothing, pad, scan
from nearfield_index.backends.gpu.device import Device, current
from nearfield_index.backends.gpu.health import DeviceFailed, IndexClosed
from nearfield_index.backends.gpu.lengths import lengths, longest_row, power_of_two
from nearfield_index.backends.hnsw import equally_long
from nearfield_index.backends.space import original
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric

LEAST_ROWS = 1_000
"""Fewer rows are no graph's and no quantizer's business: they are scanned."""

_CLOSE_S = 2.0
_WARM_STEPS = (2, 50)
_WARM_KS, _WARM_BATCHES = (16, 300), (1, 64, 512)  # cuVS has kernels of their own for wide answers, and large batches

_CSR_SHARE = 0.11  # cuVS's own is a tenth, in float32
_CSR_BYTES = 24  # of an entry of the product that cuVS makes of queries and passing rows, with room to sort

MOST_QUERIES = 16_384
"""Of one call."""


class OnDevice(ABC):
    """A searcher whose work is done by the worker of its device. Closed, it fails like a lost device."""

    kind: ClassVar[str]
    efforts: ClassVar[tuple[int, ...]] = ()
    is_graph: ClassVar[bool] = False
    least: ClassVar[int] = 0
    """Matrices of fewer rows are scanned on the CPU."""
    most_k: ClassVar[int] = 1 << 14
    """For more than so many neighbours it scans on the CPU."""

    def __init__(self, space: Space, device: Device) -> None:
        """Put the rows on the device. Raises :class:`DeviceFailed` where it fails, or has no memory left to give."""
        self.space = space
        self.device = device
        rows, columns = space.vectors.matrix.shape
        self._nbytes = self.bytes_needed(rows, columns, space.metric)
        meanwhile = self.bytes_to_make(rows, columns)
        if not device.take(self._nbytes + meanwhile):
            raise DeviceFailed(f"{self._nbytes + meanwhile:,} bytes are more than is left of the memory share")
        self._held: Any = None
        try:
            device.worker.run(self._make)
        except BaseException as error:
            self._held = None
            device.give_back(self._nbytes)
            if isinstance(error, Exception) and not isinstance(error, DeviceFailed):
                raise DeviceFailed(f"{self.kind} could not be made: {error}") from error
            raise
        finally:
            device.give_back(meanwhile)

    @classmethod
    def build(cls, path: Path, space: Space, params: BuildParams, *, threads: int, step: Step) -> None:
        """Nothing to write: what lies on a device is made from the matrix when the segment is opened."""
        return None

    @classmethod
    def open(cls, path: Path, space: Space, params: BuildParams) -> Self:
        """On the device that is open in this process."""
        return cls(space, current())

    @classmethod
    @abstractmethod
    def bytes_needed(cls, rows: int, columns: int, metric: Metric) -> int:
        """Bytes it will take on the device."""

    @classmethod
    def bytes_to_make(cls, rows: int, columns: int) -> int:
        """Bytes more that it takes there while it is made."""
        return 0

    @abstractmethod
    def _put(self) -> Any:
        """Make the index; in the worker's thread."""

    @abstractmethod
    def call(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        """The search itself; in the worker's thread."""

    def _look(self) -> None:
        """What has to be known of the index once it is there; in the worker's thread."""
        return None

    def _make(self) -> None:
        """The index, and one call of each sort: kernels are linked at their first use, which can take seconds, and
        no query should be the one that waits for it."""
        self._held = self._put()
        self._look()
        matrix = self.space.vectors.matrix
        n = len(matrix)
        if n < max(1, self.least):
            return
        effort = self.efforts[0] if self.efforts else 0
        filters = [None, *(Bitmap.from_rows(n, np.arange(0, n, step)) for step in _WARM_STEPS)]
        for within in filters:
            most_k = min(self.most_k, n if within is None else within.count)
            for count, k in product(_WARM_BATCHES, _WARM_KS):
                count = min(count, self.most_queries(k, within))
                self.call(np.ascontiguousarray(matrix[:count]), min(k, most_k), effort, within)

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def most_queries(self, k: int, within: Bitmap | None) -> int:
        """Of one call. Behind a selective filter cuVS makes a bit of every query and row, and an entry of each that
        passes."""
        if within is None or within.share > _CSR_SHARE:
            return MOST_QUERIES
        each = _CSR_BYTES * max(1, within.count) + within.n // 8
        return max(1, min(MOST_QUERIES, self.device.scratch_bytes // each))

    def search(self, queries: Floats, k: int, *, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        n = len(self.space.vectors.matrix)
        fetch = min(k, n if within is None else within.count)
        if fetch == 0 or not len(queries):
            return nothing(len(queries), k)
        if n < self.least or fetch > self.most_k:
            return scan(self.space.vectors.matrix, self.space.vectors.flat, queries, k, within)
        if within is not None and within.count == n:
            within = None
        found, rows = self._search(np.ascontiguousarray(queries, dtype=np.float32), fetch, effort, within)
        return pad(found, rows, k)

    def _search(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        return self.device.worker.search(self, queries, k, effort, within)

    def close(self) -> None:
        """Free the memory, in the worker's thread; searches fail from then on."""
        try:
            self.device.worker.run(self._drop, patience_s=_CLOSE_S)
        except DeviceFailed:  # its thread has ended, or hangs in a call of the driver: a stop must not wait for that
            self._held = None
        self.device.give_back(self._nbytes)

    def _drop(self) -> None:
        self._held = None

    @property
    def held(self) -> Any:
        """What :meth:`_put` made. Raises :class:`IndexClosed` afterwards."""
        if self._held is None:
            raise IndexClosed("the index was closed")
        return self._held


class Plain(NamedTuple):
    """Rows in the form that graphs and inverted lists are made of: under cosine by product, else by L2 distance.

    Those of dot are all made equally long (:func:`equally_long`), which leaves one order for product and distance.
    All are brought to a length of at most 1, since graphs are built by their float16 products.
    """

    matrix: Floats
    metric: Metric
    columns: int
    length: float
    """Of every row, under dot."""
    scale: float
    """The power of two that all numbers were multiplied by."""

    @classmethod
    def of(cls, space: Space, *, multiple: int = 1) -> Plain:
        """``multiple``: columns are filled up with zeros, which change no distance, to a multiple of this."""
        matrix = original(space.vectors.matrix, space.metric)
        length, scale = 0.0, 1.0
        if space.metric is Metric.DOT:
            matrix = equally_long(matrix)
            length = longest_row(matrix[:1])
        if space.metric is not Metric.COSINE:
            scale = float(power_of_two(np.float64(longest_row(matrix))))
            matrix = np.multiply(matrix, np.float32(scale), out=matrix if space.metric is Metric.DOT else None)
        columns = -(-matrix.shape[1] // multiple) * multiple
        return cls(_filled(matrix, columns), space.metric, columns, length * scale, scale)

    def asked(self, queries: Floats) -> tuple[Floats, Floats]:
        """Queries in search form as such rows are asked, and what their products are multiplied by, ``(n, 1)``.

        Those of dot are made about as long as rows are: their order is the same, and a distance from far away tells
        rows apart no better than its own digits do.
        """
        asked = _filled(original(queries, self.metric), self.columns)
        times = np.full((len(asked), 1), self.scale, dtype=np.float32)
        if self.metric is Metric.DOT:
            times = power_of_two(lengths(asked, precise=False)).astype(np.float32)[:, None]
        return (asked if self.metric is Metric.COSINE else asked * times), times

    def without_rows(self) -> Plain:
        """The form alone, once the rows lie elsewhere."""
        return self._replace(matrix=np.empty((0, self.columns), dtype=np.float32))

    def products(self, asked: Floats, times: Floats, found: Floats) -> Floats:
        """What FAISS found, as inner products of search form and stored rows."""
        if self.metric is Metric.COSINE:
            return found
        squares = np.einsum("ij,ij->i", asked, asked)[:, None] + np.float32(self.length**2)
        with np.errstate(over="ignore"):  # the distance of no row is the largest number
            made: Floats = (squares - found) * np.float32(0.5) / times / np.float32(self.scale)
        return made


def _filled(matrix: Floats, columns: int) -> Floats:
    """With columns of zeros up to so many; the same array where it is as wide and contiguous."""
    if matrix.shape[1] == columns:
        return np.ascontiguousarray(matrix)
    return np.pad(matrix, ((0, 0), (0, columns - matrix.shape[1])))


def reranked(matrix: Floats, queries: Floats, rows: Rows, k: int) -> tuple[Floats, Rows]:
    """The best k of ``rows`` ``(n, width)`` (-1: none) by float32 products with the stored rows, read in place by all
    of OpenMP's threads."""
    n, width = rows.shape
    held = [np.ascontiguousarray(each) for each in (queries, matrix, rows)]
    inner = np.empty((n, width), dtype=np.float32)
    faiss.fvec_inner_products_by_idx(
        faiss.swig_ptr(inner), *(faiss.swig_ptr(each) for each in held), matrix.shape[1], n, width
    )
    order = np.argsort(-inner, axis=1)[:, :k]  # stable takes four times as long
    found, best = np.take_along_axis(inner, order, 1), np.take_along_axis(rows, order, 1)
    return found, np.where(np.isfinite(found), best, -1)
