"""The anchor queries of a reranker on disk: texts and vectors, written once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson

from nearfield_index.errors import Corrupt
from nearfield_index.ranking.anchors import fingerprint
from nearfield_index.storage.arrays import open_arrays, write_arrays

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class AnchorSet:
    """``texts`` and their raw ``vectors`` ``(n, dim)`` in the collection's space."""

    texts: list[str]
    vectors: Floats

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.texts, self.vectors)

    def save(self, path: Path) -> None:
        raw = np.frombuffer(orjson.dumps(self.texts), np.uint8)
        write_arrays(path, {"texts": raw, "vectors": self.vectors}, {"fingerprint": self.fingerprint})

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises :class:`Corrupt` when it is not what was written."""
        try:
            arrays, meta = open_arrays(path)
            made = cls(orjson.loads(arrays["texts"].tobytes()), np.array(arrays["vectors"], np.float32))
            good = made.fingerprint == meta["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Corrupt("the anchor queries cannot be read") from error
        if not good:
            raise Corrupt("the anchor queries fail their checksum")
        return made
