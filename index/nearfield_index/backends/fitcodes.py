"""Normalised search over short codes: every row scored from 4-bit tables, the best of them scored anew from their rows.

A normalised answer lies among items that are no query's obvious neighbours, which a graph has to walk far for. Codes
that were learned from the fit's own queries (``backends.fitcoding``) tell enough to leave out all but some dozens of
rows, and scoring one costs about a nanosecond (product quantisation with tables in registers, arXiv 1704.07355), so
that looking at every row is cheaper than the walk.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import faiss
import numpy as np

from nearfield_index.backends.base import Floats, Rows
from nearfield_index.backends.coded import BY_QUERY, EVERY_LIST
from nearfield_index.backends.exact import first, nothing, pad, products
from nearfield_index.bitmap import Bitmap
from nearfield_index.storage.vectors import MappedVectors

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)

_SHORT = 1_024  # rows of a list, below which scanning query by query is best


@dataclass(frozen=True)
class FitCodes:
    """Rows as codes, in lists, and how queries meet them; all in a code space of ``width`` dimensions.

    A query in search form ``q`` becomes ``q @ turn + fixed + strength * scaled``. Its inner product with a row is
    about that with ``centroids`` ``(lists, width)`` of the row's list, plus what ``tables`` ``(groups, 16, width /
    groups)`` say of the row's code: ``(rows, groups / 2)`` bytes, two groups a byte, list after list; ``sizes``
    ``(lists,)`` tells their lengths and ``rows`` which rows they are. ``probes`` says by ``EFFORTS`` how many lists are
    worth a look.
    """

    turn: Floats
    fixed: Floats
    scaled: Floats
    centroids: Floats
    tables: Floats
    codes: Bytes
    sizes: Rows
    rows: Rows
    probes: Rows

    def arrays(self) -> dict[str, Any]:
        """By name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def width(self) -> int:
        return len(self.fixed)

    def asked(self, queries: Floats, strength: float) -> Floats:
        """Queries in search form ``(n, columns)`` as they meet codes ``(n, width)``."""
        # One product for all would round each query by its place among them, and near ties would fall otherwise.
        turned: Floats = np.matmul(queries[:, None, :], self.turn)[:, 0]
        turned += self.fixed + np.float32(strength) * self.scaled
        return turned

    def scanner(self) -> tuple[Any, Any]:
        """FAISS's index over these codes, and what it points to."""
        nearest = faiss.IndexFlatIP(self.width)
        nearest.add(np.ascontiguousarray(self.centroids))
        lists, groups = len(self.centroids), len(self.tables)
        plain = faiss.IndexIVFPQ(nearest, self.width, lists, groups, 4, faiss.METRIC_INNER_PRODUCT)
        plain.by_residual = True
        faiss.copy_array_to_vector(np.ascontiguousarray(self.tables, np.float32).ravel(), plain.pq.centroids)
        plain.is_trained = True
        start = 0
        for number, size in enumerate(self.sizes.tolist()):
            if size:
                rows = np.ascontiguousarray(self.rows[start : start + size], np.int64)
                codes = np.ascontiguousarray(self.codes[start : start + size])
                plain.invlists.add_entries(number, size, faiss.swig_ptr(rows), faiss.swig_ptr(codes))
            start += size
        plain.ntotal = len(self.codes)
        scan = faiss.IndexIVFPQFastScan(plain)
        if len(self.codes) < _SHORT * lists:
            scan.implem = BY_QUERY
        return scan, nearest


class FitCodeScan:
    """Scans codes, then scores the best ``effort`` rows; to a filter it is a graph: it looks the same way whatever
    the filter, which chooses among what was found."""

    kind: ClassVar[str] = "codes"
    efforts: ClassVar[tuple[int, ...]] = EFFORTS
    is_graph: ClassVar[bool] = True

    def __init__(
        self,
        codes: FitCodes,
        vectors: MappedVectors,
        bias: Floats,
        strength: float = 1.0,
        scanner: tuple[Any, Any] | None = None,
    ) -> None:
        """``vectors``: the stored rows; ``bias`` ``(rows,)``."""
        self._codes = codes
        self._vectors = vectors
        self._bias = bias
        self._strength = strength
        self._scanner = codes.scanner() if scanner is None else scanner
        self._looks = [_look(probes) for probes in codes.probes.tolist()]

    def at_strength(self, strength: float) -> FitCodeScan | None:
        """The same for ``strength`` times the bias."""
        if strength > 1.0:
            return None
        return FitCodeScan(self._codes, self._vectors, self._bias, strength, self._scanner)

    @property
    def nbytes(self) -> int:
        return int(self._codes.codes.nbytes + 8 * len(self._codes.codes) + self._codes.turn.nbytes)

    def search(self, queries: Floats, k: int, *, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        fetch = min(max(effort, k), len(self._bias))
        if fetch == 0 or (within is not None and within.count == 0):
            return nothing(len(queries), k)
        params = self._looks[min(bisect_left(EFFORTS, fetch), len(EFFORTS) - 1)]
        if within is not None:
            params = _look(params.nprobe, faiss.IDSelectorBitmap(within.bits()))
        asked = np.ascontiguousarray(queries)
        _, rows = self._scanner[0].search(self._codes.asked(asked, self._strength), fetch, params=params)
        inner = products(self._vectors.flat, asked, rows)
        inner -= np.float32(self._strength) * self._bias[rows]  # where there is no row, the product is -inf
        best = first(inner, k)
        if len(best) == 1 and fetch >= k:  # the common case
            return inner[:, best[0]], rows[:, best[0]]
        return pad(np.take_along_axis(inner, best, 1), np.take_along_axis(rows, best, 1), k)


def _look(probes: int, sel: Any = None) -> Any:
    """What FAISS wants to know: how many lists to look at, chosen one way for any number of queries, and which rows."""
    return faiss.SearchParametersIVF(nprobe=probes, sel=sel, quantizer_params=EVERY_LIST)
