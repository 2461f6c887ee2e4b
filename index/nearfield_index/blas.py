"""numpy's matrix products on one thread, where they are small: OpenBLAS wakes all cores for any of them, and on a busy
machine the waiting for each other takes many times as long as the work."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from numpy.linalg import _umath_linalg

_PREFIXES = ("scipy_openblas", "openblas")
_SUFFIXES = ("64_", "")


def _functions() -> tuple[Any, Any] | None:
    """How to set and get OpenBLAS's number of threads; None where numpy stands on another library."""
    try:
        library = ctypes.CDLL(_umath_linalg.__file__)  # symbols of what it is linked with are found, too
    except (OSError, TypeError):
        return None
    for prefix in _PREFIXES:
        for suffix in _SUFFIXES:
            put = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
            get = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
            if put is not None and get is not None:
                return put, get
    return None


_FOUND = _functions()
_guard = Lock()
_inside = 0
_usual = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, numpy's matrix products take one thread. The setting is the process's: meanwhile others' do, too."""
    global _inside, _usual
    if _FOUND is None:
        yield
        return
    put, get = _FOUND
    with _guard:
        if _inside == 0:
            _usual = int(get())
            put(1)
        _inside += 1
    try:
        yield
    finally:
        with _guard:
            _inside -= 1
            if _inside == 0:
                put(_usual)
