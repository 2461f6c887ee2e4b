"""How many threads a computation may take: what OpenMP allows this process, which heeds affinity and environment."""

from __future__ import annotations

import os

import faiss


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
