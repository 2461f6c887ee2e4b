"""Anchor queries: the few whose scores over all items teach a reranker what the scorer likes."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from nearfield_index.ranking.scorer import digest

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

_ROUNDS = 10
_SEED = 20_261_125


def medoids(vectors: Floats, count: int) -> Ints:
    """Rows of ``vectors`` ``(n, d)`` that stand for all of them: of each of ``count`` clusters the row nearest to
    its centre, ascending; all rows where there are no more than ``count``."""
    if len(vectors) <= count:
        return np.arange(len(vectors))
    kmeans = faiss.Kmeans(
        vectors.shape[1], count, niter=_ROUNDS, seed=_SEED, min_points_per_centroid=1, max_points_per_centroid=10_000
    )
    kmeans.train(np.ascontiguousarray(vectors))
    centres = np.asarray(kmeans.centroids, np.float32).reshape(count, -1)
    rows = np.unique(faiss.knn(centres, np.ascontiguousarray(vectors), 1)[1][:, 0])
    if len(rows) < count:  # two centres share a nearest row: fill up from the rest
        rest = np.setdiff1d(np.arange(len(vectors)), rows)
        rows = np.sort(np.concatenate([rows, rest[: count - len(rows)]]))
    return np.asarray(rows, np.int64)


def fingerprint(texts: list[str], vectors: Floats) -> str:
    """What tells one set of anchor queries from another, in 32 hex digits."""
    return digest(*texts, np.ascontiguousarray(vectors, "<f4").tobytes().hex()).hex()
