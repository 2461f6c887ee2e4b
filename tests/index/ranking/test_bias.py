"""Biases against their formulas; potentials, blocks, rotation, measures."""

from __future__ import annotations

import numpy as np
import pytest

import normalised
from nearfield_index.backends.space import stored
from nearfield_index.ranking.bias import BLOCKS, Bank, BiasModel, Method, Recipe, block_bounds, log_sum_exp
from nearfield_index.ranking.fitting import fit_model, rotated_model
from nearfield_index.ranking.occurrence import occurrence
from nearfield_index.schema import Metric

RANDOM = np.random.default_rng(11)
X = RANDOM.standard_normal((300, 12)).astype(np.float32)
Q = (RANDOM.standard_normal((90, 12)) + 0.4).astype(np.float32)
RECIPES = [
    Recipe(Method.IS, 20.0),
    Recipe(Method.DUAL_IS, 20.0, gallery_strength=1.0),
    Recipe(Method.NNN, 0.75, neighbours=8),
    Recipe(Method.CSLS, 0.5, neighbours=8),
    Recipe(Method.SINKHORN, 0.05, passes=4),
]


def fitted(recipe: Recipe, metric: Metric, bank: np.ndarray = Q) -> BiasModel:
    return fit_model("v", recipe, bank, [stored(X[:170], metric), stored(X[170:], metric)], metric, step=lambda _: None)


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_bias_is_what_its_formula_says(recipe: Recipe, metric: Metric) -> None:
    model = fitted(recipe, metric)
    found = model.of(stored(X, metric)).bias[:, 0]
    sims = normalised.similarity(metric, Q, X) / model.unit
    if recipe.method is Method.IS:
        expected = normalised.inverted_softmax(sims, recipe.strength)
    elif recipe.method is Method.DUAL_IS:
        own = normalised.similarity(metric, X, X) / model.unit
        expected = normalised.dual_inverted_softmax(sims, own, recipe.strength, 1.0)
    elif recipe.method is Method.SINKHORN:
        expected = normalised.sinkhorn(sims, recipe.strength, recipe.passes)
    else:
        expected = normalised.nearest_mean(sims, recipe.strength, recipe.neighbours)
    assert np.abs(found / model.unit - expected).max() < 1e-4
    one_by_one = [normalised.bias_of(model, metric, x) for x in X[:20]]
    assert np.allclose(found[:20], one_by_one, atol=1e-4 * model.unit)


def test_the_unit_is_one_under_cosine_and_a_typical_product_otherwise() -> None:
    assert fitted(RECIPES[0], Metric.COSINE).unit == 1.0
    lengths = np.linalg.norm(X, axis=1).mean() * np.linalg.norm(Q, axis=1).mean()
    assert fitted(RECIPES[0], Metric.DOT).unit == pytest.approx(lengths, rel=1e-5)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_rotated_bank_is_computed_by_block(recipe: Recipe) -> None:
    """What a rotation leaves alone is kept, and the biases are those of the whole new bank."""
    old = fitted(recipe, Metric.COSINE)
    rows = stored(X, Metric.COSINE)
    bounds = block_bounds(len(Q))
    fresh = RANDOM.standard_normal((bounds[4] - bounds[3], 12)).astype(np.float32)
    new = rotated_model(old, "w", 3, fresh, [rows], step=lambda _: None)
    by_block, whole = new.rotated(rows, old.of(rows).blocks, 3), new.of(rows)
    assert np.allclose(by_block.bias, whole.bias, atol=1e-5)
    assert np.array_equal(by_block.active, whole.active)
    assert np.allclose(by_block.hub, whole.hub, atol=1e-3)
    kept = np.delete(np.arange(len(Q)), slice(bounds[3], bounds[4]))
    assert np.array_equal(new.bank.queries[kept], old.bank.queries[kept])
    assert np.array_equal(new.bank.logs[kept], old.bank.logs[kept])


def test_the_potentials_of_a_rotation_are_those_of_a_fit() -> None:
    """Replacing a block by itself changes next to nothing once the scaling has settled."""
    old = fitted(Recipe(Method.SINKHORN, 0.1, passes=40), Metric.COSINE)
    bounds = block_bounds(len(Q))
    same = rotated_model(old, "w", 5, Q[bounds[5] : bounds[6]], [stored(X, Metric.COSINE)], step=lambda _: None)
    assert np.allclose(same.bank.logs, old.bank.logs, atol=0.02)


def test_blocks_far_below_the_others_are_not_lost() -> None:
    """A block that adds nothing to the sum keeps its own: the others may be replaced one day."""
    bank = Bank.of(Q, Metric.COSINE)
    model = BiasModel("v", Metric.COSINE, Recipe(Method.IS, 1000.0), 1.0, bank, None, 1.0)
    sims = bank.similarities(stored(X, Metric.COSINE))
    sums = model.block_sums(sims)
    assert sums.shape == (300, BLOCKS)
    assert np.isfinite(sums).all()
    assert np.allclose(log_sum_exp(sums), log_sum_exp(sims * np.float32(1000.0)), rtol=1e-6)


def test_a_bank_smaller_than_its_blocks() -> None:
    model = fitted(Recipe(Method.SINKHORN, 0.05, passes=3), Metric.COSINE, Q[:5])
    found = model.of(stored(X, Metric.COSINE))
    assert np.isfinite(found.bias).all()
    sims = normalised.similarity("cosine", Q[:5], X)
    assert np.allclose(found.bias[:, 0], normalised.sinkhorn(sims, 0.05, 3), atol=1e-5)


def test_the_gate_knows_the_best_item_of_every_bank_query() -> None:
    model = fitted(RECIPES[0], Metric.COSINE)
    best = normalised.similarity("cosine", Q, X).argmax(axis=1)
    assert np.flatnonzero(model.of(stored(X, Metric.COSINE)).active[:, 0]).tolist() == sorted(set(best.tolist()))


def test_an_item_near_all_queries_has_the_highest_hub_score() -> None:
    model = fitted(RECIPES[0], Metric.COSINE)
    clean = model.of(stored(X, Metric.COSINE)).hub
    poison = model.of(stored(Q.mean(axis=0, keepdims=True), Metric.COSINE)).hub
    assert (poison > clean.max(axis=0)).all()


def test_measures_of_answers() -> None:
    """Ten queries, k 2, five items: N = 10, 6, 4, 0, 0."""
    rows = np.array([[0, 1]] * 6 + [[0, 2]] * 4)
    found = occurrence(rows, 5)
    counts = np.array([10, 6, 4, 0, 0])
    assert (found.queries, found.items, found.k, found.mean, found.max) == (10, 5, 2, 4.0, 10)
    assert found.antihubs == 0.4
    assert found.hub_share == 0.5
    assert found.robin_hood == pytest.approx(np.abs(counts - 4).sum() / 40)
    assert found.skewness == pytest.approx(((counts - 4) ** 3).mean() / counts.std() ** 3)
    assert occurrence(np.empty((0, 10), dtype=np.int64), 0).skewness == 0.0
