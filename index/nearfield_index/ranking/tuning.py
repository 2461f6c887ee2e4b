"""Does normalisation help here, and which? Measured on held-out bank queries and on labelled pairs.

Part of the bank is fitted, the rest asks. Hubness alone cannot tell whether answers got better, so labelled pairs
decide where there are any; without them a recommendation wants strong hubs that go away, for the bank and for the
queries the collection was really asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nearfield_index.backends.space import original, queried
from nearfield_index.ranking.bias import (
    Bank,
    BiasModel,
    Method,
    Recipe,
    log_sum_exp,
    row_blocks,
    similarity_unit,
)
from nearfield_index.ranking.occurrence import Occurrence, occurrence
from nearfield_index.ranking.sinkhorn import potentials
from nearfield_index.schema import Metric

Floats = np.ndarray[Any, np.dtype[np.float32]]
Rows = np.ndarray[Any, np.dtype[np.int64]]
Step = Callable[[float], None]

DEFAULT = Recipe(Method.SINKHORN, 0.03, passes=10)
_K = 10
_HELD = 0.2
_MOST_HELD = 1_000
_MOST_TRIED = 2_500
_BLOCK = 256
_UNIT_ROWS = 4_096
_CERTAIN = 1.645
"""Standard errors by which pairs must gain: one-sided 95 %."""
_HUBS = 3.0
"""Skewness from which answers without labels are believed to suffer from hubs."""
_FALL = 0.5

GRID: dict[Method, tuple[Recipe, ...]] = {
    Method.SINKHORN: tuple(Recipe(Method.SINKHORN, tau, passes=10) for tau in (0.02, 0.03, 0.04, 0.08)),
    Method.IS: tuple(Recipe(Method.IS, beta) for beta in (10.0, 20.0, 50.0)),
    Method.DUAL_IS: tuple(Recipe(Method.DUAL_IS, beta, gallery_strength=1.0) for beta in (20.0, 50.0)),
    Method.NNN: tuple(Recipe(Method.NNN, a, neighbours=k) for a, k in ((0.25, 16), (0.5, 32), (0.75, 8), (1.0, 8))),
    Method.CSLS: (Recipe(Method.CSLS, 0.5, neighbours=8),),
}


@dataclass(frozen=True)
class Case:
    """What a fit is judged on: raw vectors of ``held`` and ``live`` queries, and of ``pairs`` with the gallery row
    that answers each. ``gallery`` in stored form."""

    gallery: Floats
    metric: Metric
    held: Floats
    live: Floats
    pairs: Floats
    answers: Rows


@dataclass(frozen=True)
class Trial:
    """One recipe (None: raw): the share of pairs found among the best 1, 5 and 10, which of them were first and their
    reciprocal ranks (up to 10), and how held-out queries spread their answers."""

    recipe: Recipe | None
    recall: tuple[float, float, float] | None
    reciprocal: Any
    first: Any
    occurrence: Occurrence
    live_skewness: float | None

    @property
    def skewness(self) -> float:
        return self.occurrence.skewness

    def to_wire(self) -> dict[str, Any]:
        found: dict[str, Any] = {"method": "raw" if self.recipe is None else str(self.recipe.method)}
        if self.recipe is not None:
            found["strength"] = self.recipe.strength
            if self.recipe.neighbours:
                found["neighbours"] = self.recipe.neighbours
        found["skewness"] = round(self.skewness, 4)
        return found | ({} if self.recall is None else recalls_to_wire(self.recall))


@dataclass(frozen=True)
class Verdict:
    """What was tried, what was chosen, whether it is recommended, and why."""

    chosen: Recipe
    recommended: bool
    reason: str
    raw: Trial
    best: Trial
    trials: tuple[Trial, ...]


def recalls_to_wire(recall: tuple[float, float, float]) -> dict[str, float]:
    """R@1, R@5 and R@10 as shares."""
    return {f"r@{k}": round(value, 4) for k, value in zip((1, 5, 10), recall, strict=True)}


def held_out(vectors: Floats, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Bank queries to fit and to ask with, both bounded; a small bank does both."""
    order = random.permutation(len(vectors))
    cut = min(_MOST_HELD, int(len(vectors) * _HELD))
    if cut < 20:
        return vectors, vectors
    return vectors[order[cut : cut + _MOST_TRIED]], vectors[order[:cut]]


def choose(case: Case, fitted: Floats, recipes: Sequence[Recipe], *, step: Step) -> Verdict:
    """Try ``recipes`` on ``fitted`` bank queries and recommend one, or none."""
    bank = Bank.of(fitted, case.metric)
    unit = similarity_unit(bank.queries, case.gallery[:_UNIT_ROWS], case.metric)
    # One product serves every recipe.
    sims = bank.similarities(case.gallery)
    raw = _trial(case, None, None)
    trials = [raw]
    for number, recipe in enumerate(recipes):
        model = BiasModel("trial", case.metric, recipe, unit, bank, None, 1.0)
        trials.append(_trial(case, recipe, _bias(case, model, sims)))
        step((number + 1) / len(recipes))
    candidates = trials[1:]
    usual = next((t for t in candidates if t.recipe == DEFAULT), candidates[0])
    if len(case.pairs):
        best = _clearly_best(candidates, usual)
        recommended, reason = _by_pairs(raw, best)
    else:
        best = usual
        recommended, reason = _by_hubness(raw, best)
    assert best.recipe is not None
    return Verdict(best.recipe, recommended, reason, raw, best, tuple(trials))


def _bias(case: Case, model: BiasModel, sims: Floats) -> Floats:
    """The bias of every item of the case, from its similarities ``(items, bank)``."""
    recipe, bank = model.recipe, model.bank
    ranges = list(row_blocks(len(sims), len(bank)))
    if recipe.method is Method.SINKHORN:
        blocks = [sims[start:stop].copy for start, stop in ranges]
        found = potentials(
            blocks, len(bank), scale=recipe.beta / model.unit, passes=recipe.passes, step=lambda done: None
        )
        model = replace(model, bank=replace(bank, logs=-found))
    sums = np.concatenate([model.block_sums(sims[start:stop]) for start, stop in ranges])
    gallery = None
    if recipe.method is Method.DUAL_IS:
        others = Bank.of(np.array(original(case.gallery[:_UNIT_ROWS], case.metric)), case.metric)
        scale = np.float32(recipe.gallery_strength / model.unit)
        gallery = np.concatenate([log_sum_exp(others.similarities(case.gallery[a:b]) * scale) for a, b in ranges])
    return model.bias_of(sums, gallery)[:, 0]


def _clearly_best(candidates: Sequence[Trial], usual: Trial) -> Trial:
    """The best by mean reciprocal rank; the usual one unless that is better by more than its error, which the
    winner of many always seems to be."""
    best = max(candidates, key=lambda t: float(t.reciprocal.mean()))
    change = best.reciprocal - usual.reciprocal
    return best if float(change.mean()) > float(change.std() / np.sqrt(len(change))) else usual


def _by_pairs(raw: Trial, best: Trial) -> tuple[bool, str]:
    change = best.first.astype(np.float64) - raw.first
    gain, error = float(change.mean()), float(change.std() / np.sqrt(len(change)))
    if gain > 0 and gain >= _CERTAIN * error:
        return True, f"R@1 of {len(change)} pairs rises by {gain:.4f}"
    return False, f"R@1 of {len(change)} pairs changes by {gain:+.4f}, within its error of {error:.4f} or for the worse"


def _by_hubness(raw: Trial, best: Trial) -> tuple[bool, str]:
    if raw.skewness < _HUBS:
        return (
            False,
            f"few hubs: skewness {raw.skewness:.2f} of held-out bank queries, under {_HUBS:g}; no pairs to judge",
        )
    if best.skewness > _FALL * raw.skewness:
        return False, f"hubs stay: skewness {raw.skewness:.2f} falls to {best.skewness:.2f} only"
    if raw.live_skewness is not None and best.live_skewness is not None:
        if raw.live_skewness < _HUBS or best.live_skewness > _FALL * raw.live_skewness:
            return False, (
                f"the bank is not what the collection is asked: skewness of live queries {raw.live_skewness:.2f} "
                f"becomes {best.live_skewness:.2f}"
            )
    return True, f"skewness of held-out bank queries falls from {raw.skewness:.2f} to {best.skewness:.2f}"


def _trial(case: Case, recipe: Recipe | None, bias: Floats | None) -> Trial:
    recall = None
    first: Any = None
    reciprocal: Any = None
    if len(case.pairs):
        ranks = _ranks(case, bias)
        first = ranks < 1
        recall = (float(first.mean()), float((ranks < 5).mean()), float((ranks < 10).mean()))
        reciprocal = np.where(ranks < _K, 1.0 / (ranks + 1.0), 0.0)
    live = _occurrence(case, case.live, bias).skewness if len(case.live) else None
    return Trial(recipe, recall, reciprocal, first, _occurrence(case, case.held, bias), live)


def _occurrence(case: Case, vectors: Floats, bias: Floats | None) -> Occurrence:
    return occurrence(answers(case.gallery, case.metric, vectors, bias), len(case.gallery))


def answers(gallery: Floats, metric: Metric, vectors: Floats, bias: Floats | None, k: int = _K) -> Rows:
    """The best k gallery rows of raw queries, ``(n, k)`` in no order, less ``bias``."""
    asked = queried(vectors, metric)
    k = min(k, len(gallery))
    found = np.empty((len(asked), k), dtype=np.int64)
    for start in range(0, len(asked), _BLOCK):
        inner = asked[start : start + _BLOCK] @ gallery.T
        if bias is not None:
            inner -= bias
        found[start : start + _BLOCK] = np.argpartition(-inner, k - 1, axis=1)[:, :k]
    return found


def _ranks(case: Case, bias: Floats | None) -> Rows:
    """How many items stand before the right one, for each pair."""
    asked = queried(case.pairs, case.metric)
    ranks = np.empty(len(asked), dtype=np.int64)
    for start in range(0, len(asked), _BLOCK):
        inner = asked[start : start + _BLOCK] @ case.gallery.T
        if bias is not None:
            inner -= bias
        right = np.take_along_axis(inner, case.answers[start : start + _BLOCK, None], axis=1)
        ranks[start : start + _BLOCK] = (inner > right).sum(axis=1)
    return ranks
