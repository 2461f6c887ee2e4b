"""Rows that lie in long runs are scored in place; it is the same answer as from copies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfield_index.backends.exact import long_runs, scan, search_gathered, search_runs
from nearfield_index.bitmap import Bitmap

MATRIX = np.random.default_rng(1).standard_normal((9_000, 16)).astype(np.float32)


def marked(lengths: list[int], gaps: list[int]) -> np.ndarray:
    rows, at = [], 0
    for length, gap in zip(lengths, gaps, strict=True):
        at += gap
        rows.append(np.arange(at, min(at + length, len(MATRIX))))
        at += length
    found = np.concatenate(rows)
    return found[found < len(MATRIX)].astype(np.int64)


@settings(derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 90)), min_size=1, max_size=40))
def test_long_runs_are_those_that_there_are(parts: list[tuple[int, int]]) -> None:
    rows = marked([length for length, _ in parts], [gap for _, gap in parts])
    if len(rows) < 128:
        return
    places, lengths = long_runs(rows)
    expected = [(p, n) for p, n in _runs(rows) if n >= 128]
    found = list(zip(places.tolist(), lengths.tolist(), strict=True))
    assert found == expected or (not found and all(n < 192 for _, n in expected))


def _runs(rows: np.ndarray) -> list[tuple[int, int]]:
    starts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist()]
    return [(a, b - a) for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]


@pytest.mark.parametrize("queries", [4, 9, 32])
@pytest.mark.parametrize("k", [1, 10, 6_000])
@pytest.mark.parametrize("scattered", [0, 900])
def test_in_place_equals_copied(queries: int, k: int, scattered: int) -> None:
    random = np.random.default_rng(queries + k)
    rows = marked([400, 1, 900, 3_500], [5, 60, 1, 100])
    rows = np.unique(np.concatenate([rows, random.permutation(len(MATRIX))[:scattered]]))
    asked = random.standard_normal((queries, 16)).astype(np.float32)

    found, at = search_runs(MATRIX, asked, k, rows, long_runs(rows))
    expected, where = search_gathered(MATRIX, asked, k, rows)

    assert found.shape == at.shape == (queries, k)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (at == where).mean() > 0.999
    scanned, there = scan(MATRIX, None, asked, k, Bitmap.from_rows(len(MATRIX), rows))
    assert np.array_equal(there, at)
    assert np.array_equal(scanned, found)
