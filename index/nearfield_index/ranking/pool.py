"""The items a search under a scorer may choose from, with what is known of each, in blocks as they are found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Block:
    """Items of one part of a view: their rows and row keys, stored vectors ``(m, d)`` (of length 1 under cosine),
    base scores ``(m,)``, and with a reranker latent vectors ``(m, r)`` and mean scores ``(m,)``."""

    part: int
    rows: Ints
    pks: Ints
    vectors: Floats
    base: Doubles
    latents: Floats | None = None
    means: Doubles | None = None

    def __len__(self) -> int:
        return len(self.pks)


@dataclass(frozen=True)
class Scales:
    """Factors that bring both kinds of vectors to a root mean square length of 1; 0 leaves a kind out."""

    vectors: float
    latents: float


class Pool:
    """Blocks seen as one row of items; places are stable, later blocks come behind."""

    def __init__(self, blocks: list[Block], scales: Scales) -> None:
        self.scales = scales
        self._blocks: list[Block] = []
        self._starts: list[int] = []
        self.count = 0
        for block in blocks:
            self.add(block)

    def add(self, block: Block) -> None:
        if len(block):
            self._starts.append(self.count)
            self._blocks.append(block)
            self.count += len(block)

    @property
    def blocks(self) -> list[Block]:
        return self._blocks

    def base(self) -> Doubles:
        return self._joined([block.base for block in self._blocks])

    def means(self) -> Doubles:
        """Mean scores of the items, zeros without a reranker."""
        return self._joined([np.zeros(len(b)) if b.means is None else b.means for b in self._blocks])

    def pks(self) -> Ints:
        return np.concatenate([np.empty(0, np.int64), *(block.pks for block in self._blocks)])

    def _joined(self, arrays: list[Doubles]) -> Doubles:
        return arrays[0] if len(arrays) == 1 else np.concatenate([np.empty(0), *arrays])

    def where(self, places: Ints) -> tuple[Ints, Ints, Ints]:
        """Parts, rows and row keys of items."""
        found = [np.empty(len(places), np.int64) for _ in range(3)]
        for block, at, local in self.located(places):
            found[0][at], found[1][at], found[2][at] = block.part, block.rows[local], block.pks[local]
        return found[0], found[1], found[2]

    def features(self, places: Ints) -> Doubles:
        """Scaled vectors and latents of items side by side, ``(n, d + r)``."""
        scales, first = self.scales, self._blocks[0]
        columns = first.vectors.shape[1] if scales.vectors else 0
        rank = first.latents.shape[1] if scales.latents and first.latents is not None else 0
        out = np.empty((len(places), columns + rank))
        for block, at, local in self.located(places):
            if columns:
                out[at, :columns] = block.vectors[local] * scales.vectors
            if rank and block.latents is not None:
                out[at, columns:] = block.latents[local] * scales.latents
        return out

    def direction(self, weights: Doubles) -> tuple[Floats | None, Floats | None]:
        """Weights of :meth:`features` as one vector for stored vectors and one for latents."""
        scales = self.scales
        columns = self._blocks[0].vectors.shape[1] if scales.vectors else 0
        stored = (weights[:columns] * scales.vectors).astype(np.float32) if columns else None
        latent = (weights[columns:] * scales.latents).astype(np.float32) if scales.latents else None
        return stored, latent

    def products(self, weights: Doubles) -> Doubles:
        """``features @ weights`` of every item, in one pass over each block."""
        stored, latent = self.direction(weights)
        found = []
        for block in self._blocks:
            value = np.zeros(len(block), np.float32)
            if stored is not None:
                value = block.vectors @ stored
            if latent is not None and block.latents is not None:
                value = value + block.latents @ latent
            found.append(value)
        return np.concatenate(found).astype(np.float64)

    def located(self, places: Ints) -> list[tuple[Block, Ints, Ints]]:
        """Blocks with the positions in ``places`` that lie in each, and their rows there."""
        number = np.searchsorted(self._starts, places, side="right") - 1
        return [
            (self._blocks[n], at, places[at] - self._starts[n])
            for n in np.unique(number).tolist()
            if len(at := np.flatnonzero(number == n))
        ]
