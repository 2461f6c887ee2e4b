"""Immutable sets of rows: sorted row numbers where few, packed bits where many.

Both forms of one set are made on demand and kept, so a bitmap may be handed to an exact scan (``rows``) and
to a FAISS selector (``bits``) without either paying twice. The arrays of both are read-only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

# Eight bytes a row against one bit a row: below one row in 64 the list of rows is the smaller form.
SPARSE_SHARE = 64

# Rows in no order: past one in sixteen, marking and packing a mask of all rows beats sorting them.
_SORT_SHARE = 16


class Cuts(NamedTuple):
    """Places between rows: before row ``places[i]``, which is in the word ``words[i]`` with the bits ``after[i]``."""

    places: Rows
    words: Rows
    after: Words

    @classmethod
    def at(cls, places: Rows) -> Cuts:
        """Cuts before these rows, int64; one past the last row is the end of its word."""
        words = np.maximum(places - 1, 0) >> 6
        bits = (places - (words << 6)).astype(np.uint64)  # 0 to 64
        full = ~np.uint64(0)
        after = np.where(bits == 64, np.uint64(0), full << np.minimum(bits, np.uint64(63)))
        return cls(places, words, after)


class Bitmap:
    """A set of rows ``0..n-1`` of one segment."""

    __slots__ = ("_count", "_rows", "_words", "n")

    def __init__(self, n: int, *, rows: Rows | None = None, words: Words | None = None) -> None:
        """Take one form as it is; use the named constructors, which check or build it.

        ``rows``: int64, sorted, distinct. ``words``: uint64, ``ceil(n / 64)`` of them, little-endian bit
        order, no bit set at or past ``n``.
        """
        self.n = n
        self._rows = rows
        self._words = words
        self._count = -1
        if rows is not None:
            self._count = len(rows)
            rows.setflags(write=False)
        elif words is None:
            raise ValueError("a bitmap needs rows or words")
        if words is not None:
            words.setflags(write=False)

    @classmethod
    def none(cls, n: int) -> Bitmap:
        """The empty set over ``n`` rows."""
        return cls(n, rows=np.empty(0, np.int64))

    @classmethod
    def all(cls, n: int) -> Bitmap:
        """Every one of ``n`` rows."""
        words = np.full(_word_count(n), ~np.uint64(0), np.uint64)
        _clear_tail(words, n)
        return cls(n, words=words)

    @classmethod
    def from_rows(cls, n: int, rows: npt.NDArray[np.integer]) -> Bitmap:
        """The set of these rows, each in ``0..n-1``, sorted and distinct."""
        if len(rows) == n:
            return cls.all(n)
        if len(rows) * SPARSE_SHARE > n:
            return cls._marked(n, rows)
        return cls(n, rows=rows.astype(np.int64))  # a copy: the caller's array stays the caller's

    @classmethod
    def from_unordered(cls, n: int, rows: npt.NDArray[np.integer], *, distinct: bool) -> Bitmap:
        """The set of these rows, each in ``0..n-1``, in any order; ``distinct`` says that none comes twice."""
        if len(rows) * _SORT_SHARE > n:
            return cls._marked(n, rows)
        ordered = rows.copy()
        ordered.sort()
        kept = ordered.astype(np.int64, copy=False)
        return cls(n, rows=kept if distinct else _distinct(kept))

    @classmethod
    def _marked(cls, n: int, rows: npt.NDArray[np.integer]) -> Bitmap:
        mask = np.zeros(n, np.bool_)
        mask[rows] = True
        return cls.from_mask(mask)

    @classmethod
    def from_mask(cls, mask: npt.NDArray[np.bool_]) -> Bitmap:
        """The rows where ``mask`` (bool, one entry a row) is true."""
        words = np.zeros(_word_count(len(mask)), np.uint64)
        packed = np.packbits(mask, bitorder="little")
        words.view(np.uint8)[: len(packed)] = packed
        return cls(len(mask), words=words)

    @classmethod
    def from_bits(cls, n: int, bits: npt.NDArray[np.uint8]) -> Bitmap:
        """The set packed in ``bits`` (uint8, ``ceil(n / 8)`` of them); bits at or past ``n`` are dropped.

        Raises ValueError when the length does not fit ``n``.
        """
        if len(bits) != (n + 7) // 8:
            raise ValueError(f"{len(bits)} bytes do not hold {n} bits")
        words = np.zeros(_word_count(n), np.uint64)
        words.view(np.uint8)[: len(bits)] = bits
        _clear_tail(words, n)
        return cls(n, words=words)

    @property
    def count(self) -> int:
        """How many rows are in the set."""
        if self._count < 0:
            assert self._words is not None
            self._count = int(np.bitwise_count(self._words).sum(dtype=np.int64))
        return self._count

    @property
    def share(self) -> float:
        """The share of all rows that is in the set."""
        return self.count / self.n if self.n else 0.0

    def __len__(self) -> int:
        return self.count

    @property
    def nbytes(self) -> int:
        """Bytes held by the forms made so far."""
        return sum(array.nbytes for array in (self._rows, self._words) if array is not None)

    def rows(self) -> Rows:
        """The rows in ascending order: int64, read-only."""
        if self._rows is None:
            assert self._words is not None
            found = _rows_of_words(self._words)
            found.flags.writeable = False
            self._rows = found
        return self._rows

    def words(self) -> Words:
        """The set packed to uint64, ``ceil(n / 64)`` of them, read-only."""
        if self._words is None:
            assert self._rows is not None
            self._words = Bitmap._marked(self.n, self._rows)._words
            assert self._words is not None
        return self._words

    def bits(self) -> npt.NDArray[np.uint8]:
        """The set packed to bytes (uint8, ``ceil(n / 8)``, little-endian), as FAISS selectors take it."""
        return self.words().view(np.uint8)[: (self.n + 7) // 8]

    def mask(self) -> npt.NDArray[np.bool_]:
        """One bool a row, freshly made."""
        if self._words is None:
            mask = np.zeros(self.n, np.bool_)
            mask[self._rows] = True
            return mask
        return np.unpackbits(self.bits(), count=self.n, bitorder="little").view(np.bool_)

    def test(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
        """Whether each of ``rows`` (each in ``0..n-1``) is in the set: bool, same length."""
        if self._words is None and self._small:
            assert self._rows is not None
            if len(self._rows) == 0:
                return np.zeros(rows.shape, np.bool_)
            places = np.searchsorted(self._rows, rows)
            places[places == len(self._rows)] = 0
            return np.asarray(self._rows[places] == rows, np.bool_)
        bits = self.bits()
        shifted: npt.NDArray[np.uint8] = bits[rows >> 3] >> (rows & 7).astype(np.uint8)
        return (shifted & np.uint8(1)).view(np.bool_)

    def before(self, cuts: Cuts) -> npt.NDArray[np.int64]:
        """How many rows of the set lie before each cut (each in ``0..n``): int64, same length."""
        if self._words is None:
            assert self._rows is not None
            return np.searchsorted(self._rows, cuts.places)
        upto = np.bitwise_count(self._words).cumsum(dtype=np.int64)
        if not len(upto):
            return np.zeros(len(cuts.places), np.int64)
        counts: npt.NDArray[np.int64] = upto[cuts.words] - np.bitwise_count(self._words[cuts.words] & cuts.after)
        return counts

    def __contains__(self, row: object) -> bool:
        if not isinstance(row, int | np.integer) or not 0 <= row < self.n:
            return False
        return bool(self.test(np.array([row], np.int64))[0])

    def __and__(self, other: Bitmap) -> Bitmap:
        self._check(other)
        for few, many in ((self, other), (other, self)):
            if few._small and (not many._small or few.count <= many.count):
                return Bitmap(self.n, rows=few.rows()[many.test(few.rows())])
        return Bitmap(self.n, words=self.words() & other.words())

    def __or__(self, other: Bitmap) -> Bitmap:
        self._check(other)
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        if self._small and other._small:
            both = np.concatenate((self.rows(), other.rows()))
            return Bitmap.from_unordered(self.n, both, distinct=False)
        return Bitmap(self.n, words=self.words() | other.words())

    def __sub__(self, other: Bitmap) -> Bitmap:
        self._check(other)
        if self._small:
            return Bitmap(self.n, rows=self.rows()[~other.test(self.rows())])
        return Bitmap(self.n, words=self.words() & ~other.words())

    def __invert__(self) -> Bitmap:
        words = ~self.words()
        _clear_tail(words, self.n)
        return Bitmap(self.n, words=words)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bitmap):
            return NotImplemented
        if self.n != other.n or self.count != other.count:
            return False
        return bool(np.array_equal(self.rows(), other.rows()))

    def __hash__(self) -> int:
        return hash((self.n, self.words().tobytes()))

    def __repr__(self) -> str:
        return f"Bitmap({self.count} of {self.n})"

    @property
    def _small(self) -> bool:
        """Whether going through the row list is the cheap way; never counts bits to find out."""
        return self._rows is not None and len(self._rows) * SPARSE_SHARE <= self.n

    def _check(self, other: Bitmap) -> None:
        if self.n != other.n:
            raise ValueError(f"bitmaps over {self.n} and {other.n} rows do not combine")


def _distinct(rows: Rows) -> Rows:
    """Sorted rows, each once. (np.unique hashes integers, which is slower here.)"""
    fresh = np.ones(len(rows), np.bool_)
    np.not_equal(rows[1:], rows[:-1], out=fresh[1:])
    return rows[fresh]


def _word_count(n: int) -> int:
    return (n + 63) // 64


def _clear_tail(words: Words, n: int) -> None:
    """Zero the bits at and past ``n`` in the last word, in place."""
    used = n & 63
    if used:
        words[-1] &= np.uint64((1 << used) - 1)


def _rows_of_words(words: Words) -> Rows:
    """Rows of the set bits, ascending; only words with a bit set are unpacked."""
    used = np.flatnonzero(words)
    flat = np.flatnonzero(np.unpackbits(words[used].view(np.uint8), bitorder="little").view(np.bool_))
    if len(used) == len(words):
        return flat
    rows: Rows = (used[flat >> 6] << 6) + (flat & 63)
    return rows
