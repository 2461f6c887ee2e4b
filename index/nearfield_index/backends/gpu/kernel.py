"""Matrix work of builds on the device, in bounded blocks: all products of two sets, the nearest of a small set.

One kernel (brute force without an index) for k-means, assignments to clusters and banks of queries. Where no device is
open, or it fails in the middle, the CPU does the same from where it stopped.
"""

from __future__ import annotations

import faiss
import numpy as np

from nearfield_index.backends.base import Floats, Rows
from nearfield_index.backends.gpu import library as seam
from nearfield_index.backends.gpu.device import Device, for_builds
from nearfield_index.backends.gpu.health import DeviceFailed

_LEAST_WORK = 2_000_000_000  # multiplications; less is done before a device has been asked
_CPU_ROWS = 65_536


def products(rows: Floats, queries: Floats) -> Floats:
    """Every inner product, ``(len(rows), len(queries))``."""
    device = _for(rows, queries)
    if device is None:
        found: Floats = rows @ queries.T
        return found
    out = np.empty((len(rows), len(queries)), dtype=np.float32)
    start, step = 0, _block(device, queries, len(queries))
    try:
        while start < len(rows):
            out[start : start + step] = _run(device, rows[start : start + step], queries, -1, l2=False)[0]
            start += step
    except DeviceFailed:
        np.matmul(rows[start:], queries.T, out=out[start:])
    return out


def nearest(queries: Floats, rows: Floats) -> Rows:
    """For each of many queries the nearest, by L2 distance, of a few rows, ``(n,)``."""
    out = np.empty(len(queries), dtype=np.int64)
    start = 0
    device = _for(queries, rows)
    if device is not None:
        step = _block(device, rows, 2)
        try:
            while start < len(queries):
                out[start : start + step] = _run(device, queries[start : start + step], rows, 1, l2=True)[1][:, 0]
                start += step
        except DeviceFailed:
            start = min(start, len(queries))
    if start < len(queries):
        flat = faiss.IndexFlatL2(rows.shape[1])
        flat.add(np.ascontiguousarray(rows))
        for first in range(start, len(queries), _CPU_ROWS):
            block = np.ascontiguousarray(queries[first : first + _CPU_ROWS])
            out[first : first + len(block)] = flat.search(block, 1)[1][:, 0]
    return out


def _for(many: Floats, few: Floats) -> Device | None:
    """The device, where the work is worth it and the smaller set fits its scratch memory."""
    if len(many) * len(few) * few.shape[1] < _LEAST_WORK:
        return None
    device = for_builds()
    return device if device is not None and few.nbytes <= device.scratch_bytes // 4 else None


def _block(device: Device, few: Floats, outputs: int) -> int:
    """How many vectors of the larger set go in one call."""
    most: int = device.scratch_bytes // (16 * (few.shape[1] + outputs))
    return max(1, most)


def _run(device: Device, queries: Floats, rows: Floats, k: int, *, l2: bool) -> tuple[Floats, Rows]:
    asked, held = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(rows, np.float32)
    try:
        return device.worker.run(
            lambda: seam.brute_force(device.faiss, device.resources, device.number, asked, held, k, l2=l2)
        )
    except DeviceFailed:
        raise
    except Exception as error:
        device.worker.failed(error)
        raise DeviceFailed(str(error)) from error
