"""ONNX models with their tokenizer, as sentence-transformers and text-embeddings-inference lay them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tokenizers

from nearfield.errors import InvalidRequest

_MODELS = ("model.onnx", "onnx/model.onnx", "model_quantized.onnx", "onnx/model_quantized.onnx")


class OnnxModel:
    """A directory with ``model.onnx`` (or ``onnx/model.onnx``) and ``tokenizer.json``, run on the CPU."""

    def __init__(self, directory: str | Path, *, max_length: int, threads: int | None) -> None:
        root = Path(directory)
        found = [root / name for name in _MODELS if (root / name).is_file()]
        if not found or not (root / "tokenizer.json").is_file():
            raise InvalidRequest(
                "a model is a directory with model.onnx and tokenizer.json", field="model", hint=f"looked in {root}"
            )
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        self.path = found[0]
        self._session = onnxruntime.InferenceSession(
            str(found[0]), sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {each.name for each in self._session.get_inputs()}
        self._tokenizer = tokenizers.Tokenizer.from_file(str(root / "tokenizer.json"))
        self._tokenizer.enable_truncation(max_length)
        self._tokenizer.enable_padding()

    def run(self, texts: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return the first output for texts or pairs of texts, and the attention mask (n, tokens)."""
        encoded = self._tokenizer.encode_batch(list(texts))
        mask = np.array([each.attention_mask for each in encoded], np.int64)
        arrays = {
            "input_ids": np.array([each.ids for each in encoded], np.int64),
            "attention_mask": mask,
            "token_type_ids": np.array([each.type_ids for each in encoded], np.int64),
        }
        output = self._session.run(None, {name: a for name, a in arrays.items() if name in self._inputs})[0]
        return np.asarray(output, np.float64), mask
