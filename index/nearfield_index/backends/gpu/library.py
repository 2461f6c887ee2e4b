"""The seam to FAISS on a GPU: which names are used, and the one place where a filter is handed to an index.

**The trap.** From Python every GPU config says ``use_cuvs = False`` by default, also in the cuVS build, and an index
made that way takes a selector and silently ignores it: rows that the filter excludes come back. So configs are made by
:func:`config` alone, which says ``use_cuvs``, and searches are run by :class:`Held` alone, which refuses a filter where
the index would not heed it, and looks at what came back.
"""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from typing import Any

import faiss
import numpy as np

from nearfield_index.backends.base import Floats, Rows
from nearfield_index.bitmap import Bitmap

_CUDA_RUNTIMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_CHECKED_QUERIES = 64


class FilterIgnored(RuntimeError):
    """An index would ignore, or has ignored, the filter it was given."""


def installed() -> Any:
    """The FAISS of this process; which wheel it is, :func:`problem` tells."""
    return faiss


def problem(library: Any, number: int) -> str | None:
    """Why device ``number`` cannot be used, with what to do about it; None where it can."""
    if not hasattr(library, "StandardGpuResources"):
        if find_spec("libcuvs") is not None:  # which only FAISS for GPUs brings along
            return (
                "another FAISS wheel was installed over the one for GPUs, and all own the same package: uninstall them "
                "all, then install nearfield[server-gpu] alone"
            )
        return "the installed FAISS cannot use a GPU: install nearfield[server-gpu] in place of nearfield[server]"
    if not hasattr(library, "GpuIndexCagra"):
        return "the installed FAISS has no cuVS, and its GPU indexes ignore filters: install nearfield[server-gpu]"
    count = library.get_num_gpus()
    if count == 0:
        return "FAISS sees no GPU: check that nvidia-smi lists one and that this process or container may use it"
    if number >= count:
        return f"FAISS sees {count} GPU(s), numbered from 0"
    return None


def torch_name(library: Any, number: int) -> str:
    """What PyTorch calls the device; whatever stands in for FAISS has its tensors on the CPU."""
    return f"cuda:{number}" if library is faiss else "cpu"


def memory(number: int) -> tuple[int, int]:
    """Free and total bytes of a device, as the CUDA runtime that FAISS has loaded tells. Raises OSError."""
    for name in _CUDA_RUNTIMES:
        try:
            runtime = ctypes.CDLL(name)
        except OSError:
            continue
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        if runtime.cudaSetDevice(number) == 0 and runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0:
            return free.value, total.value
        raise OSError(f"the CUDA runtime does not tell the memory of device {number}")
    raise OSError("no CUDA runtime is loaded")


def config(library: Any, kind: str, number: int, **settings: Any) -> Any:
    """The config object ``kind`` (``GpuIndexFlatConfig`` ..) for a device, with cuVS always on."""
    made = getattr(library, kind)()
    made.device = number
    made.use_cuvs = True
    if hasattr(made, "flatConfig"):  # of the coarse quantizer of inverted lists
        made.flatConfig.device = number
        made.flatConfig.use_cuvs = True
    for name, value in settings.items():
        if not hasattr(made, name):
            raise AttributeError(f"{kind} has no setting {name}")
        setattr(made, name, value)
    return made


def brute_force(
    library: Any, resources: Any, number: int, queries: Floats, rows: Floats, k: int, *, l2: bool
) -> tuple[Floats, Rows]:
    """Distances and rows ``(n, k)`` without an index; with k -1 all distances ``(n, len(rows))`` and no rows.

    Arrays are contiguous float32. It knows no filter.
    """
    asked = library.GpuDistanceParams()
    asked.device = number
    asked.use_cuvs = True
    asked.metric = library.METRIC_L2 if l2 else library.METRIC_INNER_PRODUCT
    asked.k, asked.dims = k, rows.shape[1]
    asked.numVectors, asked.numQueries = len(rows), len(queries)
    asked.vectors, asked.queries = library.swig_ptr(rows), library.swig_ptr(queries)
    found = np.empty((len(queries), len(rows) if k < 0 else k), dtype=np.float32)
    at = np.empty((len(queries), max(0, k)), dtype=np.int64)
    asked.outDistances = library.swig_ptr(found)
    if k > 0:
        asked.outIndices = library.swig_ptr(at)
    library.bfKnn(resources, asked)
    return found, at


class Held:
    """A FAISS index on a device and the config it was made with. Every selector passes here and nowhere else."""

    def __init__(self, library: Any, index: Any, made_with: Any, *, half: bool = False) -> None:
        """``half``: it holds float16 and is asked in it."""
        self.index = index
        self._library = library
        self._more = {"numeric_type": library.Float16} if half else {}
        # cuVS must be asked for, and the device must be new enough for it: an old one falls back without a word.
        self._heeds = bool(made_with.use_cuvs) and bool(library.should_use_cuvs(made_with))

    def search(
        self, queries: Floats, k: int, *, within: Bitmap | None, parameters: str, **settings: Any
    ) -> tuple[Floats, Rows]:
        """Distances and rows of FAISS, -1 where there is none. ``parameters`` names the class of ``settings``.

        Raises :class:`FilterIgnored` rather than let a filter be ignored.
        """
        if within is not None:
            if not self._heeds:
                raise FilterIgnored(f"{type(self.index).__name__} without cuVS ignores filters")
            settings["sel"] = self._library.IDSelectorBitmap(within.bits())
        params = getattr(self._library, parameters)(**settings) if settings else None
        found, rows = self.index.search(queries, k, params=params, **self._more)
        # cuVS counts rows in 32 bits, and what is missing may come back as the largest number of them.
        rows = np.where((rows >= 0) & (rows < self.index.ntotal), rows, -1)
        if within is not None:
            looked = rows[:_CHECKED_QUERIES]
            if not within.test(looked[looked >= 0]).all():
                raise FilterIgnored(f"{type(self.index).__name__} returned rows that do not pass the filter")
        return found, rows
