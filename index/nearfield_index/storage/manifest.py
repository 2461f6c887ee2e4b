"""The one list of live segments, replaced atomically: the rename is the commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import xxhash

from nearfield_index.errors import Corrupt
from nearfield_index.storage.atomic import replace_file

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """Live segments as (id, checksum of its ``segment.json``), complete up to ``sequence``; and by vector field the
    file of the hubness fit in force, whose name holds its checksum."""

    generation: int
    sequence: int
    segments: tuple[tuple[str, str], ...]
    fits: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read it back. Raises :class:`Corrupt` when it is missing bytes, damaged or of a newer format."""
        try:
            envelope = orjson.loads(path.read_bytes())
            body = envelope["manifest"]
            if envelope["xxh3"] != _digest(body):
                raise Corrupt("the manifest fails its checksum")
            if body["format"] != FORMAT:
                raise Corrupt(f"the manifest has format {body['format']}, this version reads {FORMAT}")
            segments = tuple((s["id"], s["xxh3"]) for s in body["segments"])
            return cls(body["generation"], body["sequence"], segments, dict(body.get("fits", {})))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Corrupt("the manifest cannot be read") from error

    def write(self, path: Path) -> None:
        """Publish it: after this returns, a crash finds this list."""
        body: dict[str, object] = {
            "format": FORMAT,
            "generation": self.generation,
            "sequence": self.sequence,
            "segments": [{"id": name, "xxh3": checksum} for name, checksum in self.segments],
        }
        if self.fits:
            body["fits"] = dict(self.fits)
        replace_file(path, orjson.dumps({"manifest": body, "xxh3": _digest(body)}))


def _digest(body: object) -> str:
    return xxhash.xxh3_64_hexdigest(orjson.dumps(body, option=orjson.OPT_SORT_KEYS))
