"""A cross-encoder in this process through ONNX Runtime (extra ``[rerank]``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nearfield.scorers.encoding import OnnxModel


class OnnxCrossEncoder:
    """``model`` is a directory with ``model.onnx`` and ``tokenizer.json``. Scores are raw logits: of one label itself,
    of two the second less the first."""

    def __init__(
        self,
        *,
        model: str | Path,
        version: str | None = None,
        max_length: int = 512,
        threads: int | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        self._model = OnnxModel(model, max_length=max_length, threads=threads)
        size = self._model.path.stat()
        self.version = version or f"onnx:{self._model.path.parent.name}:{size.st_size}:{int(size.st_mtime)}"
        self.limits = {"max_in_flight": 1, "max_batch": 32, "timeout_s": 60.0, **(limits or {})}

    def score(self, pairs: Sequence[tuple[str, str]], *, timeout_s: float) -> list[float]:
        logits, _ = self._model.run(pairs)
        logits = logits.reshape(len(pairs), -1)
        found = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        return [float(value) for value in found]
