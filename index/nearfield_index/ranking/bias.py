"""One scalar a gallery item that hubness normalisation subtracts from its similarity to any query.

With ``s(q, x)`` the similarity and ``Q`` a bank of queries, all of these rank by ``s(q, x) - bias(x)``:

- ``is``, inverted softmax (QB-Norm, arXiv 2112.12777): ``LSE_j(b s(q_j, x)) / b``;
- ``dual_is`` (DBNorm, arXiv 2310.11612): ``(LSE_G(b1) + LSE_Q(b2)) / (b1 + b2)`` with a gallery bank ``G`` beside;
- ``nnn`` (arXiv 2410.24114): ``a`` times the mean of the k largest ``s(q_j, x)``; ``csls`` is nnn with ``a = 0.5``;
- ``sinkhorn``: inverted softmax in which every bank query has a weight of its own (``ranking.sinkhorn``).

A bias needs the bank and one item, no other item: a new point costs one product of bank and vector. Similarities are
measured in ``unit``, 1 under cosine, so that one scale of strengths fits every metric. Log-sum-exp is kept by blocks
of the bank, so that a block can be replaced without the others: old terms are never subtracted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from nearfield_index.backends.gpu.device import for_builds
from nearfield_index.backends.gpu.kernel import products
from nearfield_index.backends.space import ItemBiases, original, queried
from nearfield_index.ranking.target import Target
from nearfield_index.schema import Metric
from nearfield_index.threads import BACKGROUND, in_threads

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

BLOCKS = 16
HUB_K = 10
"""A hub is an item among the best ten of many bank queries."""

_NEARLY = 0.25
"""By how much, in units of spread, an item may miss the best ten and still count a little."""
_MANY_BLOCKS = 16
_VALUES = 1 << 20  # similarities worked on at a time: they should stay in the cache
_DEVICE_VALUES = 1 << 24  # where a device multiplies: it wants more at a time


class Method(StrEnum):
    """The normalisations; ``auto`` of a request chooses one of them."""

    IS = "is"
    DUAL_IS = "dual_is"
    NNN = "nnn"
    CSLS = "csls"
    SINKHORN = "sinkhorn"


@dataclass(frozen=True)
class Recipe:
    """A method with its numbers.

    ``strength``: inverse temperature of ``is`` and ``dual_is`` (of the query bank), alpha of ``nnn`` and ``csls``,
    temperature of ``sinkhorn``, all in units of the similarity. ``neighbours``: k of nnn and csls.
    ``gallery_strength``: inverse temperature of the gallery bank. ``passes``: Sinkhorn scalings.
    """

    method: Method
    strength: float
    neighbours: int = 0
    gallery_strength: float = 0.0
    passes: int = 0

    @property
    def beta(self) -> float:
        """The inverse temperature of the query bank."""
        return 1.0 / self.strength if self.method is Method.SINKHORN else self.strength

    def __str__(self) -> str:
        extra = f", k {self.neighbours}" if self.neighbours else ""
        extra += f", gallery {self.gallery_strength:g}" if self.gallery_strength else ""
        return f"{self.method} {self.strength:g}{extra}"


@dataclass(frozen=True)
class Bank:
    """Queries (or gallery items that stand for queries) in search form ``(m, columns)``.

    ``shift`` ``(m,)`` turns an inner product into a similarity (l2: ``-|q - x|^2 / 2``); ``logs`` ``(m,)`` are log
    weights. ``top`` is each one's best similarity in the gallery when the fit was made, ``entry`` what an item must
    exceed to be among its best ten beside the others.
    """

    queries: Floats
    shift: Floats
    logs: Floats
    top: Floats
    entry: Floats

    @classmethod
    def of(cls, vectors: Floats, metric: Metric) -> Bank:
        """A bank of raw vectors, not measured against a gallery yet."""
        asked = queried(vectors, metric)
        shift = np.zeros(len(asked), np.float32)
        if metric is Metric.L2:
            own = original(asked, metric)
            shift = (np.einsum("ij,ij->i", own, own, dtype=np.float64) * -0.5).astype(np.float32)
        never = np.full(len(asked), np.inf, np.float32)
        return cls(asked, shift, np.zeros(len(asked), np.float32), never, never)

    def __len__(self) -> int:
        return len(self.queries)

    def similarities(self, rows: Floats) -> Floats:
        """``(n, m)`` similarities of items (stored rows) and bank."""
        found = products(rows, self.queries)
        if self.shift.any():
            found += self.shift
        return found


@dataclass(frozen=True)
class BiasModel:
    """All that a bias is computed from; immutable, identified by ``version``."""

    version: str
    metric: Metric
    recipe: Recipe
    unit: float
    bank: Bank
    gallery: Bank | None
    spread: float
    """The mean distance from a bank query's best similarity to the eleventh: the unit of reach."""
    target: Target | None = None
    """Where an item would be that is made for all queries; None in a model that only biases are asked of."""

    @property
    def variants(self) -> int:
        """Biases an item has: the whole one, and with two banks also that of each bank alone."""
        return 1 if self.gallery is None else 3

    def of(self, rows: Floats) -> ItemBiases:
        """Biases, gate flags and hub measures of items in stored form.

        The hub measures are an item's reach (by how much it exceeds a little less than what it takes to enter the
        best ten, summed over the bank, in units of ``spread``), and its lean and centrality (``ranking.target``).
        """
        return self._combined(rows, lambda start, stop, sims: self.block_sums(sims))

    def block_sums(self, sims: Floats, only: int | None = None) -> Floats:
        """The part of a bias that each block of the bank adds ``(n, blocks)``, of similarities ``(n, m)``.

        Log-sum-exps, or for nnn and csls the finished bias in one column. ``only`` computes one block's column.
        """
        recipe = self.recipe
        if recipe.method in (Method.NNN, Method.CSLS):
            k = min(recipe.neighbours, sims.shape[1])
            best = np.partition(sims, sims.shape[1] - k, axis=1)[:, -k:]
            return np.asarray(recipe.strength * best.mean(axis=1, keepdims=True), dtype=np.float32)
        scale = np.float32(recipe.beta / self.unit)
        bounds = block_bounds(len(self.bank))
        if only is not None:
            here = slice(bounds[only], bounds[only + 1])
            return log_sum_exp(sims[:, here] * scale + self.bank.logs[here])[:, None]
        heat = sims * scale
        heat += self.bank.logs
        return _block_log_sum_exp(heat, bounds)

    def _combined(self, rows: Floats, blocks: Callable[[int, int, Floats], Floats]) -> ItemBiases:
        n = len(rows)
        out = ItemBiases(
            np.empty((n, self.variants), np.float32),
            np.zeros((n, 1 if self.gallery is None else 2), np.bool_),
            np.zeros((n, 3), np.float32),
            np.empty((n, 1 if self.recipe.neighbours else BLOCKS), np.float32),
        )
        nearly = self.bank.entry - np.float32(_NEARLY * self.spread)

        def fill(part: tuple[int, int]) -> None:
            start, stop = part
            sims = self.bank.similarities(rows[start:stop])
            out.blocks[start:stop] = blocks(start, stop, sims)
            out.active[start:stop, 0] = (sims >= self.bank.top).any(axis=1)
            sims -= nearly
            np.maximum(sims, 0.0, out=sims)
            out.hub[start:stop, 0] = sims.sum(axis=1) / self.spread
            if self.target is not None:
                out.hub[start:stop, 1:] = self.target.measures(original(rows[start:stop], self.metric))

        parts = list(row_blocks(n, len(self.bank)))
        # A few new points are not worth a thread.
        for _ in in_threads(fill, parts, BACKGROUND if len(parts) >= _MANY_BLOCKS else 1):
            pass
        gallery = None if self.gallery is None else self._gallery_sums(rows, out.active)
        out.bias[:] = self.bias_of(out.blocks, gallery)
        return out

    def _gallery_sums(self, rows: Floats, active: Flags) -> Floats:
        assert self.gallery is not None
        sums = np.empty(len(rows), np.float32)
        scale = np.float32(self.recipe.gallery_strength / self.unit)
        for start, stop in row_blocks(len(rows), len(self.gallery)):
            sims = self.gallery.similarities(rows[start:stop])
            sums[start:stop] = log_sum_exp(sims * scale)
            active[start:stop, 1] = (sims >= self.gallery.top).any(axis=1)
        return sums

    def bias_of(self, blocks: Floats, gallery: Floats | None) -> Floats:
        """The biases ``(n, variants)`` of block sums: both banks, the query bank alone, the gallery bank alone."""
        if self.recipe.method in (Method.NNN, Method.CSLS):
            return blocks[:, :1]
        beta = self.recipe.beta / self.unit
        whole = log_sum_exp(blocks)
        if gallery is None:
            return (whole / beta)[:, None]
        other = self.recipe.gallery_strength / self.unit
        both = (whole + gallery) / (beta + other)
        return np.stack([both, whole / beta, gallery / other], axis=1).astype(np.float32)

    def rotated(self, rows: Floats, blocks: Floats, number: int) -> ItemBiases:
        """As :meth:`of`, but only block ``number`` of the bank is new: the other columns of ``blocks`` stand."""

        def mixed(start: int, stop: int, sims: Floats) -> Floats:
            kept = np.array(blocks[start:stop])
            if self.recipe.neighbours:
                return self.block_sums(sims)
            kept[:, number] = self.block_sums(sims, only=number)[:, 0]
            return kept

        return self._combined(rows, mixed)


def row_blocks(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose products with a bank of ``width`` stay small."""
    values = _VALUES if for_builds() is None else _DEVICE_VALUES
    step = max(32, values // max(1, width))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def block_bounds(size: int) -> list[int]:
    """Where the blocks of a bank of ``size`` begin and end."""
    return [round(size * number / BLOCKS) for number in range(BLOCKS + 1)]


def log_sum_exp(values: Floats) -> Floats:
    """Of each row ``(n, m)``; an empty row gives -inf. Overwrites nothing."""
    if values.shape[1] == 0:
        return np.full(len(values), -np.inf, np.float32)
    most = values.max(axis=1)
    safe = np.where(np.isfinite(most), most, np.float32(0))
    spread = values - safe[:, None]
    np.exp(spread, out=spread)
    with np.errstate(divide="ignore"):
        return np.asarray(safe + np.log(spread.sum(axis=1)), dtype=np.float32)


def _block_log_sum_exp(heat: Floats, bounds: list[int]) -> Floats:
    """Log-sum-exp of each block of columns ``(n, blocks)``; every block has its own maximum, or a far one would be
    lost for good. ``heat`` is overwritten."""
    starts = [start for start, stop in itertools.pairwise(bounds) if stop > start]
    lengths = [stop - start for start, stop in itertools.pairwise(bounds) if stop > start]
    most = np.maximum.reduceat(heat, starts, axis=1)
    for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        heat[:, start : start + length] -= most[:, number, None]
    np.exp(heat, out=heat)
    found = np.full((len(heat), BLOCKS), -np.inf, np.float32)
    filled = [number for number, (start, stop) in enumerate(itertools.pairwise(bounds)) if stop > start]
    found[:, filled] = most + np.log(np.add.reduceat(heat, starts, axis=1))
    return found


def similarity_unit(bank: Floats, rows: Floats, metric: Metric) -> float:
    """What one unit of similarity is: 1 under cosine, else the scale of a product of typical vectors.

    ``bank`` in search form, ``rows`` a sample of items in stored form. dot: mean lengths; l2: mean distances from
    the items' centre.
    """
    if metric is Metric.COSINE:
        return 1.0
    asked, items = original(bank, metric).astype(np.float64), original(rows, metric).astype(np.float64)
    if metric is Metric.L2:
        centre = items.mean(axis=0) if len(items) else 0.0
        asked, items = asked - centre, items - centre
    lengths = [np.sqrt(np.einsum("ij,ij->i", side, side)).mean() if len(side) else 0.0 for side in (asked, items)]
    found = float(lengths[0] * lengths[1])
    return found if found > 0 else 1.0
