"""Indexes written by the libraries they belong to, whose own errors do not say that the disk is full."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import faiss

from nearfield_index.errors import StorageFailed
from nearfield_index.storage.atomic import storage_error


def write_index(index: Any, path: Path, *, links_only: bool = False) -> None:
    """Write a FAISS index to a new file, which the caller syncs; ``links_only`` leaves out the vectors of a graph.

    Raises :class:`OutOfSpace` and :class:`StorageFailed`. What was written until then is the caller's to remove.
    """
    try:
        with path.open("wb") as file:  # FAISS's own writer would raise RuntimeError, whatever happened
            faiss.write_index(
                index, faiss.PyCallbackIOWriter(file.write), faiss.IO_FLAG_SKIP_STORAGE if links_only else 0
            )
    except OSError as error:
        raise storage_error(error, f"writing {path.name}") from error


def check_whole(path: Path, size: int) -> None:
    """Raise the errors of :func:`write_index` unless a file that was written unchecked has its ``size`` in bytes."""
    try:
        if path.stat().st_size == size:
            return
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # fails as the writing did, and says why
    except OSError as error:
        raise storage_error(error, f"writing {path.name}") from error
    raise StorageFailed(f"the disk refused an operation (writing {path.name}): only a part of it was written")
