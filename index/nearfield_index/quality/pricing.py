"""What answers cost on this machine: exact scans, and a query by itself beside one among many."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import faiss
import numpy as np

from nearfield_index.bitmap import Bitmap
from nearfield_index.execution.cost import Prices
from nearfield_index.execution.curves import Reach
from nearfield_index.execution.exact import exact_rows
from nearfield_index.quality.probes import SEED
from nearfield_index.segments.part import FieldPart

Floats = np.ndarray[Any, np.dtype[np.float32]]

TIMED_WALKS = 64
"""Queries that a search is timed on."""

_TIMED = 8
_GATHERED = 3_000
_USUAL = 0.95
_BATCH = 64


def exact_prices(field: FieldPart, queries: Floats) -> Prices:
    """What exact scans cost on one thread."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    n = len(field)
    random = np.random.default_rng(SEED)
    few = Bitmap.from_rows(n, np.sort(random.permutation(n)[:50]))
    # Other rows each time: those of the last time are still at hand, which is not how filters are asked.
    order = random.permutation(n)
    size = max(1, min(_GATHERED, n // 8))
    some = [Bitmap.from_rows(n, np.sort(order[i * size : (i + 1) * size])) for i in range(min(8, n // size))]
    single = [query.reshape(1, -1) for query in queries[:_TIMED]]
    cycled = np.resize(queries, (3 * _BATCH, queries.shape[1]))
    small, large = ([cycled[i * size : (i + 1) * size] for i in range(3)] for size in (_BATCH // 8, _BATCH))
    call = _timed(field, single, [few])
    whole, gathered = (_timed(field, single, within) - call for within in ([None], some))
    of_small, of_large = (_timed(field, batches, some) for batches in (small, large))
    values = random.permutation(n).astype(np.int32)
    made, marked = [], []
    for _ in range(_TIMED):
        start = time.process_time()
        Bitmap.from_mask(values - np.int32(1) < n // 5)
        middle = time.process_time()
        Bitmap.from_unordered(n, values[: max(1, n // 100)], distinct=True).words()
        made.append((middle - start) * 1e6)
        marked.append((time.process_time() - middle) * 1e6)
    faiss.omp_set_num_threads(threads)
    product = max(0.0, of_large - of_small) / (len(large[0]) - len(small[0]))
    copied = max(0.0, of_small - call - product * len(small[0]))
    return Prices(
        call_us=call,
        scan_us=max(0.0, whole) / n,
        gather_us=max(0.0, gathered) / size,
        copy_us=copied / size,
        product_us=product / size,
        bitmap_us=min(made),
        marked_us=min(marked),
    )


def _timed(field: FieldPart, batches: list[Floats], filters: Sequence[Bitmap | None]) -> float:
    """Microseconds of an exact answer to one of the batches: processor time, which other processes do not touch, and
    the middle of a few."""
    taken = []
    for number, queries in enumerate(batches):
        within = filters[number % len(filters)]
        start = time.process_time()
        exact_rows(field, queries, 10, within)
        taken.append((time.process_time() - start) * 1e6)
    return float(np.median(taken))


def lone_us(search: Callable[[Floats, int], None], queries: Floats, reaches: Sequence[Reach]) -> float:
    """How much more a query takes by itself than among others, in microseconds, with an effort as queries take it."""
    if not reaches:
        return 0.0
    effort = usual_effort(reaches)
    together = one_thread_us(lambda some: search(some, effort), queries)
    return max(0.0, one_by_one_us(lambda some: search(some, effort), queries) - together)


def usual_effort(reaches: Sequence[Reach]) -> int:
    """What most queries take."""
    return next((r.effort for r in reaches if r.recall[0] >= _USUAL), reaches[-1].effort)


def one_by_one_us(search: Callable[[Floats], None], queries: Floats) -> float:
    """Processor time of a query by itself on one thread, the middle of several, in microseconds."""
    return float(np.median([one_thread_us(search, queries[number : number + 1]) for number in range(len(queries))]))


def one_thread_us(search: Callable[[Floats], None], queries: Floats) -> float:
    """Processor time of a query on one thread, in microseconds."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    start = time.thread_time()
    search(queries)
    us = (time.thread_time() - start) * 1e6 / max(1, len(queries))
    faiss.omp_set_num_threads(threads)
    return us
