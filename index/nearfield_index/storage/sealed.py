"""A small JSON file that proves itself: format, checksum, content; replaced atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import xxhash

from nearfield_index.errors import Corrupt
from nearfield_index.storage.atomic import replace_file

FORMAT = 1


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Replace the file with this content, durably."""
    raw = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    head = {"format": FORMAT, "xxh3": xxhash.xxh3_64_hexdigest(raw)}
    replace_file(path, orjson.dumps(head | {"content": orjson.Fragment(raw)}))


def read_sealed(path: Path) -> dict[str, Any]:
    """The content. Raises :class:`Corrupt` for anything but an undamaged file of this format."""
    try:
        read = orjson.loads(path.read_bytes())
        content: dict[str, Any] = read["content"]
        raw = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
        good = read["format"] == FORMAT and read["xxh3"] == xxhash.xxh3_64_hexdigest(raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path.name} cannot be read") from error
    if not good:
        raise Corrupt(f"{path.name} fails its checksum or has another format")
    return content
