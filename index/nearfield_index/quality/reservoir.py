"""A bounded, uniform sample of the queries a collection was asked, per vector field."""

from __future__ import annotations

import random
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from nearfield_index.errors import Corrupt
from nearfield_index.schema import Schema
from nearfield_index.storage.arrays import open_arrays, replace_arrays

Floats = np.ndarray[Any, np.dtype[np.float32]]

_SIZE = 1_000
_PER_CALL = 64


class QueryReservoir:
    """Raw query vectors by field: algorithm R, at most 1,000 of each; a batch gives at most 64 of its own."""

    def __init__(self, schema: Schema) -> None:
        self._lock = Lock()
        self._random = np.random.default_rng()
        self._held = {name: np.empty((_SIZE, f.dim), dtype=np.float32) for name, f in schema.vectors.items()}
        self._count = dict.fromkeys(schema.vectors, 0)
        self._seen = dict.fromkeys(schema.vectors, 0)

    def use_schema(self, schema: Schema) -> None:
        """Make room for new vector fields."""
        with self._lock:
            for name, field in schema.vectors.items():
                if name not in self._held:
                    self._held[name] = np.empty((_SIZE, field.dim), dtype=np.float32)
                    self._count[name] = self._seen[name] = 0

    def add(self, field: str, vectors: Floats) -> tuple[int, int]:
        """Take note of queries; returns how many were held before, and how many are now."""
        with self._lock:
            if len(vectors) > _PER_CALL:
                vectors = vectors[self._random.choice(len(vectors), _PER_CALL, replace=False)]
            held, count, seen = self._held[field], self._count[field], self._seen[field]
            before = count
            for number in range(len(vectors)):
                place = count if count < _SIZE else int(random.random() * (seen + 1))
                if place < _SIZE:
                    held[place] = vectors[number]
                    count = max(count, place + 1)
            self._count[field], self._seen[field] = count, seen + len(vectors)
            return before, count

    def replace(self, field: str, vectors: Floats) -> None:
        """Put the caller's own queries in the place of the sample."""
        with self._lock:
            chosen = vectors
            if len(vectors) > _SIZE:
                chosen = vectors[self._random.choice(len(vectors), _SIZE, replace=False)]
            self._held[field][: len(chosen)] = chosen
            self._count[field] = len(chosen)
            self._seen[field] = len(vectors)

    def sample(self, field: str) -> Floats:
        """What is held, ``(n, dim)``."""
        with self._lock:
            return self._held[field][: self._count[field]].copy()

    def save(self, path: Path) -> None:
        """Keep the sample over a restart. It is only a sample: losing it costs a calibration."""
        with self._lock:
            arrays = {n: held[: self._count[n]].copy() for n, held in self._held.items() if self._count[n]}
            seen = {name: self._seen[name] for name in arrays}
        if arrays:
            replace_arrays(path, arrays, {"seen": seen})

    def load(self, path: Path) -> None:
        """Take back what :meth:`save` wrote, as far as it is readable and fits the schema."""
        try:
            arrays, meta = open_arrays(path)
            for name, held in self._held.items():
                saved = arrays.get(name)
                if saved is not None and saved.shape[1] == held.shape[1] and np.isfinite(saved).all():
                    kept = saved[:_SIZE]
                    held[: len(kept)] = kept
                    self._count[name] = len(kept)
                    self._seen[name] = int(meta["seen"][name])
        except (OSError, Corrupt, ValueError, KeyError, TypeError):
            return
