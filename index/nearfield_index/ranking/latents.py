"""Item vectors learned from a scorer: the scores of anchor queries, factored (arXiv 2305.02996, arXiv 2210.12579).

What the item's mean score and the cheap similarity explain is taken out first, so that the latents hold what only the
scorer knows. Items that were not scored get latents from their stored vector by a ridge regression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Self

import faiss
import numpy as np

from nearfield_index.backends.base import Lists
from nearfield_index.storage.arrays import open_arrays, write_arrays

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Step = Callable[[float], None]

FORMAT = 1
_RANK = 128
_CHUNK = 4_096
_PARTS = 64
_RIDGE = 1e-3
_ANCHOR_ITEMS = 1_000
_TOP_MEANS = 2_000
_CLUSTERED = 10_000
_SEED = 20_261_125


@dataclass(frozen=True)
class Latents:
    """Latent vectors ``(n, r)`` and mean scores ``(n,)`` of the items with row keys ``pks``, in the order of
    ``lists`` where there are any; ``by_key`` sorts ``pks``. ``to_latents`` ``(d + 1, r + 1)`` maps a stored vector
    and a one to latents and mean. ``anchors`` are row keys asked about first by ANNCUR, ``popular`` those of the
    best mean scores. ``vector_scale`` and ``latent_scale`` bring root mean square lengths to 1."""

    pks: Ints
    by_key: Ints
    latents: Floats
    means: Floats
    to_latents: Floats
    anchors: Ints
    popular: Ints
    lists: Lists | None
    vector_scale: float
    latent_scale: float
    _parts: dict[str, Ints] = field(default_factory=dict, compare=False, repr=False)
    _lock: Lock = field(default_factory=Lock, compare=False, repr=False)

    @property
    def rank(self) -> int:
        return int(self.latents.shape[1])

    @cached_property
    def _sorted(self) -> Ints:
        return self.pks[self.by_key]

    def rows_of(self, pks: Ints) -> Ints:
        """Where the items with these row keys stand; -1 for those that were not scored."""
        sorted_pks = self._sorted
        at = np.minimum(np.searchsorted(sorted_pks, pks), len(sorted_pks) - 1)
        return np.asarray(np.where(sorted_pks[at] == pks, self.by_key[at], -1))

    def rows_of_part(self, name: str, pks: Ints) -> Ints:
        """The same for all rows of an immutable part, worked out once."""
        with self._lock:
            found = self._parts.get(name)
        if found is None:
            found = self.rows_of(pks)
            with self._lock:
                self._parts[name] = found
                while len(self._parts) > _PARTS:
                    self._parts.pop(next(iter(self._parts)))
        return found

    def of(self, rows: Ints, vectors: Floats) -> tuple[Floats, Doubles]:
        """Latents ``(m, r)`` and mean scores ``(m,)`` of items at ``rows`` with these stored vectors."""
        latents, means = self.latents[rows], self.means[rows].astype(np.float64)
        new = np.flatnonzero(rows < 0)
        if len(new):
            guessed = vectors[new] @ self.to_latents[:-1] + self.to_latents[-1]
            latents[new], means[new] = guessed[:, :-1], guessed[:, -1]
        return latents, means

    def save(self, path: Path) -> tuple[int, str]:
        """Write to a new file; returns (bytes, checksum)."""
        arrays: dict[str, Any] = {
            "pks": self.pks,
            "by_key": self.by_key,
            "latents": self.latents,
            "means": self.means,
            "to_latents": self.to_latents,
            "anchors": self.anchors,
            "popular": self.popular,
        }
        if self.lists is not None:
            arrays |= {"offsets": self.lists.offsets, "centroids": self.lists.centroids}
        scales = {"vector_scale": self.vector_scale, "latent_scale": self.latent_scale}
        return write_arrays(path, arrays, {"format": FORMAT, **scales})

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file whose checksum was verified."""
        found, meta = open_arrays(path)
        arrays: dict[str, Any] = dict(found)
        lists = Lists(arrays.pop("offsets"), arrays.pop("centroids")) if "offsets" in arrays else None
        return cls(**arrays, lists=lists, vector_scale=meta["vector_scale"], latent_scale=meta["latent_scale"])


def factorise(
    pks: Ints, scores: Floats, base: Callable[[slice], Doubles], vectors: Callable[[slice], Floats], step: Step
) -> Latents:
    """Factor ``scores`` ``(n, anchors)`` of items ``pks``; ``base`` and ``vectors`` give cheap scores
    ``(m, anchors)`` and stored vectors ``(m, d)`` of a slice of the items."""
    count, anchors = scores.shape
    means = np.concatenate([np.empty(0), *(scores[c].mean(axis=1, dtype=np.float64) for c in _chunks(count))])
    slope, intercept = _lines(scores, means, base)
    step(0.2)

    def residual(chunk: slice) -> Doubles:
        left = scores[chunk].astype(np.float64) - means[chunk, None] - (intercept + slope * base(chunk))
        return np.asarray(left - left.mean(axis=1, keepdims=True))

    gram = np.zeros((anchors, anchors))
    for chunk in _chunks(count):
        part = residual(chunk)
        gram += part.T @ part
    step(0.4)
    values, directions = np.linalg.eigh(gram)
    rank = max(1, min(_RANK, anchors - 1, count - 1, int((values > 1e-9 * max(values[-1], 1e-300)).sum())))
    directions = directions[:, ::-1][:, :rank]
    latents = np.empty((count, rank), np.float32)
    for chunk in _chunks(count):
        latents[chunk] = residual(chunk) @ directions
    step(0.6)
    to_latents, vector_scale = _regression(latents, means, vectors)
    step(0.8)
    order, lists = _clustered(latents)
    rng = np.random.default_rng(_SEED)
    anchor_items = rng.permutation(count)[:_ANCHOR_ITEMS]
    popular = np.argsort(-means, kind="stable")[:_TOP_MEANS]
    return Latents(
        pks=pks[order],
        by_key=np.argsort(pks[order], kind="stable"),
        latents=np.ascontiguousarray(latents[order]),
        means=means[order].astype(np.float32),
        to_latents=to_latents,
        anchors=pks[anchor_items],
        popular=pks[popular],
        lists=lists,
        vector_scale=vector_scale,
        latent_scale=_scale(float((latents.astype(np.float64) ** 2).sum()), count),
    )


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, min(count, start + _CHUNK)) for start in range(0, count, _CHUNK))


def _lines(scores: Floats, means: Doubles, base: Callable[[slice], Doubles]) -> tuple[Doubles, Doubles]:
    """Per anchor query the line from base score to score less item mean: (slope, intercept)."""
    sums = np.zeros((4, scores.shape[1]))
    for chunk in _chunks(len(scores)):
        x, y = base(chunk), scores[chunk] - means[chunk, None]
        sums += [x.sum(axis=0), y.sum(axis=0), (x * x).sum(axis=0), (x * y).sum(axis=0)]
    x_mean, y_mean, xx, xy = sums / max(1, len(scores))
    spread = xx - x_mean * x_mean
    slope = np.where(spread > 1e-12, (xy - x_mean * y_mean) / np.maximum(spread, 1e-12), 0.0)
    return slope, y_mean - slope * x_mean


def _regression(latents: Floats, means: Doubles, vectors: Callable[[slice], Floats]) -> tuple[Floats, float]:
    """Ridge regression of latents and mean on the stored vector; and the vectors' scale."""
    count = len(latents)
    dim = vectors(slice(0, 1)).shape[1]
    inner, outer = np.zeros((dim + 1, dim + 1)), np.zeros((dim + 1, latents.shape[1] + 1))
    for chunk in _chunks(count):
        x = np.c_[vectors(chunk), np.ones(chunk.stop - chunk.start)].astype(np.float64)
        inner += x.T @ x
        outer += x.T @ np.c_[latents[chunk], means[chunk]]
    squares = float(np.trace(inner[:dim, :dim]))
    ridge = _RIDGE * max(float(np.linalg.eigvalsh(inner[:dim, :dim])[-1]), 1e-12)
    solved = np.linalg.solve(inner + np.diag([*([ridge] * dim), 1e-9 * count]), outer)
    return solved.astype(np.float32), _scale(squares, count)


def _scale(squares: float, count: int) -> float:
    return float(np.sqrt(count / squares)) if squares > 0 else 0.0


def _clustered(latents: Floats) -> tuple[Ints, Lists | None]:
    """An order of the items in which near latents lie together, and the clusters as ranges of it."""
    count = len(latents)
    if count <= _CLUSTERED:  # small collections are looked at whole
        return np.arange(count), None
    lists = int(np.sqrt(count))
    kmeans = faiss.Kmeans(
        latents.shape[1], lists, niter=8, seed=_SEED, min_points_per_centroid=1, max_points_per_centroid=64
    )
    kmeans.train(latents)
    centroids = np.asarray(kmeans.centroids, dtype=np.float32).reshape(lists, -1)
    assigned = kmeans.index.search(latents, 1)[1][:, 0]
    order = np.argsort(assigned, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(assigned, minlength=lists))]).astype(np.int64)
    return order, Lists(offsets, centroids)
