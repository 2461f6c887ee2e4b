"""CAGRA (arXiv 2308.15136): a graph built on the device, searched there, or served by the CPU as HNSW.

The file of a segment holds the graph in the very format of ``backends.hnsw``, whoever built it; what lies on the device
is made from it again, or anew, at any time.
"""

from __future__ import annotations

import logging
from math import gcd
from pathlib import Path
from typing import Any, ClassVar

import faiss

from nearfield_index.backends.base import BuildParams, Floats, Rows, Space, Step
from nearfield_index.backends.gpu import library as seam
from nearfield_index.backends.gpu.device import Device, current
from nearfield_index.backends.gpu.health import DeviceFailed
from nearfield_index.backends.gpu.searcher import LEAST_ROWS, OnDevice, Plain
from nearfield_index.backends.hnsw import Hnsw
from nearfield_index.bitmap import Bitmap
from nearfield_index.schema import Metric
from nearfield_index.storage.indexes import write_index

_log = logging.getLogger(__name__)

_UNCONNECTED = "MST"  # in what cuVS says then, of the tree that it connects a graph by

_DEGREE = 32
_MOST_WIDER, _ALIKE = 12, 8
_STEP = 32
_MOST_K = 512


class Cagra(OnDevice):
    """Graph search on the device; ``effort`` is itopk_size, never below k. Takes filters while it walks.

    Under cosine rows lie there in float16: a walk is bound by the bytes it reads. Products are those of the rounded
    rows then.
    """

    kind: ClassVar[str] = "cagra"
    efforts: ClassVar[tuple[int, ...]] = (32, 64, 96, 128, 192, 256, 384, 512)
    is_graph: ClassVar[bool] = True
    least: ClassVar[int] = LEAST_ROWS
    most_k: ClassVar[int] = _MOST_K

    def __init__(self, space: Space, device: Device) -> None:
        self._plain = Plain.of(space) if len(space.vectors.matrix) >= LEAST_ROWS else None
        super().__init__(space, device)

    @classmethod
    def build(cls, path: Path, space: Space, params: BuildParams, *, threads: int, step: Step) -> None:
        """Build on the device that is open, and write what the CPU serves as HNSW.

        Few rows are built on the CPU. Raises :class:`DeviceFailed`; nothing is written then.
        """
        if len(space.vectors.matrix) < LEAST_ROWS:
            return Hnsw.build(path, space, params, threads=threads, step=step)
        device = current()
        plain = Plain.of(space)
        needed = _needed(len(plain.matrix), plain.columns, 2 * params.m)
        step(0.0)
        if not device.take(needed):
            raise DeviceFailed(f"{needed:,} bytes for a build are more than is left of the memory share")
        try:
            graph = device.worker.run(lambda: served_by_cpu(device, plain, params.m))
        except DeviceFailed:
            raise
        except Exception as error:
            raise DeviceFailed(f"the graph could not be built: {error}") from error
        finally:
            device.give_back(needed)
        step(1.0)
        write_index(graph, path, links_only=True)

    @classmethod
    def bytes_needed(cls, rows: int, columns: int, metric: Metric) -> int:
        return _needed(rows, columns + 1, _DEGREE, 2 if metric is Metric.COSINE else 4)

    @property
    def plain(self) -> Plain:
        """The rows as the graph has them."""
        assert self._plain is not None
        return self._plain

    def _put(self) -> seam.Held | str:
        if self._plain is None:
            return "too few rows: they are scanned"
        half = self._plain.metric is Metric.COSINE
        index, made_with = _trained(self.device, self._plain, _DEGREE, half=half)
        # On the device now. What is left here is asked for form only.
        self._plain = self._plain.without_rows()
        return seam.Held(self.device.faiss, index, made_with, half=half)

    def call(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        asked, times = self.plain.asked(queries)
        width = -(-max(effort, k) // _STEP) * _STEP
        held: seam.Held = self.held
        found, rows = held.search(asked, k, within=within, parameters="SearchParametersCagra", itopk_size=width)
        return self.plain.products(asked, times, found), rows


def served_by_cpu(device: Device, plain: Plain, m: int) -> Any:
    """A graph of ``2 m`` links a row built on the device, as the HNSW graph that the CPU walks; without its rows."""
    index, _ = _trained(device, plain, 2 * m, half=False)
    columns, metric = plain.columns, _metric(plain)
    copied = faiss.IndexHNSWCagra(columns, m, metric)
    copied.base_level_only = False  # with its upper levels it is walked as any HNSW graph
    index.copyTo(copied)
    graph = faiss.IndexHNSWFlat(columns, m, metric)
    graph.hnsw = copied.hnsw
    graph.ntotal = copied.ntotal
    return graph


def _trained(device: Device, plain: Plain, degree: int, *, half: bool) -> tuple[Any, Any]:
    """In the worker's thread. Whoever copies the graph must keep the rows until then.

    Of rows that are all alike cuVS may say that it cannot connect them: then the graph is taken as it comes.
    """
    try:
        return _built(device, plain, degree, half=half, connected=True)
    except RuntimeError as error:
        if _UNCONNECTED not in str(error):
            raise
    # Here, where the first try's memory is free again.
    _log.info("a graph is built again, without the guarantee that all of it is connected")
    return _built(device, plain, degree, half=half, connected=False)


def _built(device: Device, plain: Plain, degree: int, *, half: bool, connected: bool) -> tuple[Any, Any]:
    library = device.faiss
    made_with = seam.config(
        library,
        "GpuIndexCagraConfig",
        device.number,
        graph_degree=degree,
        intermediate_graph_degree=intermediate_degree(len(plain.matrix), degree),
        build_algo=library.graph_build_algo_NN_DESCENT,
        guarantee_connectivity=connected,
    )
    index = library.GpuIndexCagra(device.resources, plain.columns, _metric(plain), made_with)
    index.train(plain.matrix, numeric_type=library.Float16 if half else library.Float32)
    return index, made_with


def intermediate_degree(rows: int, degree: int) -> int:
    """Links of a row in the graph that is pruned to ``degree``: at least twice as many, and no number at which cuVS
    begins with the same neighbours for many rows and ends with a graph of low recall (its issue 2273).

    Neighbours to begin with are windows of a shuffled list of all rows, by 32 and ``wide`` apart. Where that has a
    large divisor in common with the length of the list, windows repeat.
    """

    def alike(links: int) -> int:
        wide = -(-int(links * (1.0 if links <= 32 else 1.3)) // 32) * 32
        return gcd(wide, -(-rows // (wide // 32)))

    tried = range(2 * degree, _MOST_WIDER * degree)
    return next((links for links in tried if alike(links) <= _ALIKE), None) or min(tried, key=alike)


def _needed(rows: int, columns: int, degree: int, each: int = 4) -> int:
    """Bytes of rows, graph, and the graph of :func:`intermediate_degree` that it is pruned from."""
    return rows * (each * columns + 4 * (degree + intermediate_degree(rows, degree)))


def _metric(plain: Plain) -> int:
    return int(faiss.METRIC_INNER_PRODUCT if plain.metric is Metric.COSINE else faiss.METRIC_L2)
