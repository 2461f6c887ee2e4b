"""The live query log of a field: opt-in, a bounded uniform sample of distinct queries, kept over a restart."""

from __future__ import annotations

import random
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import xxhash

from nearfield_index.errors import Corrupt, NearfieldError
from nearfield_index.storage.arrays import open_arrays, replace_arrays

Floats = np.ndarray[Any, np.dtype[np.float32]]

_PER_CALL = 256
_SAVE_EVERY = 2_000


class QueryLog:
    """Algorithm R over distinct raw query vectors; the same vector twice counts once while it is held."""

    def __init__(self, path: Path, size: int, dim: int) -> None:
        self._path = path
        self.size = size
        self._lock = Lock()
        self._data = np.empty((0, dim), dtype=np.float32)
        self._keys: list[int] = []
        self._known: set[int] = set()
        self.seen = 0
        """Distinct queries offered so far, as far as that can be told."""
        self._unsaved = 0

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, vectors: Floats) -> None:
        """Take note of queries; of a large batch a sample."""
        if len(vectors) > _PER_CALL:
            vectors = vectors[np.random.default_rng().choice(len(vectors), _PER_CALL, replace=False)]
        with self._lock:
            for vector in vectors:
                self._offer(vector)
            self._unsaved += len(vectors)
            due = self._unsaved >= _SAVE_EVERY
            self._unsaved = 0 if due else self._unsaved
        if due:
            self.save()

    def _offer(self, vector: Floats) -> None:
        key = xxhash.xxh3_64_intdigest(np.ascontiguousarray(vector, dtype=np.float32).tobytes())
        if key in self._known:
            return
        self.seen += 1
        place = len(self._keys)
        if place >= self.size:
            place = int(random.random() * self.seen)
            if place >= self.size:
                return
            self._known.discard(self._keys[place])
            self._keys[place] = key
        else:
            if place == len(self._data):
                grown = np.empty((min(self.size, max(64, 2 * place)), self._data.shape[1]), dtype=np.float32)
                grown[:place] = self._data
                self._data = grown
            self._keys.append(key)
        self._known.add(key)
        self._data[place] = vector

    def sample(self) -> Floats:
        """What is held ``(n, dim)``."""
        with self._lock:
            return self._data[: len(self._keys)].copy()

    def save(self) -> None:
        """Keep it over a restart. It is a sample: a disk that refuses costs no query."""
        held = self.sample()
        try:
            replace_arrays(self._path, {"queries": held}, {"size": self.size, "seen": self.seen})
        except (OSError, NearfieldError):
            return

    @classmethod
    def load(cls, path: Path, dim: int) -> QueryLog | None:
        """The log that was saved, or None where there is none that fits."""
        try:
            arrays, meta = open_arrays(path)
            held = np.array(arrays["queries"], dtype=np.float32)
            if held.ndim != 2 or held.shape[1] != dim or not np.isfinite(held).all():
                return None
            log = cls(path, int(meta["size"]), dim)
            log.add_all(held)
            log.seen = max(int(meta["seen"]), len(log))
            return log
        except (OSError, Corrupt, KeyError, ValueError, TypeError):
            return None

    def add_all(self, vectors: Floats) -> None:
        """Take note of every one of these queries."""
        with self._lock:
            for vector in vectors:
                self._offer(vector)
