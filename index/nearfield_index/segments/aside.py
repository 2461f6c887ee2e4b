"""Files beside a segment that are no part of it: what follows from its rows and something else, and is made again where
it is missing or damaged. A name holds the checksum of its file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nearfield_index.errors import Corrupt, NearfieldError
from nearfield_index.storage.arrays import open_arrays, write_arrays
from nearfield_index.storage.atomic import certified_name, is_certified

Arrays = Mapping[str, np.ndarray[Any, Any]]

_log = logging.getLogger(__name__)

_Made = TypeVar("_Made")


def keep(directory: Path, name: str, arrays: Arrays, meta: Mapping[str, object]) -> None:
    """Write ``*-name``. A disk that refuses costs a computation at the next start, no more."""
    temporary = directory / f"{name}.tmp"
    try:
        _, checksum = write_arrays(temporary, arrays, meta)
        certified_name(temporary, checksum, name)
    except NearfieldError as error:
        temporary.unlink(missing_ok=True)
        _log.warning("%s of segment %s was not kept: %s", name, directory.name, error)


def kept(directory: Path, name: str, make: Callable[[Arrays, Mapping[str, Any]], _Made | None]) -> _Made | None:
    """What ``make`` makes of ``*-name``; None where there is nothing whole, or it makes nothing of it. Such files are
    removed. ``make`` may raise KeyError and ValueError."""
    for path in files(directory, name):
        try:
            if is_certified(path):
                made = make(*open_arrays(path))
                if made is not None:
                    return made
        except (OSError, Corrupt, KeyError, ValueError) as error:
            _log.warning("%s of segment %s cannot be read: %s", path.name, directory.name, error)
        path.unlink(missing_ok=True)
    return None


def files(directory: Path, name: str) -> list[Path]:
    """The files of that name, whatever their checksums."""
    return list(directory.glob(f"*-{name}"))
