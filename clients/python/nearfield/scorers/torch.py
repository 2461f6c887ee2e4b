"""A cross-encoder in this process through sentence-transformers (extra ``[rerank-torch]``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentence_transformers
import torch

from nearfield.errors import InvalidRequest


class TorchCrossEncoder:
    """``model`` is a name or directory that sentence-transformers loads. Scores are raw logits.

    Raises :class:`InvalidRequest` where it cannot be loaded.
    """

    def __init__(
        self,
        *,
        model: str | Path,
        version: str | None = None,
        max_length: int = 512,
        device: str | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            self._model = sentence_transformers.CrossEncoder(str(model), max_length=max_length, device=device)
        except (OSError, ValueError) as error:
            why = str(error).partition("\n")[0]
            raise InvalidRequest(f"{model} is no cross-encoder that can be loaded: {why}", field="model") from error
        self.version = version or f"sentence-transformers:{model}"
        self.limits = {"max_in_flight": 1, "timeout_s": 60.0, **(limits or {})}

    def score(self, pairs: Sequence[tuple[str, str]], *, timeout_s: float) -> list[float]:
        found = self._model.predict(
            list(pairs),
            batch_size=max(1, len(pairs)),
            activation_fn=torch.nn.Identity(),
            show_progress_bar=False,
        )
        return [float(value) for value in found]
