"""How one segment finds neighbours: one small protocol, and a table of what implements it."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from nearfield_index.backends.base import Backend
from nearfield_index.errors import InvalidRequest

_BACKENDS = {
    "cagra": "nearfield_index.backends.gpu.cagra:Cagra",
    "exact": "nearfield_index.backends.exact:Exact",
    "gpu-flat": "nearfield_index.backends.gpu.flat:GpuFlat",
    "gpu-flat16": "nearfield_index.backends.gpu.flat:GpuFlatHalf",
    "gpu-gather": "nearfield_index.backends.gpu.gathered:Gathered",
    "gpu-ivf": "nearfield_index.backends.gpu.ivf:GpuIvf",
    "gpu-ivfpq": "nearfield_index.backends.gpu.ivf:GpuIvfPq",
    "hnsw": "nearfield_index.backends.hnsw:Hnsw",
    "hnswlib": "nearfield_index.backends.hnswlib_graph:HnswlibGraph",
    "ivf": "nearfield_index.backends.ivf:Ivf",
}


def backend(kind: str) -> type[Backend]:
    """The backend class of that kind. Raises :class:`InvalidRequest` when its package is not installed."""
    module, name = _BACKENDS[kind].split(":")
    try:
        return cast(type[Backend], getattr(import_module(module), name))
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f"the {kind} index needs a package that is not installed",
            code="extra_missing",
            field="index.kind",
            hint=f'pip install "nearfield[{kind}]"',
        ) from error
