"""A filter bound to one immutable set of rows: cheap questions first, the bitmap only when somebody needs it.

Three questions may be put to it, cheapest first: how many rows pass (``estimate``, from posting lengths), whether
these few rows pass (``test``, through a column of value numbers by row), and which rows pass (``bitmap``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from nearfield_index.bitmap import SPARSE_SHARE, Bitmap
from nearfield_index.filters.estimate import Estimate, both, either, exactly, rest
from nearfield_index.storage.postings import Codes, Positions, Postings, RowIds

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Past one row in eight, looking at the value numbers of all rows beats marking those that pass one by one.
_LOOKED_UP = 8


class Compiled(ABC):
    """Rows ``0..n-1`` that pass. Immutable; what was made once is kept."""

    _estimated: Estimate | None = None
    _made: Bitmap | None = None

    def __init__(self, n: int) -> None:
        self.n = n

    @property
    def estimate(self) -> Estimate:
        """How many rows pass."""
        found = self._estimated
        if found is None:
            found = self._estimated = self._estimate()
        return found

    @property
    def bitmap(self) -> Bitmap:
        """The rows that pass."""
        if self._made is None:
            self._made = self._bitmap()
        return self._made

    @property
    def share(self) -> float:
        """The share of all rows that pass, as far as is known."""
        return self.estimate.likely / self.n if self.n else 0.0

    @property
    def count(self) -> int:
        """How many rows pass, exactly."""
        return self.estimate.low if self.estimate.exact else self.bitmap.count

    @property
    def nbytes(self) -> int:
        """Bytes that may be held once every question was put: a bitmap in both its forms."""
        return self.n // 8 + 8 * self.estimate.high

    def counted(self) -> Estimate:
        """The estimate, after counting where it was not exact: equal sets of rows give equal ones, however spelled."""
        estimate = self.estimate
        return estimate if estimate.low == estimate.high else exactly(self.bitmap.count)

    def listed(self) -> npt.NDArray[np.signedinteger[Any]]:
        """The rows that pass, each once, in any order."""
        return self._listed() if self._made is None else self._made.rows()

    def test(self, rows: npt.NDArray[np.signedinteger[Any]]) -> Mask:
        """Whether each of ``rows`` (each in ``0..n-1``) passes: bool, same shape."""
        return self._test(rows) if self._made is None else self._made.test(rows)

    @abstractmethod
    def _estimate(self) -> Estimate: ...

    @abstractmethod
    def _bitmap(self) -> Bitmap: ...

    def _listed(self) -> npt.NDArray[np.signedinteger[Any]]:
        return self.bitmap.rows()

    def _test(self, rows: Rows) -> Mask:
        return self.bitmap.test(rows)


class Known(Compiled):
    """A set of rows as it is."""

    def __init__(self, bitmap: Bitmap) -> None:
        super().__init__(bitmap.n)
        self._made = bitmap

    def _estimate(self) -> Estimate:
        return exactly(self.bitmap.count)

    def _bitmap(self) -> Bitmap:
        return self.bitmap


class _Posted(Compiled):
    """Rows that hold one of some values of one part of an attribute."""

    def __init__(self, n: int, postings: Postings) -> None:
        super().__init__(n)
        self._postings = postings

    def _test(self, rows: Rows) -> Mask:
        codes = None if self._sparse else self._postings.codes(self.n)
        return self.bitmap.test(rows) if codes is None else self._passes(codes[rows])

    @property
    def _sparse(self) -> bool:
        """Too few rows to make a column of value numbers for."""
        return self.estimate.high * SPARSE_SHARE <= self.n

    @property
    def _distinct(self) -> bool:
        """Whether no row holds several of the values."""
        return self._values() <= 1 or self._postings.single(self.n)

    def _bitmap(self) -> Bitmap:
        rows = self._held()
        if self._values() <= 1:
            return Bitmap.from_rows(self.n, rows)
        if len(rows) * _LOOKED_UP > self.n and (codes := self._postings.codes(self.n)) is not None:
            return Bitmap.from_mask(self._passes(codes))
        return Bitmap.from_unordered(self.n, rows, distinct=self._distinct)

    def _listed(self) -> npt.NDArray[np.signedinteger[Any]]:
        return self._held() if self._distinct else self.bitmap.rows()

    @abstractmethod
    def _values(self) -> int:
        """How many values there are."""

    @abstractmethod
    def _held(self) -> RowIds:
        """The rows of the values, value after value; one that holds several comes again."""

    @abstractmethod
    def _passes(self, codes: Codes) -> Mask:
        """Whether rows with these value numbers (-1: no value) pass."""


class Span(_Posted):
    """Rows that hold one of the values ``first..last-1`` of one part of an attribute."""

    def __init__(self, n: int, postings: Postings, first: int, last: int) -> None:
        self.n = n
        self._postings = postings
        self._first = first
        self._last = max(first, last)

    def within(self, other: Span) -> Span | None:
        """The rows that pass both, where both are runs of values of which no row holds several; else None."""
        if self._postings is not other._postings or not self._postings.single(self.n):
            return None
        return Span(self.n, self._postings, max(self._first, other._first), min(self._last, other._last))

    def _estimate(self) -> Estimate:
        starts = self._postings.starts
        first, last = int(starts[self._first]), int(starts[self._last])
        if self._distinct:
            return exactly(last - first)
        # A row with several values is counted for each of them.
        longest = int(np.diff(starts[self._first : self._last + 1]).max())
        return Estimate(longest, min(self.n, (last - first + longest) / 2), min(self.n, last - first))

    def _values(self) -> int:
        return self._last - self._first

    def _held(self) -> RowIds:
        return self._postings.span(self._first, self._last)

    def _passes(self, codes: Codes) -> Mask:
        return _within(codes, codes.dtype.type(self._first), self._last - self._first)

    def shared(self, others: Sequence[Span]) -> Codes | None:
        """The value numbers by row, where all are runs of them and not all are sparse; else None."""
        if any(each._postings is not self._postings for each in others) or all(each._sparse for each in others):
            return None
        return self._postings.codes(self.n)

    def run(self) -> tuple[int, int]:
        """The number of the first value, and how many there are."""
        return self._first, self._values()


def _within(codes: Codes, first: npt.ArrayLike, length: npt.ArrayLike) -> Mask:
    # One comparison does for both ends: below ``first`` the difference wraps round to a large number.
    shifted = np.subtract(codes, first, dtype=codes.dtype).view(f"u{codes.dtype.itemsize}")
    return np.asarray(shifted < length)


def those_pass(filters: Sequence[Compiled], sizes: Sequence[int], rows: Rows) -> Mask:
    """Whether ``rows`` ``(n, width)`` pass, same shape: the first ``sizes[0]`` lines by the first filter, the next by
    the second, and so on. At once where all filters are runs of values of one part of an attribute."""
    runs = [each for each in filters if isinstance(each, Span)]
    codes = runs[0].shared(runs) if len(runs) == len(filters) else None
    if codes is not None:
        first, length = np.repeat(np.array([each.run() for each in runs]), sizes, axis=0).T[..., None]
        return _within(codes[rows], first.astype(codes.dtype), length.astype(f"u{codes.itemsize}"))
    ends = np.cumsum(sizes).tolist()
    several = zip(filters, sizes, ends, strict=True)
    return np.concatenate([each.test(rows[end - size : end]) for each, size, end in several])


class Places(_Posted):
    """Rows that hold one of the values at ``positions`` (ascending) of one part of an attribute."""

    def __init__(self, n: int, postings: Postings, positions: Positions) -> None:
        super().__init__(n, postings)
        self._positions = positions

    def _estimate(self) -> Estimate:
        starts = self._postings.starts
        sizes = starts[self._positions + 1] - starts[self._positions]
        total, longest = int(sizes.sum()), int(sizes.max(initial=0))
        if self._distinct:
            return exactly(total)
        return Estimate(longest, min(self.n, (total + longest) / 2), min(self.n, total))

    def _values(self) -> int:
        return len(self._positions)

    def _held(self) -> RowIds:
        return self._postings.take(self._positions)

    def _passes(self, codes: Codes) -> Mask:
        return self._wanted[codes]

    @cached_property
    def _wanted(self) -> Mask:
        """By value number; the last entry answers for -1, which stands for no value."""
        wanted = np.zeros(len(self._postings) + 1, np.bool_)
        wanted[self._positions] = True
        return wanted


class _Several(Compiled):
    """Of two or more children."""

    def __init__(self, n: int, children: Sequence[Compiled]) -> None:
        super().__init__(n)
        self._children = children

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(child.nbytes for child in self._children)


class Both(_Several):
    """Rows that pass every one of two or more children."""

    def _estimate(self) -> Estimate:
        return both([child.estimate for child in self._children], self.n)

    def _bitmap(self) -> Bitmap:
        """Few rows first: those that are left are then tested one by one, not whole bitmaps."""
        order = sorted(self._children, key=lambda child: child.estimate.high)
        passed = order[0].bitmap
        for child in order[1:]:
            if not passed.count:
                break
            if passed.count * SPARSE_SHARE <= self.n:
                rows = passed.rows()
                passed = Bitmap(self.n, rows=rows[child.test(rows)])
            else:
                passed &= child.bitmap
        return passed

    def _listed(self) -> npt.NDArray[np.signedinteger[Any]]:
        order = sorted(self._children, key=lambda child: child.estimate.high)
        rows = order[0].listed()
        for child in order[1:]:
            rows = rows[child.test(rows)]
        return rows

    def _test(self, rows: Rows) -> Mask:
        passed = self._children[0].test(rows)
        for child in self._children[1:]:
            passed &= child.test(rows)
        return passed


class Living(Both):
    """Rows that pass a filter and are alive: few enough are dead that their share does for an estimate."""

    def __init__(self, passing: Compiled, alive: Compiled) -> None:
        super().__init__(passing.n, (passing, alive))

    def counted(self) -> Estimate:
        return both([child.counted() for child in self._children], self.n)


class Either(_Several):
    """Rows that pass any one of two or more children."""

    def _estimate(self) -> Estimate:
        return either([child.estimate for child in self._children], self.n)

    def _bitmap(self) -> Bitmap:
        passed = self._children[0].bitmap
        for child in self._children[1:]:
            passed |= child.bitmap
        return passed

    def _test(self, rows: Rows) -> Mask:
        passed = self._children[0].test(rows)
        for child in self._children[1:]:
            passed |= child.test(rows)
        return passed


class Rest(Compiled):
    """Rows that do not pass the child."""

    def __init__(self, child: Compiled) -> None:
        super().__init__(child.n)
        self._child = child

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._child.nbytes

    def _estimate(self) -> Estimate:
        return rest(self._child.estimate, self.n)

    def _bitmap(self) -> Bitmap:
        return ~self._child.bitmap

    def _test(self, rows: Rows) -> Mask:
        return ~self._child.test(rows)


class Mapped(Compiled):
    """The same filter over other rows: row ``i`` here is row ``rows[i]`` there."""

    def __init__(self, inner: Compiled, rows: Rows) -> None:
        super().__init__(len(rows))
        self._inner = inner
        self._rows = rows

    def _estimate(self) -> Estimate:
        return self._here(self._inner.estimate)

    def _here(self, whole: Estimate) -> Estimate:
        # Rows that are not here may be among those that pass.
        missing = self._inner.n - self.n
        share = self.n / self._inner.n if self._inner.n else 0.0
        low, high = max(0, whole.low - missing), min(self.n, whole.high)
        return Estimate(low, min(max(whole.likely * share, float(low)), float(high)), high)

    def counted(self) -> Estimate:
        return self._here(self._inner.counted())

    def _bitmap(self) -> Bitmap:
        return Bitmap.from_mask(self._inner.bitmap.test(self._rows))

    def _test(self, rows: Rows) -> Mask:
        return self._inner.test(self._rows[rows])
