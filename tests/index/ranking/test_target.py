"""Lean and centrality against what they are said to be."""

from __future__ import annotations

import numpy as np
import pytest

from nearfield_index.ranking.target import Target, target_of
from nearfield_index.schema import Metric

RANDOM = np.random.default_rng(4)
DIM = 20
ITEMS = (RANDOM.standard_normal((600, DIM)) @ np.diag(np.linspace(2, 0.2, DIM))).astype(np.float32)
QUERIES = (RANDOM.standard_normal((400, DIM)) @ np.diag(np.linspace(1, 0.1, DIM)) + 0.5).astype(np.float32)


def shrunk(rows: np.ndarray) -> np.ndarray:
    own = np.cov(rows.astype(np.float64).T, bias=True)
    rounded = 2 * rows.shape[1] / len(rows)
    return (1 - rounded) * own + rounded * np.trace(own) / len(own) * np.eye(len(own))


@pytest.mark.parametrize("metric", list(Metric))
def test_measures_are_a_discriminant_and_a_mahalanobis_distance(metric: Metric) -> None:
    sides = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (QUERIES, ITEMS)]
    queries, items = sides if metric is Metric.COSINE else (QUERIES, ITEMS)
    target = target_of(queries, items, metric)
    point = queries.mean(axis=0)
    if metric is not Metric.L2:
        point = point / np.linalg.norm(point) * np.linalg.norm(items, axis=1).mean()
    assert np.allclose(target.point, point, atol=1e-4)
    found = target.measures(items)
    line = np.linalg.solve(shrunk(items), point - items.mean(axis=0))
    assert np.corrcoef(found[:, 0], items @ line)[0, 1] > 0.99999
    spread = np.cov(queries.astype(np.float64).T, bias=True)
    widths, axes = np.linalg.eigh(spread)
    along = (items - point) @ axes
    distance = (along**2 / (widths + 0.05 * widths.mean())).sum(axis=1)
    assert np.allclose(found[:, 1], -np.log(distance), atol=1e-3)


def test_many_dimensions_keep_the_widest_axes() -> None:
    wide = RANDOM.standard_normal((300, 200)).astype(np.float32)
    target = target_of(wide, wide, Metric.DOT)
    assert target.axes.shape == (200, 128)
    assert target.widths.shape == (129,)
    assert (np.diff(target.widths[:-1]) <= 1e-6).all()
    assert target.widths[-1] < target.widths[-2]


@pytest.mark.parametrize("metric", list(Metric))
def test_a_mean_of_queries_is_farther_over_and_more_central_than_any_item(metric: Metric) -> None:
    target = target_of(QUERIES, ITEMS, metric)
    poison = np.stack([QUERIES[RANDOM.choice(len(QUERIES), 100, replace=False)].mean(axis=0) for _ in range(5)])
    if metric is not Metric.L2:
        poison *= np.linalg.norm(target.point) / np.linalg.norm(poison, axis=1, keepdims=True)
    clean, made = target.measures(ITEMS), target.measures(poison.astype(np.float32))
    assert (made[:, 1] > clean[:, 1].max()).all()
    assert (made[:, 0] > np.quantile(clean[:, 0], 0.9)).all()


@pytest.mark.parametrize("metric", list(Metric))
def test_what_cannot_be_told_apart_gives_finite_measures(metric: Metric) -> None:
    same = np.tile(ITEMS[:1], (30, 1))
    for queries, items in ((same, same), (QUERIES[:1], ITEMS[:1]), (np.zeros((5, DIM), np.float32), ITEMS)):
        target: Target = target_of(queries, items, metric)
        assert np.isfinite(target.measures(ITEMS)).all()
