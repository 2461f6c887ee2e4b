"""One search under a scorer: which items to ask about next, given the answers so far. No input or output here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nearfield_index.ranking.pool import Block, Floats, Pool
from nearfield_index.ranking.surrogate import fit

Doubles = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

Probe = Callable[[Floats | None, Floats | None, float], list[Block]]
"""Items that are not in the pool yet and lie near a direction of stored vectors, one of latents, and the query's own
vector times a number."""

_RANKED = 2_048


class Rounds:
    """The state of one query. Alternately :meth:`choose` and :meth:`tell` until the budget or the items run out."""

    def __init__(
        self,
        pool: Pool,
        *,
        budget: int,
        rounds: int,
        prior: bool = True,
        seeds: Ints | None = None,
        probe: Probe | None = None,
    ) -> None:
        """``seeds`` are places of the items to ask about first, best first; else those of the best base score."""
        self.pool = pool
        self._left = budget
        self._rounds = rounds
        self._prior = prior
        self._seeds = seeds
        self._probe = probe
        self._order: Ints | None = None
        self._values: Doubles = np.empty(0)
        self._gone = np.zeros(pool.count, np.bool_)
        self._places: list[Ints] = []
        self._scores: list[Doubles] = []
        self.done = 0
        """Rounds told."""
        self.ridges: list[float] = []

    @property
    def share(self) -> int:
        """How many items the coming round may ask about; 0 when there is none."""
        if self.done >= self._rounds or self._left < 1:
            return 0
        return -(-self._left // (self._rounds - self.done))

    @property
    def unspent(self) -> int:
        """What is left of the budget."""
        return self._left

    @property
    def scored(self) -> tuple[Ints, Doubles]:
        """Places of the items scored so far and their scores."""
        return np.concatenate([np.empty(0, np.int64), *self._places]), np.concatenate([np.empty(0), *self._scores])

    @property
    def open(self) -> int:
        """Items not chosen yet."""
        return int(len(self._gone) - self._gone.sum())

    def choose(self, count: int) -> Ints:
        """Places of the ``count`` most promising items (fewer where there are no more), never one twice."""
        if self._order is None:
            self._values, self._order = self._ranked()
        order = self._order[~self._gone[self._order]][:count]
        if len(order) < count and self.open > len(order):
            self._order = _best(self._values, len(self._values))
            order = self._order[~self._gone[self._order]][:count]
        self._gone[order] = True
        return order

    def tell(self, places: Ints, scores: Doubles, spent: int) -> None:
        """Take the answers to a round (NaN: none), which used up ``spent`` of the budget."""
        known = np.isfinite(scores)
        self._places.append(places[known])
        self._scores.append(scores[known])
        self._left -= spent
        self._order = None
        self.done += 1

    def _ranked(self) -> tuple[Doubles, Ints]:
        """What each item is expected to score, and the best places, best first."""
        places, scores = self.scored
        values = self._estimates(places, scores) if len(places) else self.pool.base()
        best = _best(values, _RANKED + len(places))
        if not self._places and self._seeds is not None:
            best = np.concatenate([self._seeds, best[~np.isin(best, self._seeds)]])
        return values, best

    def _estimates(self, places: Ints, scores: Doubles) -> Doubles:
        seen = self.pool.features(places)
        unit = float(np.abs(scores).max()) or 1.0  # only the order matters; products are in float32
        found = fit(seen, self._trend(places), (scores - self.pool.means()[places]) / unit)
        self.ridges.append(found.ridge)
        weights = seen.T @ found.alpha
        if self._probe is not None:
            self._grow(weights, float(found.beta[-1]) if self._prior else 0.0)
        trend = self._trend(None) @ found.beta
        return np.asarray(self.pool.means() / unit + trend + self.pool.products(weights))

    def _grow(self, weights: Doubles, slope: float) -> None:
        assert self._probe is not None
        stored, latent = self.pool.direction(weights)
        for block in self._probe(stored, latent, slope):
            self.pool.add(block)
        self._gone = np.concatenate([self._gone, np.zeros(self.pool.count - len(self._gone), np.bool_)])

    def _trend(self, places: Ints | None) -> Doubles:
        """Ones, and with the prior the base scores, which the fit turns into a line."""
        base = self.pool.base() if places is None else self.pool.base()[places]
        columns = [np.ones(len(base)), base - self.pool.base().mean()] if self._prior else [np.ones(len(base))]
        return np.stack(columns, axis=1)


def _best(values: Doubles, count: int) -> Ints:
    """Places of the largest values, largest first."""
    if count >= len(values):
        return np.argsort(-values, kind="stable")
    found = np.argpartition(-values, count)[:count]
    return found[np.argsort(-values[found], kind="stable")]
