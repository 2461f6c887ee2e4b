"""Every metric searched as an inner product, so that a per-item bias is just one more column.

cosine and dot store ``x`` (normalised for cosine); l2 stores ``[x, -|x|^2/2]`` and queries ``[q, 1]``: the inner
product is then ``(|q|^2 - |q - x|^2) / 2``, the same order. Scores given to users are recomputed from the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, Protocol

import numpy as np

from nearfield_index.schema import Metric

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]
Rows = np.ndarray[Any, np.dtype[np.int64]]

_RESCORE_MOST = 32_000_000
_RESCORE_BLOCK = 250_000  # values gathered at a time: they should still be in the cache when they are used


def columns(dim: int, metric: Metric) -> int:
    """Columns of the stored matrix of a field."""
    return dim + 1 if metric is Metric.L2 else dim


def stored(vectors: Floats, metric: Metric) -> Floats:
    """Rows as they are stored and searched, ``(n, columns)`` float32."""
    if metric is Metric.DOT:
        return vectors
    if len(vectors) == 1 and metric is Metric.COSINE:  # one query, the common case
        doubles = vectors.astype(np.float64)
        doubles /= sqrt(doubles[0].dot(doubles[0]))
        return doubles.astype(np.float32)
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    if metric is Metric.COSINE:
        return np.asarray(vectors / np.sqrt(squares)[:, None], dtype=np.float32)
    out = np.empty((len(vectors), vectors.shape[1] + 1), dtype=np.float32)
    out[:, :-1] = vectors
    out[:, -1] = squares * -0.5
    return out


def queried(vectors: Floats, metric: Metric) -> Floats:
    """Queries in the form whose inner product with stored rows orders them, ``(n, columns)`` float32."""
    if metric is not Metric.L2:
        return stored(vectors, metric)
    out = np.ones((len(vectors), vectors.shape[1] + 1), dtype=np.float32)
    out[:, :-1] = vectors
    return out


def original(rows: Floats, metric: Metric) -> Floats:
    """The vectors of stored rows, without extra columns (normalised under cosine)."""
    return rows[:, :-1] if metric is Metric.L2 else rows


def scores(queries: Floats, matrix: Floats, rows: Rows, metric: Metric, *, precise: bool) -> Doubles:
    """Scores from the rows themselves: ``queries`` ``(n, columns)``, ``rows`` ``(n, k)`` of ``matrix``, -1 gives -inf.

    cosine and dot: the inner product; l2: minus the Euclidean distance. ``precise`` computes in float64 (an exact
    answer needs it to tell near ties apart), otherwise in float32 at a third of the price.
    """
    n, k = rows.shape
    kind = np.dtype(np.float64 if precise else np.float32)
    dim = matrix.shape[1] - (metric is Metric.L2)
    if n == 1 and 0 < k * dim <= _RESCORE_BLOCK and rows.min() >= 0:  # one query, the common case
        return _scores_of_one(queries[0, :dim], matrix.take(rows[0], axis=0)[:, :dim], metric, kind)
    out = np.full((n, k), -np.inf)
    block = max(1, _RESCORE_BLOCK // max(1, k * dim))
    if k * dim > _RESCORE_MOST and k > 1:  # many long rows of one query: half of them at a time
        halves = (
            scores(queries, matrix, part, metric, precise=precise) for part in (rows[:, : k // 2], rows[:, k // 2 :])
        )
        return np.concatenate(list(halves), axis=1)
    for start in range(0, n, block):
        part = rows[start : start + block]
        gathered: Any = matrix[np.maximum(part, 0)][:, :, :dim].astype(kind, copy=False)
        query: Any = queries[start : start + block, :dim].astype(kind, copy=False)
        if metric is Metric.L2:
            gathered = gathered - query[:, None, :]
            value = -np.sqrt(np.einsum("nkd,nkd->nk", gathered, gathered))
        elif precise and metric is Metric.DOT:
            value = np.einsum("nkd,nd->nk", gathered, query)  # row by row: copies of a vector score the same
        else:
            value = np.matmul(gathered, query[:, :, None])[:, :, 0]
        out[start : start + block] = np.where(part >= 0, value, -np.inf)
    return out


def _scores_of_one(query: Floats, gathered: Any, metric: Metric, kind: Any) -> Doubles:
    gathered = gathered.astype(kind, copy=False)
    asked: Any = query.astype(kind, copy=False)
    if metric is Metric.L2:
        gathered = gathered - asked
        value = -np.sqrt(np.einsum("kd,kd->k", gathered, gathered))
    elif kind == np.float64 and metric is Metric.DOT:
        value = np.einsum("kd,d->k", gathered, asked)
    else:
        value = gathered @ asked
    return np.asarray(value, dtype=np.float64)[None, :]


def rounding(queries: Floats, longest: float, metric: Metric) -> Doubles:
    """How far a float32 inner product of these queries with rows may be off, ``(n,)``.

    ``longest`` bounds the length of the rows' own vectors, without the extra column of l2.
    """
    own = original(queries, metric)
    lengths = np.sqrt(np.einsum("ij,ij->i", own, own, dtype=np.float64))
    size = lengths * longest + (longest**2 / 2 if metric is Metric.L2 else 0.0)
    # Products below the smallest normal float32 vanish, whatever their size among themselves.
    return np.asarray(size * (4 * np.sqrt(own.shape[1]) * 2.0**-24) + own.shape[1] * 2.0**-126)


def as_inner(scored: Doubles, queries: Floats, metric: Metric) -> Doubles:
    """The inner product that a score of :func:`scores` stands for."""
    if metric is not Metric.L2:
        return scored
    squares = np.einsum("ij,ij->i", queries[:, :-1], queries[:, :-1], dtype=np.float64)
    result: Doubles = (squares[:, None] - scored * scored) / 2
    return result


@dataclass(frozen=True)
class ItemBiases:
    """What hubness normalisation knows of items.

    ``bias`` ``(n, variants)`` to subtract from an inner product, ``active`` ``(n, banks)`` for the gate, ``hub``
    ``(n, 3)`` hub measures, ``blocks`` the sums that biases are made of.
    """

    bias: Floats
    active: np.ndarray[Any, np.dtype[np.bool_]]
    hub: Floats
    blocks: Floats

    def arrays(self) -> tuple[Any, ...]:
        """The four arrays, in the order of the constructor."""
        return self.bias, self.active, self.hub, self.blocks

    def take(self, rows: Rows) -> ItemBiases:
        """Those of some rows."""
        return ItemBiases(*(array[rows] for array in self.arrays()))


class Biaser(Protocol):
    """Computes the biases of items: a fitted model, known by its version."""

    @property
    def version(self) -> str: ...

    @property
    def probes(self) -> Floats:
        """Raw queries ``(n, dim)`` on which normalised search is calibrated."""
        ...

    @property
    def asked(self) -> Floats:
        """Queries in search form ``(m, columns)`` from which codes are learned."""
        ...

    def of(self, rows: Floats) -> ItemBiases:
        """Those of rows in stored form."""
        ...
