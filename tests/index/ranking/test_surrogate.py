"""The one solve behind every method: stable where a pseudo-inverse is not, and right where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfield_index.ranking.surrogate import fit

ANCHORS = 60
RNG = np.random.default_rng(3)
ITEMS = 800
R = RNG.standard_normal((ANCHORS, 20)) @ RNG.standard_normal((20, ITEMS)) + 0.5 * RNG.standard_normal((ANCHORS, ITEMS))
QUERY = RNG.standard_normal(ANCHORS) @ R / ANCHORS + 0.1 * RNG.standard_normal(ITEMS)


def estimate(vectors: np.ndarray, seen: np.ndarray, scores: np.ndarray, trend: np.ndarray) -> np.ndarray:
    found = fit(vectors[seen], trend[seen], scores[seen])
    assert np.isfinite(found.alpha).all()
    assert np.isfinite(found.beta).all()
    return trend @ found.beta + vectors @ (vectors[seen].T @ found.alpha)


def recall(estimated: np.ndarray, seen: np.ndarray) -> float:
    """Top 10 among the seen and the 60 best estimates, as one round of a search would have it."""
    order = np.argsort(-estimated)
    scored = np.union1d(seen, order[:60])
    return len(np.intersect1d(scored, np.argsort(-QUERY)[:10])) / 10


@pytest.mark.parametrize("count", [10, 20, 30, 45, 59, 60, 61, 75, 90, 120])
def test_as_many_items_as_anchors_do_no_harm(count):
    """Plain pseudo-inverses collapse where the system is square; recall here only grows."""
    trend = np.ones((ITEMS, 1))
    found = [recall(estimate(R.T, np.sort(s), QUERY, trend), s) for s in _samples(count)]
    floor = {10: 0.1, 20: 0.3, 30: 0.5}.get(count, 0.75)
    assert np.mean(found) >= floor


def _samples(count):
    rng = np.random.default_rng(count)
    return [rng.permutation(ITEMS)[:count] for _ in range(5)]


def test_a_pseudo_inverse_does_collapse_here():
    """What the test above is about: without it, a regression of the method could pass unseen."""
    found = []
    for seen in _samples(ANCHORS):
        approx = QUERY[seen] @ np.linalg.pinv(R[:, seen], rcond=1e-15) @ R
        found.append(recall(approx, seen))
    assert np.mean(found) < 0.5


@pytest.mark.parametrize("count", [10, 30, 60, 61, 120])
def test_duplicate_anchors_and_items_and_constant_rows(count):
    table = R.copy()
    table[10:20] = table[:10]
    table[20:25] = 3.0
    table[:, 100:200] = table[:, 200:300]
    table[:, 5] = 0.0
    seen = np.r_[np.arange(100, 100 + count // 2), np.arange(200, 200 + count - count // 2)]
    found = estimate(table.T, seen, QUERY, np.c_[np.ones(ITEMS), np.zeros(ITEMS)])
    assert np.abs(found).max() < 1e3 * np.abs(QUERY).max()


def test_it_is_the_kriging_mean():
    """Against the textbook formula, with generalised least squares and the ridge it chose."""
    seen = np.arange(40)
    trend = np.c_[np.ones(ITEMS), RNG.standard_normal(ITEMS)]
    vectors = R.T[:, :25]
    got = fit(vectors[seen], trend[seen], QUERY[seen])
    kernel, a, y = vectors[seen] @ vectors[seen].T, trend[seen], QUERY[seen]
    projector = np.eye(40) - a @ np.linalg.pinv(a)
    noise = got.ridge * np.linalg.eigvalsh(projector @ kernel @ projector)[-1]
    inverse = np.linalg.inv(kernel + noise * np.eye(40))
    beta = np.linalg.solve(a.T @ inverse @ a, a.T @ inverse @ y)
    np.testing.assert_allclose(got.beta, beta, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(got.alpha, inverse @ (y - a @ beta), rtol=1e-5, atol=1e-9)


def test_constant_scores_say_nothing():
    got = fit(R.T[:30], np.ones((30, 1)), np.full(30, 7.0))
    np.testing.assert_allclose(got.beta, [7.0])
    np.testing.assert_allclose(got.alpha, 0.0, atol=1e-12)


@given(
    count=st.integers(1, 40),
    columns=st.integers(1, 30),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    shift=st.sampled_from([0.0, 1e5]),
    seed=st.integers(0, 2**31),
    repeated=st.booleans(),
    flat=st.booleans(),
)
def test_never_anything_but_finite_numbers(count, columns, scale, shift, seed, repeated, flat):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, columns)) * scale + shift
    if repeated:
        vectors[count // 2 :] = vectors[: count - count // 2]
    base = np.zeros(count) if flat else rng.standard_normal(count) * scale
    scores = rng.standard_normal(count) * scale + shift
    got = fit(vectors, np.c_[np.ones(count), base], scores)
    predicted = np.c_[np.ones(count), base] @ got.beta + vectors @ (vectors.T @ got.alpha)
    assert np.isfinite(predicted).all()
    assert np.abs(predicted - scores.mean()).max() <= 1e3 * (
        np.abs(scores - scores.mean()).max() + 1e-9 * abs(shift) + scale
    )
