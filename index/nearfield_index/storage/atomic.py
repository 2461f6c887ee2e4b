"""Files are written once, here: temporary name, fsync, rename, fsync of the directory, checksum beside it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import xxhash

from nearfield_index.errors import OutOfSpace, StorageFailed

Buffer = bytes | bytearray | memoryview

_READ_BLOCK = 4 * 1024 * 1024


def checksum_of(path: Path) -> str:
    """XXH3-64 of a whole file as 16 hex digits. Raises ``OSError`` when it cannot be read."""
    digest = xxhash.xxh3_64()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_READ_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the bytes of a file that somebody else wrote durable."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_file(path: Path, parts: Iterable[Buffer]) -> tuple[int, str]:
    """Write ``parts`` to a new file and sync it; returns (bytes, checksum). The name is durable after
    :func:`sync_directory`. Meant for files inside a directory that is not published yet."""
    digest = xxhash.xxh3_64()
    size = 0
    try:
        with path.open("wb") as file:
            for part in parts:
                file.write(part)
                digest.update(part)
                size += len(memoryview(part).cast("B")) if not isinstance(part, bytes) else len(part)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise storage_error(error, f"writing {path.name}") from error
    return size, digest.hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Replace ``path`` atomically and durably: after a crash it holds the old bytes or the new ones."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write_file(temporary, [content])
    except (StorageFailed, OutOfSpace):
        with suppress(OSError):  # a full disk needs the room
            temporary.unlink()
        raise
    try:
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise storage_error(error, f"replacing {path.name}") from error


def publish_directory(temporary: Path, final: Path) -> None:
    """Give a finished directory its name, durably. Every file in it must have been synced."""
    try:
        sync_directory(temporary)
        temporary.rename(final)
        sync_directory(final.parent)
    except OSError as error:
        raise storage_error(error, f"publishing {final.name}") from error


def storage_error(error: OSError, doing: str) -> StorageFailed | OutOfSpace:
    """The engine's error for a failed disk operation."""
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return OutOfSpace(f"the disk is full ({doing})", hint="free space, or delete points")
    return StorageFailed(f"the disk refused an operation ({doing}): {error.strerror}")


def certified_name(temporary: Path, checksum: str, name: str) -> str:
    """Give a finished file the name ``<checksum>-<name>`` in its directory, durably; returns that name."""
    final = temporary.with_name(f"{checksum}-{name}")
    try:
        temporary.replace(final)
        sync_directory(final.parent)
    except OSError as error:
        raise storage_error(error, f"publishing {final.name}") from error
    return final.name


def is_certified(path: Path) -> bool:
    """Whether a file holds the bytes that its name was given for."""
    try:
        return checksum_of(path) == path.name.partition("-")[0]
    except OSError:
        return False
