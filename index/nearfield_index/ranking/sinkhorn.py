"""Potentials of a query bank: Sinkhorn scaling of bank and gallery, in the log domain and in blocks of items.

With ``K = s / tau``, potentials ``f`` of the bank and ``g`` of the gallery alternate: ``f = LSE_gallery(K - g)``,
``g = LSE_bank(K - f)``. The bias of an item is ``tau g``, so that only ``f`` has to be kept: a new item's ``g`` follows
from it. (Normalisation of both banks as an optimal transport: arXiv 2508.02538; the gallery is the gallery itself.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]


def potentials(
    similarities: Sequence[Callable[[], Floats]], size: int, *, scale: float, passes: int, step: Callable[[float], None]
) -> Floats:
    """The potentials ``f`` ``(size,)`` of a bank of ``size`` queries after ``passes`` scalings.

    Each of ``similarities`` computes those of one block of items, a fresh array ``(items, size)``. ``scale`` is
    ``1 / tau`` by unit of similarity. Memory is one block; ``step`` is told the share done and may raise to stop.
    """
    done, total = 0, max(1, len(similarities) * passes)
    most = np.full(size, -np.inf, np.float32)
    sums: Doubles = np.zeros(size)
    found = np.zeros(size, np.float32)
    for number in range(passes):
        sums[:] = 0.0
        for block in similarities:
            heat = block()
            heat *= np.float32(scale)
            if number == 0:
                # The first potentials are plain log-sums; the running maximum keeps them in range.
                higher = np.maximum(most, heat.max(axis=0))
                sums *= np.exp(most - higher, dtype=np.float64)
                most = higher
                heat -= most
                np.exp(heat, out=heat)
                sums += heat.sum(axis=0, dtype=np.float64)
            else:
                # What is added to f: LSE over items of K - f - g, with g of the f so far.
                heat -= found
                heat -= heat.max(axis=1)[:, None]
                np.exp(heat, out=heat)
                sums += (1.0 / heat.sum(axis=1)) @ heat
            done += 1
            step(done / total)
        with np.errstate(divide="ignore"):
            logs = np.log(sums)
        # A query that no item answers to keeps its potential.
        found = np.where(sums > 0, (most if number == 0 else found) + logs, found).astype(np.float32)
    return found
