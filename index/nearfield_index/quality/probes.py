"""Queries with exact answers, and the filters they are asked behind: what every measurement of recall asks.

Rows of a collection are easier than queries. Real queries are used where there are enough; until then the worse
of held-out rows and rows with noise of their own length (spread as the data is) counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearfield_index.backends.space import original, queried
from nearfield_index.bitmap import Bitmap
from nearfield_index.execution.exact import exact_rows
from nearfield_index.segments.part import FieldPart

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]
Rows = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

ENOUGH_QUERIES = 200
SEED = 20_261_125
GOOD_ENOUGH = 0.9985
"""Recall that no higher effort is tried for."""

_SAMPLE = 256
_KS = (10, 100)
# Under more selective filters only the smaller k is worth a curve; the other is answered exactly.
_WIDE = 0.5
_FILTERED_SAMPLE = 100


@dataclass(frozen=True)
class Probe:
    """Queries in search form with the row each was made from (-1: none), which does not count as an answer."""

    queries: Floats
    own: Rows

    def first(self, count: int) -> Probe:
        return Probe(self.queries[:count], self.own[:count])


def probes_of(field: FieldPart, sample: Floats, random: np.random.Generator) -> tuple[str, list[Probe]]:
    """What they were made from (``queries`` or ``rows``), and lists of probes of which the worst counts."""
    if len(sample) >= ENOUGH_QUERIES:
        chosen = sample[random.permutation(len(sample))[: 2 * _SAMPLE]]
        return "queries", [Probe(queried(chosen, field.metric), np.full(len(chosen), -1))]
    rows = np.sort(random.permutation(len(field))[:_SAMPLE])
    vectors = np.array(original(field.matrix[rows], field.metric))
    noise = _noise(field, vectors.shape[0], random)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    noisy = np.asarray(vectors + noise * (lengths / np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), 1e-30)))
    # In few dimensions noise may cancel a vector, and a zero vector is no query.
    noisy = np.where(np.linalg.norm(noisy, axis=1, keepdims=True) > 0, noisy, vectors).astype(np.float32)
    return "rows", [
        Probe(queried(vectors, field.metric), rows),
        Probe(queried(noisy, field.metric), np.full(len(rows), -1)),
    ]


def _noise(field: FieldPart, count: int, random: np.random.Generator) -> Doubles:
    """Gaussian noise with the covariance of the data: noise that fills all dimensions alike is no query's."""
    others = original(field.matrix[np.sort(random.permutation(len(field))[:_SAMPLE])], field.metric)
    centred = others - others.mean(axis=0)
    return np.asarray(random.standard_normal((count, len(others))) @ centred, dtype=np.float64)


def filters_of(field: FieldPart, share: float, random: np.random.Generator) -> list[tuple[str, list[Bitmap | None]]]:
    """By shape the filters to try. Those that keep together are runs about as long as a cluster, here and there: where
    a query's own cluster is not among them, it must look far, and which it is, is luck: so there are two."""
    n = len(field)
    if share == 1.0:
        return [("all", [None])]
    wanted = int(n * share)
    run = max(1, n // max(1, 1 if field.clusters is None else len(field.clusters.lists.centroids)))
    together: list[Bitmap | None] = []
    for _ in range(2):
        mask = np.zeros(n, dtype=np.bool_)
        for number in random.permutation(-(-n // run))[: max(1, round(wanted / run))].tolist():
            mask[number * run : (number + 1) * run] = True
        order = field.by_cluster
        near = np.flatnonzero(mask)
        together.append(Bitmap.from_rows(n, near if order is None else np.sort(order[near])))
    return [("random", [Bitmap.from_rows(n, np.sort(random.permutation(n)[:wanted]))]), ("run", together)]


def asked_behind(probes: list[Probe], share: float) -> list[Probe]:
    """Those that are asked behind a filter which passes this share of the rows."""
    return probes if share == 1.0 else [p.first(_FILTERED_SAMPLE) for p in probes]


def ks_behind(share: float, n: int) -> tuple[int, ...]:
    """The k that are worth measuring behind such a filter of n rows."""
    return tuple(k for k in (_KS if share >= _WIDE else _KS[:1]) if share * n >= 5 * k)


def without_own(rows: Rows, own: Rows, k: int) -> Rows:
    """The first k rows of each query that are not the row it was made from."""
    other = rows != own[:, None]
    order = np.argsort(~other, axis=1, kind="stable")[:, :k]
    return np.where(np.take_along_axis(other, order, 1), np.take_along_axis(rows, order, 1), -1)


def cautious(shares: Doubles) -> Any:
    """The mean over the first axis, of queries, less two standard errors of it."""
    return np.maximum(0.0, shares.mean(axis=0) - 2 * shares.std(axis=0) / np.sqrt(len(shares)))


def met(wanted: Rows, found: Rows) -> Mask:
    """Which of the rows wanted by each query ``(n, depth)`` are among those found for it."""
    return np.stack([np.isin(*pair) for pair in zip(wanted, found, strict=True)])


def cautious_recall(found: Rows, truth: Rows) -> float:
    """Mean recall less two standard errors of it."""
    hits = (found[:, :, None] == truth[:, None, :]) & (truth >= 0)[:, None, :]
    wanted = np.maximum(1, (truth >= 0).sum(axis=1))
    return float(cautious(hits.any(axis=1).sum(axis=1) / wanted))


@dataclass(frozen=True)
class Trial:
    """Queries in search form behind a filter (None: none), on which the recall of any index at ``k`` is measured.

    ``selectivity`` and ``shape`` as in :class:`Curve`.
    """

    selectivity: float
    k: int
    shape: str
    within: Bitmap | None
    queries: Floats
    _own: Rows
    _truth: Rows

    def recall(self, found: Rows) -> float:
        """A cautious estimate from the ``k + 1`` rows found for each query."""
        return cautious_recall(without_own(found, self._own, self.k), self._truth)


def trials(field: FieldPart, sample: Floats, shares: Sequence[float]) -> Iterator[list[Trial]]:
    """What a curve is made of, list by list: in each, trials of which the worst counts.

    ``sample``: raw real queries ``(n, dim)``.
    """
    random = np.random.default_rng(SEED)
    _, probes = probes_of(field, sample, random)
    for share in shares:
        asked = asked_behind(probes, share)
        for k in ks_behind(share, len(field)):
            for shape, filters in filters_of(field, share, random):
                yield [
                    Trial(share, k, shape, within, p.queries, p.own, without_own(truth, p.own, k))
                    for within in filters
                    for p in asked
                    for truth, _ in [exact_rows(field, p.queries, k + 1, within)]
                ]
