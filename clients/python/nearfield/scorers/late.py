"""Late interaction in this process: the mean over query tokens of the best cosine with an item's tokens (MaxSim)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nearfield.scorers.encoding import OnnxModel

_BATCH = 32


class LateInteraction:
    """``model`` is a directory with an encoder (token vectors as first output) and ``tokenizer.json``; extra
    ``[rerank]``. Token vectors of items are kept, up to ``cache_bytes``."""

    def __init__(
        self,
        *,
        model: str | Path,
        version: str | None = None,
        max_length: int = 256,
        threads: int | None = None,
        query_prefix: str = "",
        item_prefix: str = "",
        cache_bytes: int = 256 * 1024 * 1024,
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        self._model = OnnxModel(model, max_length=max_length, threads=threads)
        size = self._model.path.stat().st_size
        self.version = version or f"late-interaction:{self._model.path.parent.name}:{size}"
        self.limits = {"max_in_flight": 1, "timeout_s": 60.0, **(limits or {})}
        self._query_prefix, self._item_prefix = query_prefix, item_prefix
        self._most = cache_bytes
        self._held: OrderedDict[str, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def score(self, pairs: Sequence[tuple[str, str]], *, timeout_s: float) -> list[float]:
        queries = self._tokens({self._query_prefix + query for query, _ in pairs})
        items = self._tokens({self._item_prefix + text for _, text in pairs})
        return [
            float((queries[self._query_prefix + query] @ items[self._item_prefix + text].T).max(axis=1).mean())
            for query, text in pairs
        ]

    def _tokens(self, texts: set[str]) -> dict[str, np.ndarray]:
        """Return unit vectors of the tokens of each text, (tokens, d) float32."""
        with self._lock:
            found = {text: self._held[text] for text in texts if text in self._held}
            for text in found:
                self._held.move_to_end(text)
        missing = sorted(texts - found.keys(), key=len)
        for start in range(0, len(missing), _BATCH):
            part = missing[start : start + _BATCH]
            output, mask = self._model.run(part)
            lengths = np.maximum(np.linalg.norm(output, axis=2, keepdims=True), 1e-12)
            unit = (output / lengths).astype(np.float32)
            found |= {text: unit[n][mask[n] > 0] for n, text in enumerate(part)}
        self._keep({text: found[text] for text in missing})
        return found

    def _keep(self, made: Mapping[str, np.ndarray]) -> None:
        with self._lock:
            for text, tokens in made.items():
                if text not in self._held:
                    self._held[text] = tokens
                    self._bytes += tokens.nbytes
            while self._held and self._bytes > self._most:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
