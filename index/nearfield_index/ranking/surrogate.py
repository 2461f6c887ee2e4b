"""What an expensive scorer will say of items it was not asked about, from those it was asked about.

A Gaussian-process mean in dual form (universal kriging): score = trend + linear kernel of item vectors + noise. This
one solve serves ANNCUR (arXiv 2210.12579), ADACUR (2305.02996) and AXN (2405.03651); they differ in the item vectors.
Everything goes through the eigenvalues of the scored items' kernel in the space that is free of the trend, so that
nothing is inverted that may be singular: duplicate items, constant scores and as many items as vector columns do no
harm, where a pseudo-inverse falls apart. The ridge is chosen each time by restricted maximum likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Doubles = np.ndarray[Any, np.dtype[np.float64]]

_RIDGES = np.array([1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0])
_USUAL = -1.5
"""log10 of the ridge that few scores are believed to need, and how firmly."""
_FIRMNESS = 2.0
_TINY = 1e-12


@dataclass(frozen=True)
class Fit:
    """Estimate of an item: ``trend @ beta + item @ (seen.T @ alpha)``; ``ridge`` is relative to the kernel's top."""

    beta: Doubles
    alpha: Doubles
    ridge: float


def fit(seen: Doubles, trend: Doubles, scores: Doubles) -> Fit:
    """Fit ``scores`` ``(n,)`` of items ``seen`` ``(n, d)`` with ``trend`` ``(n, p)``, whose first column is ones."""
    free = _free_of(trend)
    if free.shape[1] < 2:
        return Fit(_least_squares(trend, scores), np.zeros(len(trend)), 1.0)
    centre = seen.mean(axis=0)
    moved = seen - centre  # what all items share would drown the rest in rounding
    contrasts = free.T @ moved
    values, vectors = np.linalg.eigh(contrasts @ contrasts.T)
    values = np.maximum(values, 0.0)
    told = vectors.T @ (free.T @ scores)
    spread = float(told @ told)
    if values[-1] <= _TINY * float((seen * seen).sum()) or spread <= _TINY * max(1.0, float(scores @ scores)):
        return Fit(_least_squares(trend, scores), np.zeros(len(trend)), 1.0)
    noise = _RIDGES[:, None] * values[-1]
    total = values[None, :] + noise
    variance = np.maximum((told * told / total).sum(axis=1) / len(told), 1e-300)
    evidence = len(told) * np.log(variance) + np.log(total).sum(axis=1) + _FIRMNESS * (np.log10(_RIDGES) - _USUAL) ** 2
    best = int(np.argmin(evidence))
    alpha = free @ (vectors @ (told / total[best]))
    weights = moved.T @ alpha
    beta = _least_squares(trend, scores - moved @ weights - float(noise[best, 0]) * alpha)
    beta[0] -= centre @ weights
    return Fit(beta, alpha, float(_RIDGES[best]))


def _free_of(trend: Doubles) -> Doubles:
    """An orthonormal basis ``(n, m)`` of everything that no combination of the trend's columns can say."""
    left, sizes, _ = np.linalg.svd(trend, full_matrices=False)
    basis = left[:, sizes > 1e-9 * max(sizes[0], _TINY)]
    return np.asarray(np.linalg.qr(basis, mode="complete")[0][:, basis.shape[1] :])


def _least_squares(trend: Doubles, values: Doubles) -> Doubles:
    return np.asarray(np.linalg.lstsq(trend, values, rcond=1e-9)[0])
