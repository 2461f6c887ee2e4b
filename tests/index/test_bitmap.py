"""Bitmaps behave as sets of integers, in both forms and across the word boundaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfield_index.bitmap import Bitmap, Cuts

SIZES = st.one_of(st.integers(0, 300), st.sampled_from([63, 64, 65, 127, 128, 129, 5000]))


@st.composite
def bitmaps(draw: st.DrawFn, n: int) -> tuple[Bitmap, set[int]]:
    rows = draw(st.sets(st.integers(0, n - 1), max_size=n)) if n else set()
    if draw(st.booleans()):
        rows = set(range(n)) - rows
    ordered = np.array(sorted(rows), np.int64)
    mask = np.zeros(n, np.bool_)
    mask[ordered] = True
    form = draw(st.sampled_from(["rows", "shuffled", "reversed", "mask", "bits", "sparse"]))
    if form == "rows":
        return Bitmap.from_rows(n, ordered), rows
    if form == "shuffled":
        doubled = np.concatenate((ordered[::-1], ordered)).astype(np.int32)
        return Bitmap.from_unordered(n, doubled, distinct=False), rows
    if form == "reversed":
        return Bitmap.from_unordered(n, ordered[::-1], distinct=True), rows
    if form == "mask":
        return Bitmap.from_mask(mask), rows
    if form == "bits":
        return Bitmap.from_bits(n, np.packbits(mask, bitorder="little")), rows
    return Bitmap(n, rows=ordered), rows


@st.composite
def pairs(draw: st.DrawFn) -> tuple[int, tuple[Bitmap, set[int]], tuple[Bitmap, set[int]]]:
    n = draw(SIZES)
    return n, draw(bitmaps(n)), draw(bitmaps(n))


def check(bitmap: Bitmap, expected: set[int], n: int) -> None:
    assert bitmap.n == n
    assert bitmap.count == len(bitmap) == len(expected)
    assert bitmap.rows().dtype == np.int64
    assert bitmap.rows().tolist() == sorted(expected)
    mask = bitmap.mask()
    assert mask.dtype == np.bool_
    assert np.flatnonzero(mask).tolist() == sorted(expected)
    bits = bitmap.bits()
    assert bits.dtype == np.uint8
    assert len(bits) == (n + 7) // 8
    assert bits.flags.c_contiguous
    assert int(np.bitwise_count(bits).sum()) == len(expected)
    every = np.arange(n)
    assert bitmap.test(every).tolist() == mask.tolist()


@given(pairs())
def test_operations_equal_those_of_sets(
    drawn: tuple[int, tuple[Bitmap, set[int]], tuple[Bitmap, set[int]]],
) -> None:
    n, (a, rows_a), (b, rows_b) = drawn
    check(a & b, rows_a & rows_b, n)
    check(a | b, rows_a | rows_b, n)
    check(a - b, rows_a - rows_b, n)
    check(~a, set(range(n)) - rows_a, n)
    check(a, rows_a, n)
    check(b, rows_b, n)
    assert (a == b) is (rows_a == rows_b)
    if rows_a == rows_b:
        assert hash(a) == hash(b)


@given(SIZES)
def test_none_and_all(n: int) -> None:
    check(Bitmap.none(n), set(), n)
    check(Bitmap.all(n), set(range(n)), n)
    assert ~Bitmap.none(n) == Bitmap.all(n)


def test_membership_of_one_row() -> None:
    for bitmap in (Bitmap.from_rows(1000, np.array([3])), Bitmap.from_rows(1000, np.arange(3, 1000, 1000))):
        assert 3 in bitmap
        assert np.int32(3) in bitmap
        assert 4 not in bitmap
        assert -1 not in bitmap
        assert 1000 not in bitmap
        assert "3" not in bitmap


@pytest.mark.parametrize("n", [1, 63, 64, 65, 128, 1_000])
def test_how_many_lie_before(n: int) -> None:
    mask = np.random.default_rng(n).random(n) < 0.4
    for bitmap in (Bitmap.from_mask(mask), Bitmap.from_rows(n, np.flatnonzero(mask)), Bitmap.none(n), Bitmap.all(n)):
        wanted = np.concatenate([[0], np.cumsum(bitmap.mask())])
        assert np.array_equal(bitmap.before(Cuts.at(np.arange(n + 1))), wanted)


def test_bits_past_the_end_are_dropped() -> None:
    bitmap = Bitmap.from_bits(3, np.array([255], np.uint8))
    assert bitmap.rows().tolist() == [0, 1, 2]
    assert bitmap.bits().tolist() == [7]


def test_forms_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not hold"):
        Bitmap.from_bits(9, np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match="do not combine"):
        Bitmap.none(3) & Bitmap.none(4)
    with pytest.raises(ValueError, match="rows or words"):
        Bitmap(3)


def test_what_is_given_out_cannot_be_changed() -> None:
    mine = np.array([1, 500])
    bitmap = Bitmap.from_rows(1000, mine)
    mine[0] = 2
    assert bitmap.rows().tolist() == [1, 500]
    for array in (bitmap.rows(), bitmap.bits(), bitmap.words()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_few_rows_take_few_bytes() -> None:
    assert Bitmap.from_rows(1_000_000, np.arange(10)).nbytes == 80
    assert Bitmap.all(1_000_000).nbytes == 125_000


def test_a_faiss_selector_reads_the_bits() -> None:
    faiss = pytest.importorskip("faiss")
    vectors = np.arange(200, dtype=np.float32)[:, None]
    index = faiss.IndexFlat(1, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    allowed = Bitmap.from_rows(200, np.array([0, 7, 64, 199]))
    parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(allowed.bits()))
    _, found = index.search(np.ones((1, 1), np.float32), 5, params=parameters)
    assert found[0].tolist() == [199, 64, 7, 0, -1]
