"""From a bank and a gallery to a bias model: unit, potentials, gate and hub thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from nearfield_index.backends.exact import search_matrix
from nearfield_index.backends.space import original
from nearfield_index.ranking.bias import (
    HUB_K,
    Bank,
    BiasModel,
    Method,
    Recipe,
    block_bounds,
    log_sum_exp,
    row_blocks,
    similarity_unit,
)
from nearfield_index.ranking.sinkhorn import potentials
from nearfield_index.ranking.target import Target, target_of
from nearfield_index.schema import Metric

Floats = np.ndarray[Any, np.dtype[np.float32]]
Step = Callable[[float], None]

_POTENTIAL_ROWS = 32_768
"""Items that potentials are scaled against; of a larger gallery a sample, which shifts all of them alike."""
_UNIT_ROWS = 4_096
_ROTATION_ROWS = 8_192
_TARGET_ROWS = 8_192
_ROTATION_QUERIES = 256
_SEED = 20_261_125


def fit_model(
    version: str,
    recipe: Recipe,
    vectors: Floats,
    parts: Sequence[Floats],
    metric: Metric,
    *,
    gallery_bank: Floats | None = None,
    step: Step,
) -> BiasModel:
    """Fit ``recipe`` on raw bank queries ``(m, dim)`` against the gallery ``parts`` (matrices in stored form).

    ``gallery_bank``: stored rows that stand for queries, for ``dual_is``. Raises what ``step`` raises, to stop.
    """
    sample = _sampled(parts, _UNIT_ROWS)
    bank = Bank.of(vectors, metric)
    unit = similarity_unit(bank.queries, sample, metric)
    bank, spread = measured(bank, parts, step=lambda done: step(0.2 * done))
    other = None
    if recipe.method is Method.DUAL_IS:
        rows = sample if gallery_bank is None else gallery_bank
        other, _ = measured(Bank.of(np.array(original(rows, metric)), metric), parts, step=lambda done: step(0.2))
    if recipe.method is Method.SINKHORN:
        blocks = _products(bank, thinned(parts, _POTENTIAL_ROWS))
        scale, tell = recipe.beta / unit, lambda done: step(0.2 + 0.8 * done)
        bank = replace(bank, logs=-potentials(blocks, len(bank), scale=scale, passes=recipe.passes, step=tell))
    target = _target(bank, parts, metric)
    step(1.0)
    return BiasModel(version, metric, recipe, unit, bank, other, spread, target)


def rotated_model(
    old: BiasModel, version: str, number: int, fresh: Floats, parts: Sequence[Floats], *, step: Step
) -> BiasModel:
    """``old`` with block ``number`` of its bank replaced by ``fresh`` raw queries (as many as the block has).

    The others keep their potentials. Those of the new ones follow from the biases of a sample of the gallery, less
    what the same computation adds to the old ones: the gallery may have grown since.
    """
    bounds = block_bounds(len(old.bank))
    here = slice(bounds[number], bounds[number + 1])
    block, _ = measured(Bank.of(fresh, old.metric), parts, step=lambda done: step(0.5 * done))
    if old.recipe.method is Method.SINKHORN:
        sample = _sampled(parts, _ROTATION_ROWS)
        scale = old.recipe.beta / old.unit
        heights = old.of(sample).bias[:, 0] * np.float32(scale)
        others = np.delete(np.arange(len(old.bank)), here)[:: max(1, len(old.bank) // _ROTATION_QUERIES)]
        kept = replace(old.bank, queries=old.bank.queries[others], shift=old.bank.shift[others])
        drift = float(np.mean(_answering(kept, sample, heights, scale) + old.bank.logs[others])) if len(others) else 0.0
        block = replace(block, logs=-(_answering(block, sample, heights, scale) - np.float32(drift)))
    changed = {}
    for part in ("queries", "shift", "logs", "top", "entry"):
        whole = np.array(getattr(old.bank, part))
        whole[here] = getattr(block, part)
        changed[part] = whole
    bank = Bank(**changed)
    target = _target(bank, parts, old.metric)
    step(1.0)
    return replace(old, version=version, bank=bank, target=target)


def _target(bank: Bank, parts: Sequence[Floats], metric: Metric) -> Target:
    # A third of the items: on those that it was estimated from, a direction looks better than it is.
    rows = _sampled(parts, min(_TARGET_ROWS, -(-sum(map(len, parts)) // 3)))
    return target_of(original(bank.queries, metric), original(rows, metric), metric)


def _answering(bank: Bank, rows: Floats, heights: Floats, scale: float) -> Floats:
    """``LSE`` over items of ``K - g``, for each query of a bank."""
    heat = bank.similarities(rows).T * np.float32(scale) - heights
    return log_sum_exp(heat)


def measured(bank: Bank, parts: Sequence[Floats], *, step: Step) -> tuple[Bank, float]:
    """The bank with each query's best similarity in the gallery and what it takes to enter its best ten; and the
    mean distance between the two."""
    best = np.full((len(bank), HUB_K + 1), -np.inf, np.float32)
    rows_done, rows_all = 0, max(1, sum(map(len, parts)))
    for part in parts:
        found, _ = search_matrix(part, bank.queries, HUB_K + 1)
        both = np.concatenate([best, found + bank.shift[:, None]], axis=1)
        best = -np.sort(-both, axis=1)[:, : HUB_K + 1]
        rows_done += len(part)
        step(rows_done / rows_all)
    entry = best[:, -1]
    gaps = (best[:, 0] - entry)[np.isfinite(entry)]
    spread = float(gaps.mean(dtype=np.float64)) if len(gaps) else 1.0
    # A hair's breadth: the same product may come out a little smaller in a block of another shape.
    top = np.asarray(best[:, 0] - np.float32(1e-6) * np.abs(best[:, 0]), dtype=np.float32)
    never = np.where(np.isfinite(entry), entry, np.inf).astype(np.float32)
    return replace(bank, top=top, entry=never), spread or 1.0


def _products(bank: Bank, parts: Sequence[Floats]) -> list[Callable[[], Floats]]:
    rows = [part[start:stop] for part in parts for start, stop in row_blocks(len(part), len(bank))]
    return [partial(bank.similarities, block) for block in rows]


def _sampled(parts: Sequence[Floats], most: int) -> Floats:
    thin = thinned(parts, most)
    return np.concatenate([np.asarray(part) for part in thin]) if thin else np.empty((0, 0), np.float32)


def thinned(parts: Sequence[Floats], most: int) -> Sequence[Floats]:
    """The parts themselves where they are small, else a seeded uniform sample of at most ``most`` rows."""
    total = sum(map(len, parts))
    if total <= most:
        return parts
    chosen = np.sort(np.random.default_rng(_SEED).choice(total, most, replace=False))
    thin, first = [], 0
    for part in parts:
        here = chosen[(chosen >= first) & (chosen < first + len(part))] - first
        thin.append(np.asarray(part[here]))
        first += len(part)
    return thin
