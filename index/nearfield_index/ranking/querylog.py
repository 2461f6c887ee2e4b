"""A bounded, uniform sample of the reranked queries of a collection: their texts and vectors, per vector field."""

from __future__ import annotations

import random
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import orjson

from nearfield_index.errors import Corrupt
from nearfield_index.storage.arrays import open_arrays, replace_arrays

Floats = np.ndarray[Any, np.dtype[np.float32]]

_SIZE = 2_000


class QueryLog:
    """Algorithm R over distinct texts, at most 2,000 a field."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._texts: dict[str, list[str]] = {}
        self._vectors: dict[str, list[Floats]] = {}
        self._seen: dict[str, int] = {}

    def add(self, field: str, text: str, vector: Floats) -> None:
        """Take note of a query."""
        with self._lock:
            texts = self._texts.setdefault(field, [])
            vectors = self._vectors.setdefault(field, [])
            self._seen[field] = self._seen.get(field, 0) + 1
            if text in texts:
                return
            if len(texts) < _SIZE:
                texts.append(text)
                vectors.append(vector.copy())
                return
            place = int(random.random() * self._seen[field])
            if place < _SIZE:
                texts[place], vectors[place] = text, vector.copy()

    def sample(self, field: str) -> tuple[list[str], Floats]:
        """What is held: texts, and vectors ``(n, dim)``."""
        with self._lock:
            texts = list(self._texts.get(field, []))
            held = self._vectors.get(field, [])
            return texts, np.array(held, np.float32).reshape(len(texts), len(held[0]) if held else 0)

    def save(self, path: Path) -> None:
        """Keep the sample over a restart."""
        with self._lock:
            if not any(self._texts.values()):
                return
            arrays: dict[str, Any] = {n: np.array(v, np.float32) for n, v in self._vectors.items() if v}
            texts = orjson.dumps({n: self._texts[n] for n in arrays})
            seen = {n: self._seen[n] for n in arrays}
        replace_arrays(path, arrays | {"texts": np.frombuffer(texts, np.uint8)}, {"seen": seen})

    def load(self, path: Path) -> None:
        """Take back what :meth:`save` wrote, as far as it is readable: it is only a sample."""
        try:
            arrays, meta = open_arrays(path)
            texts = orjson.loads(arrays.pop("texts").tobytes())
            for name, vectors in arrays.items():
                if len(texts[name]) == len(vectors) and np.isfinite(vectors).all():
                    self._texts[name] = [str(text) for text in texts[name]]
                    self._vectors[name] = [np.array(row) for row in vectors]
                    self._seen[name] = int(meta["seen"][name])
        except (OSError, Corrupt, ValueError, KeyError, TypeError):
            return
