"""The order of rows in an indexed segment: clusters of near vectors, each a contiguous row range."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

import faiss
import numpy as np

from nearfield_index.backends.base import Lists
from nearfield_index.backends.gpu.device import for_builds
from nearfield_index.backends.gpu.kernel import nearest
from nearfield_index.backends.space import original, stored
from nearfield_index.schema import Metric

Floats = np.ndarray[Any, np.dtype[np.float32]]
Rows = np.ndarray[Any, np.dtype[np.int64]]

_SMALLEST = 1_000
_SAMPLE_PER_LIST = 64
_ROUNDS = 8
_PER_ROOT = 2
_SEED = 20_261_125


@dataclass(frozen=True)
class Clustering:
    """``order``: rows of the input in their new order; ``lists``: the clusters as ranges of it."""

    order: Rows
    lists: Lists


def cluster(matrix: Floats, metric: Metric, *, threads: int) -> Clustering:
    """k-means with about 2 sqrt(n) clusters over rows in stored form; one cluster for small inputs."""
    n = len(matrix)
    if n < _SMALLEST:
        centre = matrix.mean(axis=0, keepdims=True) if n else np.zeros((1, matrix.shape[1]))
        return Clustering(np.arange(n), Lists(np.array([0, n]), centre.astype(np.float32)))
    faiss.omp_set_num_threads(threads)
    vectors = original(matrix, metric)
    count = _PER_ROOT * isqrt(n)
    chosen = np.random.default_rng(_SEED).permutation(n)[: count * _SAMPLE_PER_LIST]
    sample = np.ascontiguousarray(vectors[np.sort(chosen)])
    found = _k_means if for_builds() is None else _k_means_on_device
    centroids = _along_main_axis(found(sample, count, metric is Metric.COSINE))
    assigned = nearest(vectors, centroids)
    order = np.argsort(assigned, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(assigned, minlength=count))]).astype(np.int64)
    lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
    # A cosine centroid of length zero has no direction; it keeps its place and is probed last.
    shaped = centroids / np.maximum(lengths, 1e-30) if metric is Metric.COSINE else centroids
    return Clustering(order, Lists(offsets, shaped if metric is Metric.COSINE else stored(shaped, metric)))


def _k_means(sample: Floats, count: int, spherical: bool) -> Floats:
    kmeans = faiss.Kmeans(
        sample.shape[1],
        count,
        niter=_ROUNDS,
        seed=_SEED,
        spherical=spherical,
        max_points_per_centroid=_SAMPLE_PER_LIST,
        min_points_per_centroid=1,
    )
    kmeans.train(sample)
    return np.asarray(kmeans.centroids)


def _k_means_on_device(sample: Floats, count: int, spherical: bool) -> Floats:
    """The same rounds with the assignments on the device. A centre that nobody is nearest to starts anew at a point."""
    random = np.random.default_rng(_SEED)
    centroids = sample[random.permutation(len(sample))[:count]].copy()
    for _ in range(_ROUNDS):
        assigned = nearest(sample, centroids)
        order = np.argsort(assigned, kind="stable")
        filled, starts = np.unique(assigned[order], return_index=True)
        sums = np.add.reduceat(sample[order], starts, axis=0, dtype=np.float64)
        centroids[filled] = sums / np.diff(starts, append=len(sample))[:, None]
        empty = np.setdiff1d(np.arange(count), filled)
        centroids[empty] = sample[random.permutation(len(sample))[: len(empty)]]
        if spherical:
            centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-30)
    return centroids


def _along_main_axis(centroids: Floats) -> Floats:
    """Clusters in the order of their first principal component, so that neighbours in rank lie near."""
    centred = centroids - centroids.mean(axis=0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    return np.ascontiguousarray(centroids[np.argsort(centred @ axis, kind="stable")], dtype=np.float32)
