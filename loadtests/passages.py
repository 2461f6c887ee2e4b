"""Passages of the Debian descriptions as vectors: real text, cut as those do who search in long texts.

Embedded with the static text model that lies beside the data: the mean of a table's rows for the tokens of a text, less
the mean of all, at length one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_ENDS = re.compile(r"(?<=[.!?:;])\s+|\n\s*\n|\n\s*[-*+o]\s+")
_SHORTEST = 25  # characters; less is a heading or a rest
_TOKENS = 256
_BATCH = 4_096


def passages(data: Path) -> NDArray[np.float32]:
    """Every sentence, and every two that follow each other, once each, in the order of the texts: ``(n, 256)``.

    Needs pyarrow and tokenizers.
    """
    import pyarrow.parquet

    bodies = pyarrow.parquet.read_table(data / "debian_attributes.parquet", columns=["body"])["body"].to_pylist()
    texts: dict[str, None] = {}
    for body in bodies:
        sentences = [" ".join(each.split()) for each in _ENDS.split(body or "")]
        sentences = [each for each in sentences if len(each) >= _SHORTEST]
        pairs = [f"{one} {other}" for one, other in pairwise(sentences)]
        texts.update(dict.fromkeys(sentences + pairs))
    return np.concatenate(list(_embedded(list(texts), data)))


def _embedded(texts: list[str], data: Path) -> Iterator[NDArray[np.float32]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(data / "static_text_tokenizer.json"))
    tokenizer.no_padding()
    with np.load(data / "static_text_model.npz") as held:
        table, mean = held["table"].astype(np.float32), held["mean"].astype(np.float32)
    for start in range(0, len(texts), _BATCH):
        encoded = tokenizer.encode_batch(texts[start : start + _BATCH], add_special_tokens=False)
        tokens = [each.ids[:_TOKENS] for each in encoded if each.ids]
        sizes = np.array([len(each) for each in tokens])
        sums = np.add.reduceat(table[np.concatenate(tokens)], np.cumsum(sizes) - sizes, axis=0)
        rows = sums / sizes[:, None] - mean
        yield (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
