"""Items crafted to be near many queries, by somebody who knows the queries that will be asked and the items."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from loadtests.hubness.sets import Floats, unit

Random = np.random.Generator
_STEPS = 100
_RATE = 0.05
_SOFTNESS = 0.02


def entries(queries: Floats, items: Floats, k: int = 10) -> Floats:
    """What an inner product must exceed to be among the best ``k`` of each query ``(m,)``."""
    found = np.empty(len(queries), np.float32)
    for start in range(0, len(queries), 512):
        inner = queries[start : start + 512] @ items.T
        found[start : start + 512] = np.partition(inner, inner.shape[1] - k, axis=1)[:, -k]
    return found


def lists(crafted: Floats, queries: Floats, entry: Floats) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How many queries have each item among their best: those whose ``entry`` it exceeds."""
    return np.concatenate(
        [(crafted[n : n + 500] @ queries.T > entry).sum(axis=1) for n in range(0, max(1, len(crafted)), 500)]
    )


def _mean(size: int, asked: Floats, items: Floats, count: int, random: Random) -> Floats:
    """Of ``size`` random queries; of all of them where there are fewer."""
    size = min(size, len(asked))
    return unit(np.stack([asked[random.choice(len(asked), size, replace=False)].mean(axis=0) for _ in range(count)]))


def _near(size: int, asked: Floats, items: Floats, count: int, random: Random) -> Floats:
    """The centre of ``size`` neighbouring queries."""
    seeds = asked[random.choice(len(asked), count)]
    nearest = np.argpartition(-(seeds @ asked.T), size, axis=1)[:, :size]
    return unit(asked[nearest].mean(axis=1))


def _noisy(asked: Floats, items: Floats, count: int, random: Random) -> Floats:
    """The mean of many queries with noise half as long."""
    return unit(_mean(1_000, asked, items, count, random) + 0.5 * unit(random.normal(size=(count, asked.shape[1]))))


def _moved(share: float, asked: Floats, items: Floats, count: int, random: Random) -> Floats:
    """A real item, moved a part of the way to the mean of all queries."""
    own = unit(items[random.choice(len(items), count)])
    return unit((1 - share) * own + share * unit(asked.mean(axis=0, keepdims=True)))


def _climbed(from_item: bool, asked: Floats, items: Floats, count: int, random: Random) -> Floats:
    """By gradient steps into as many lists of ten as possible, from a real item or from a mean of fifty queries."""
    found = unit(items[random.choice(len(items), count)]) if from_item else _mean(50, asked, items, count, random)
    entry = entries(asked, unit(items))
    for _ in range(_STEPS):
        inside = 1 / (1 + np.exp(-np.clip((found @ asked.T - entry) / _SOFTNESS, -30, 30)))
        slope = (inside * (1 - inside)) @ asked
        slope -= np.einsum("ij,ij->i", slope, found)[:, None] * found
        slope /= np.linalg.norm(slope, axis=1, keepdims=True) + 1e-9
        found = unit(found + _RATE * slope)
    return found


KINDS: dict[str, Callable[[Floats, Floats, int, Random], Floats]] = {
    "mean of 10": partial(_mean, 10),
    "mean of 50": partial(_mean, 50),
    "mean of 200": partial(_mean, 200),
    "mean of 1,000": partial(_mean, 1_000),
    "mean of all": partial(_mean, 1_000_000),
    "mean and noise": _noisy,
    "10 neighbours": partial(_near, 10),
    "30 neighbours": partial(_near, 30),
    "100 neighbours": partial(_near, 100),
    "item moved 30 %": partial(_moved, 0.3),
    "item moved 50 %": partial(_moved, 0.5),
    "item moved 70 %": partial(_moved, 0.7),
    "gradient": partial(_climbed, False),
    "gradient from an item": partial(_climbed, True),
}


def crafted(kind: str, asked: Floats, items: Floats, count: int, seed: int) -> Floats:
    """``count`` items of unit length of a kind from ``KINDS``. ``asked``: unit queries; ``items``: the collection's."""
    return np.asarray(KINDS[kind](asked, items, count, np.random.default_rng(seed)), np.float32)
