"""The judge: exact neighbours and scores in numpy alone, independent of every target."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-6
_BLOCK = 256
_SPARE = 28


def nearest(
    base: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    metric: str,
    *,
    alive: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """The rows of the k best base vectors of each query, best first, (m, k); -1 pads where fewer are ``alive``.

    Candidates come from a float32 product; their order is decided in float64.
    """
    rows = np.arange(len(base)) if alive is None else np.flatnonzero(alive)
    found = np.full((len(queries), k), -1, dtype=np.int64)
    if not len(rows):
        return found
    matrix, bias = _products(base if alive is None else base[rows], metric)
    fetch = min(len(rows), k + _SPARE)
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK]
        rough = block @ matrix.T - bias
        candidates = rows[np.argpartition(-rough, fetch - 1, axis=1)[:, :fetch]]
        order = np.argsort(-scores(base, block, candidates, metric), axis=1, kind="stable")[:, :k]
        found[start : start + len(block), : order.shape[1]] = np.take_along_axis(candidates, order, axis=1)
    return found


class Judge:
    """True neighbours of the same queries under one filter after another: the product of all with all is kept."""

    def __init__(self, base: NDArray[np.float32], queries: NDArray[np.float32], metric: str) -> None:
        self._base, self._queries, self._metric = base, queries, metric
        matrix, bias = _products(base, metric)
        self._rough = queries @ matrix.T - bias

    def nearest(self, query: int, rows: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """The best of these base rows for a query, best first, (k,); -1 pads where there are fewer."""
        found = np.full(k, -1, dtype=np.int64)
        if not len(rows):
            return found
        fetch = min(len(rows), k + _SPARE)
        candidates = rows[np.argpartition(-self._rough[query, rows], fetch - 1)[:fetch]]
        exact = scores(self._base, self._queries[query : query + 1], candidates[None, :], self._metric)[0]
        best = candidates[np.argsort(-exact, kind="stable")[:k]]
        found[: len(best)] = best
        return found


def scores(
    base: NDArray[np.float32], queries: NDArray[np.float32], ids: NDArray[np.int64], metric: str
) -> NDArray[np.float64]:
    """Float64 scores (m, k) of these rows, higher is better: cosine, or minus the distance for ``l2``.

    Ids below 0 score minus infinity.
    """
    result = np.full(ids.shape, -np.inf)
    for number, query in enumerate(queries.astype(np.float64)):
        real = ids[number] >= 0
        rows = base[ids[number][real]].astype(np.float64)
        if metric == "l2":
            result[number, real] = -np.linalg.norm(rows - query, axis=1)
        else:
            lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
            result[number, real] = (rows @ query) / np.maximum(lengths, 1e-30)
    return result


def judged(
    base: NDArray[np.float32],
    queries: NDArray[np.float32],
    answers: Any,
    truth: NDArray[np.int64],
    metric: str,
    *,
    alive: NDArray[np.bool_] | None = None,
) -> dict[str, list[int]]:
    """How many of each answer's ids are right, and out of how many: ``{"right": [m], "possible": [m], "wrong": [m]}``.

    The target's own scores are not trusted: they are computed again, and an id is right when its score is no worse
    than the k-th true one by more than the tolerance, so ties count. An id given twice counts once. ``wrong`` counts
    ids that do not exist or are not ``alive``.
    """
    ids = np.asarray(answers, dtype=np.int64)
    k = min(ids.shape[1], truth.shape[1])
    ids = ids[:, :k].copy()
    absent = ids >= len(base)
    if alive is not None:
        absent |= (ids >= 0) & ~alive[np.clip(ids, 0, len(base) - 1)]
    wrong = absent.sum(axis=1)
    ids[absent | _repeated(ids)] = -1
    possible = (truth[:, :k] >= 0).sum(axis=1)
    last = np.take_along_axis(truth, np.maximum(possible - 1, 0)[:, None], axis=1)
    bound = scores(base, queries, last, metric)
    slack = TOLERANCE * np.maximum(1.0, np.abs(np.where(np.isfinite(bound), bound, 1.0)))
    right = (np.isfinite(got := scores(base, queries, ids, metric)) & (got >= bound - slack)).sum(axis=1)
    return {
        "right": np.minimum(right, possible).tolist(),
        "possible": possible.tolist(),
        "wrong": wrong.tolist(),
    }


def _products(base: NDArray[np.float32], metric: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Matrix and bias such that ``query @ matrix.T - bias`` orders as the metric does."""
    if metric == "l2":
        return base, np.einsum("ij,ij->i", base, base) / np.float32(2)
    lengths = np.maximum(np.linalg.norm(base, axis=1, keepdims=True), np.float32(1e-30))
    return base / lengths, np.zeros(1, dtype=np.float32)


def _repeated(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which places repeat an id that stands further left in the same row."""
    order = np.argsort(ids, axis=1, kind="stable")
    ordered = np.take_along_axis(ids, order, axis=1)
    again = np.zeros(ids.shape, dtype=bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    result = np.zeros(ids.shape, dtype=bool)
    np.put_along_axis(result, order, again, axis=1)
    return result
