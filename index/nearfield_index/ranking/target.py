"""The point that is nearest to all queries at once, and how items lie to it: what gives an item away that was made.

An item made to answer many queries is a mean of queries, more or less disguised. Two marks of it do not depend on how
many queries it was made for. It *leans*: seen along the line that tells that point best from the items (Fisher's
discriminant), it is farther over than items are. And it is *central*: what comes from one text or one picture differs
from the average query in many directions a little, a mean of many does not (a Mahalanobis distance in the spread of the
queries, whose narrow directions have a common least width).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nearfield_index.schema import Metric

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]

_AXES = 128
_LEAST_WIDTH = 0.05
_ROUNDED = 2.0
"""This times dimensions by items is the share of the items' covariance that is replaced by a round one: directions
estimated from few items mislead."""
_MOST_ROWS = 8_192
_SEED = 20_261_125


@dataclass(frozen=True)
class Target:
    """``point`` ``(dim,)``, ``lean`` ``(dim,)`` the line across, ``axes`` ``(dim, r)`` the widest directions of the
    queries, ``widths`` ``(r + 1,)`` their variances and, last, that of all other directions."""

    point: Floats
    lean: Floats
    axes: Floats
    widths: Floats

    def measures(self, vectors: Floats) -> Floats:
        """Lean and centrality ``(n, 2)`` of items ``(n, dim)`` (normalised under cosine); more is nearer."""
        away = vectors - self.point
        along = away @ self.axes
        np.square(along, out=along)
        rest = np.maximum(np.einsum("ij,ij->i", away, away) - along.sum(axis=1), 0.0)
        distance = along @ (1.0 / self.widths[:-1]) + rest / self.widths[-1]
        found = np.empty((len(vectors), 2), np.float32)
        found[:, 0] = vectors @ self.lean
        found[:, 1] = -np.log(distance + np.float32(1e-9))
        return found


def target_of(queries: Floats, items: Floats, metric: Metric) -> Target:
    """The target of bank queries ``(m, dim)`` among a sample of items ``(n, dim)``, both normalised under cosine."""
    asked, rows = _some(queries), _some(items)
    middle = asked.mean(axis=0)
    point = middle
    if metric is not Metric.L2:
        # The length an item has: under cosine every one has it, under dot more of it is a mark of its own.
        length, own = np.linalg.norm(middle), np.sqrt(np.einsum("ij,ij->i", rows, rows)).mean()
        point = middle * (own / length) if length > 0 else middle
    covariance = _covariance(rows)
    variance = max(float(np.trace(covariance)) / len(covariance), 1e-30)
    rounded = min(0.9, _ROUNDED * len(covariance) / len(rows))
    covariance *= 1.0 - rounded
    covariance[np.diag_indices_from(covariance)] += rounded * variance
    lean = np.linalg.solve(covariance, point - rows.mean(axis=0))
    variances, axes = np.linalg.eigh(_covariance(asked))
    least = max(_LEAST_WIDTH * float(variances.mean()), 1e-30)
    count = min(_AXES, len(variances))
    others = variances[: len(variances) - count]
    rest = float(others.mean()) if len(others) else 0.0
    widths = np.append(np.maximum(variances[::-1][:count], 0.0), max(rest, 0.0)) + least
    parts = (point, lean * np.sqrt(variance), axes[:, ::-1][:, :count], widths)
    return Target(*(np.ascontiguousarray(part, dtype=np.float32) for part in parts))


def _some(vectors: Floats) -> Doubles:
    """A seeded sample in float64."""
    if len(vectors) > _MOST_ROWS:
        vectors = vectors[np.sort(np.random.default_rng(_SEED).choice(len(vectors), _MOST_ROWS, replace=False))]
    return vectors.astype(np.float64)


def _covariance(rows: Doubles) -> Doubles:
    away = rows - rows.mean(axis=0)
    return np.asarray(away.T @ away / len(rows))
