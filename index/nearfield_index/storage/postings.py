"""Which rows hold which value: distinct values in order, and for each the sorted rows that have it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

RowIds = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int64]
Codes = npt.NDArray[np.signedinteger[Any]]

_BLOCK = 64
_MANY_WORDS = 64


class Postings:
    """Rows by value: value ``i`` of the sorted distinct values is held by ``rows[starts[i]:starts[i + 1]]``.

    ``starts`` is int64 with one entry more than there are values; ``rows`` is int32, ascending and distinct
    within a value. No value is without rows.
    """

    def __init__(self, starts: Offsets, rows: RowIds) -> None:
        self.starts = starts
        self.rows = rows
        self._codes: Codes | None = None
        self._single: bool | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def single(self, n: int) -> bool:
        """Whether no row (of ``0..n-1``) holds more than one value."""
        if self._single is None:
            seen = np.zeros(n, np.bool_)
            seen[self.rows] = True
            self._single = int(np.count_nonzero(seen)) == len(self.rows)
        return self._single

    def codes(self, n: int) -> Codes | None:
        """By row (``0..n-1``) the number of the value it holds, -1 for none; None where a row holds several.

        Made when first asked for and kept: 2 bytes a row up to 32,767 values, else 4.
        """
        if self._codes is None and self.single(n):
            codes: Codes = np.full(n, -1, np.int16 if len(self) <= np.iinfo(np.int16).max else np.int32)
            codes[self.rows] = np.repeat(np.arange(len(self), dtype=codes.dtype), np.diff(self.starts))
            codes.flags.writeable = False
            self._codes = codes
        return self._codes

    def span(self, first: int, last: int) -> RowIds:
        """Rows of the values ``first..last-1``, value after value; a row with several of them comes again."""
        if first >= last:
            return self.rows[:0]
        return self.rows[self.starts[first] : self.starts[last]]

    def take(self, positions: Positions) -> RowIds:
        """Rows of the values at ``positions``, value after value; a row with several of them comes again."""
        if len(positions) == 1:
            return self.span(int(positions[0]), int(positions[0]) + 1)
        starts = self.starts[positions]
        sizes = self.starts[positions + 1] - starts
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        places: Positions = np.arange(total) + np.repeat(starts - (ends - sizes), sizes)
        return self.rows[places]

    def counts(self, mask: npt.NDArray[np.bool_] | None) -> Positions:
        """Rows per value, of all rows or of those where ``mask`` (bool, one entry a row) is true."""
        if mask is None:
            return np.diff(self.starts)
        if len(self) == 0:
            return np.empty(0, np.int64)
        held = mask[self.rows]
        # reduceat over bools would be "any"; summed as bytes it would wrap, hence the dtype
        counts: Positions = np.add.reduceat(held, self.starts[:-1], dtype=np.int64)
        return counts


class Vocabulary:
    """Distinct strings in UTF-8 byte order, kept as one blob; found by bisection, decoded only when asked.

    ``blob`` is uint8; ``ends`` is int64 with one entry more than there are strings, the first one 0.
    """

    def __init__(self, blob: npt.NDArray[np.uint8], ends: Offsets) -> None:
        self.blob = blob
        self.ends = ends
        self._bytes = np.ascontiguousarray(blob).data
        self._ends = np.ascontiguousarray(ends).data

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, position: int) -> bytes:
        if position >= len(self._ends) - 1:
            raise IndexError(position)
        return bytes(self._bytes[self._ends[position] : self._ends[position + 1]])

    @cached_property
    def _heads(self) -> list[bytes]:
        """The first string of every block: a list of bytes is bisected in C, the blob in Python."""
        return [self[place] for place in range(0, len(self), _BLOCK)]

    def text(self, position: int) -> str:
        """The string at ``position``."""
        return self[position].decode("utf-8", "surrogatepass")

    def find(self, words: Sequence[str]) -> Positions:
        """Positions of those of ``words`` that are here, in the order asked: int64."""
        found: list[int] = []
        size = len(self)
        heads = self._heads if len(words) > _MANY_WORDS else None
        for word in words:
            wanted = word.encode("utf-8", "surrogatepass")
            first, last = 0, size
            if heads is not None:
                last = bisect_right(heads, wanted) * _BLOCK
                first, last = max(last - _BLOCK, 0), min(last, size)
            place = bisect_left(self, wanted, first, last)
            if place < size and self[place] == wanted:
                found.append(place)
        return np.array(found, np.int64)

    def prefix(self, start: str) -> tuple[int, int]:
        """The half-open range of positions of the strings that begin with ``start``."""
        low = start.encode("utf-8", "surrogatepass")
        first = bisect_left(self, low)
        if not low:
            return 0, len(self)
        # UTF-8 never holds the byte 0xff, so the last byte of a prefix can always be raised by one
        return first, bisect_left(self, low[:-1] + bytes([low[-1] + 1]), first)
