"""Potentials of a query bank: Sinkhorn scaling of bank and gallery, in the log domain and in blocks of items.

With ``K = s / tau``, potentials ``f`` of the bank and ``g`` of the gallery alternate: ``f = LSE_gallery(K - g)``,
``g = LSE_bank(K - f)``. The bias of an item is ``tau g``, so that only ``f`` has to be kept: a new item's ``g`` follows
from it. (Normalisation of both banks as an optimal transport: arXiv 2508.02538; the gallery is the gallery itself.)

After the first scaling ``exp(K - f - g)`` is a matrix of moderate numbers, and another scaling is two products of it
with a vector. What of it finds room is kept: the similarities behind it cost twenty times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nearfield_index.threads import in_threads

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]

_KEPT = 384 * 1024 * 1024
_LOWEST = np.float32(-80.0)
"""Of an exponent beside the item's largest: numbers below single precision take processors a hundred times as long."""
_MOVED = 30.0
"""Potentials that moved farther than this make the matrix anew: what is cut off at the lowest must not count."""


def potentials(
    similarities: Sequence[Callable[[], Floats]], size: int, *, scale: float, passes: int, step: Callable[[float], None]
) -> Floats:
    """The potentials ``f`` ``(size,)`` of a bank of ``size`` queries after ``passes`` scalings.

    Each of ``similarities`` computes those of one block of items, a fresh array ``(items, size)``, and may be called
    more than once and from several threads. ``scale`` is ``1 / tau`` by unit of similarity. ``step`` is told the share
    done and may raise to stop.
    """
    scaling = _Scaling(similarities, np.float32(scale))
    found = np.zeros(size, np.float32)
    for number in range(passes):
        told = _Told(step, number, passes, len(similarities))
        if number == 0:
            most, sums = _first(scaling, size, told)
        else:
            most, sums = found, scaling.sums(found, told)
        with np.errstate(divide="ignore"):
            logs = np.log(sums)
        # A query that no item answers to keeps its potential.
        found = np.where(sums > 0, most + logs, found).astype(np.float32)
    return found


class _Told:
    """Says after each block of a pass how much of all passes is done."""

    def __init__(self, step: Callable[[float], None], number: int, passes: int, blocks: int) -> None:
        self._step, self._done, self._total = step, number * blocks, max(1, passes * blocks)

    def one(self) -> None:
        self._done += 1
        self._step(self._done / self._total)


class _Scaling:
    """The matrix ``exp(K - f - g)`` of a gallery in blocks, for an ``f`` that it was made with."""

    def __init__(self, similarities: Sequence[Callable[[], Floats]], scale: np.float32) -> None:
        self._similarities = similarities
        self._scale = scale
        self._made_with: Floats | None = None
        self._kept: dict[int, Floats] = {}

    @property
    def blocks(self) -> range:
        return range(len(self._similarities))

    def heat(self, number: int) -> Floats:
        """``K`` of a block."""
        heat = self._similarities[number]()
        heat *= self._scale
        return heat

    def sums(self, found: Floats, told: _Told) -> Doubles:
        """For each query the sum over items of ``exp(K - f - g)`` with ``f = found`` and the ``g`` that follows."""
        if self._made_with is None or float(np.abs(found - self._made_with).max(initial=0.0)) > _MOVED:
            self._made_with, self._kept = found, {}
        moved = np.exp(self._made_with - found)
        sums: Doubles = np.zeros(len(found))
        for part in in_threads(lambda number: self._block_sums(number, moved), self.blocks):
            sums += part
            told.one()
        sums *= moved
        return sums

    def _block_sums(self, number: int, moved: Floats) -> Floats:
        matrix = self._kept.get(number)
        if matrix is None:
            assert self._made_with is not None
            matrix = self.heat(number)
            matrix -= self._made_with
            matrix -= matrix.max(axis=1)[:, None]
            np.maximum(matrix, _LOWEST, out=matrix)
            np.exp(matrix, out=matrix)
            if (len(self._kept) + 1) * matrix.nbytes <= _KEPT:
                self._kept[number] = matrix
        return np.asarray((1.0 / (matrix @ moved)) @ matrix, np.float32)


def _first(scaling: _Scaling, size: int, told: _Told) -> tuple[Floats, Doubles]:
    """Plain log-sums, as a maximum over items and a sum relative to it: a running maximum keeps them in range."""
    most = np.full(size, -np.inf, np.float32)
    sums: Doubles = np.zeros(size)

    def block(number: int) -> tuple[Floats, Floats]:
        heat = scaling.heat(number)
        own = heat.max(axis=0)
        heat -= own
        np.maximum(heat, _LOWEST, out=heat)
        np.exp(heat, out=heat)
        return own, heat.sum(axis=0)

    for own, part in in_threads(block, scaling.blocks):
        higher = np.maximum(most, own)
        sums *= np.exp(most - higher, dtype=np.float64)
        sums += part * np.exp(own - higher, dtype=np.float64)
        most = higher
        told.one()
    return most, sums
