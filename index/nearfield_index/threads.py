"""How many threads a computation may take: what OpenMP allows this process, which heeds affinity and environment."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import faiss

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


def _allowed() -> int:
    limit = os.environ.get("OMP_THREAD_LIMIT", "")
    most = int(faiss.omp_get_max_threads())
    # Asking for more than the limit makes BLAS wait for threads that never come.
    return max(1, min(most, int(limit)) if limit.isdigit() and int(limit) > 0 else most)


CORES = _allowed()
"""For large batches, which are worth all of them."""

PARALLEL = 16
"""From so many queries on, all cores are worth waking."""

BACKGROUND = max(1, CORES - 1)
"""For builds, which leave one to those who wait."""


def in_threads(work: Callable[[_Item], _Found], items: Sequence[_Item], threads: int = BACKGROUND) -> Iterator[_Found]:
    """What ``work`` makes of each item, in order, computed by ``threads`` at a time: numpy lets others work meanwhile.
    Whoever stops listening stops the work."""
    if threads == 1 or len(items) < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="nearfield-work") as pool:
        ahead: deque[Future[_Found]] = deque()  # no more than keeps all threads at work, for results take memory
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for each in ahead:
                each.cancel()
