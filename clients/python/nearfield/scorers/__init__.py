"""Expensive relevance models to search under: HTTP endpoints and models in this process.

``make`` builds what the server's configuration names; ``nearfield.open(path, scorers={"name": make("tei", ..)})`` takes
the same objects, or any function ``f(query, texts) -> scores``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from nearfield.errors import InvalidRequest

HTTP_KINDS = ("tei", "cohere", "jina", "pairs")
LOCAL_KINDS = ("onnx", "sentence-transformers", "late-interaction")

_LOCAL = {
    "onnx": ("nearfield.scorers.onnx", "OnnxCrossEncoder", "rerank"),
    "sentence-transformers": ("nearfield.scorers.torch", "TorchCrossEncoder", "rerank-torch"),
    "late-interaction": ("nearfield.scorers.late", "LateInteraction", "rerank"),
}


class ScorerError(Exception):
    """A call that failed. ``retryable``: whether another try may help; ``sent`` False: the model saw no pair."""

    def __init__(self, message: str, *, retryable: bool = True, sent: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.sent = sent


def make(kind: str, *, limits: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """Return a scorer of this kind. Raises InvalidRequest for an unknown kind or one whose extra is missing."""
    if kind in HTTP_KINDS:
        from nearfield.scorers.http import HttpScorer

        return HttpScorer(kind, limits=limits, **options)
    if kind not in _LOCAL:
        raise InvalidRequest(f"a scorer's kind is one of: {', '.join(HTTP_KINDS + LOCAL_KINDS)}", field="kind")
    module, name, extra = _LOCAL[kind]
    try:
        made = getattr(import_module(module), name)
    except ModuleNotFoundError as missing:
        raise InvalidRequest(
            f"a scorer of kind {kind} needs {missing.name}, which is not installed",
            code="extra_missing",
            field="kind",
            hint=f'pip install "nearfield[{extra}]"',
        ) from missing
    return made(limits=limits, **options)
