"""A GPU as the engine holds it: its worker thread, its resources, its memory, its state."""

from __future__ import annotations

import logging
from threading import Lock
from typing import Any

import numpy as np

from nearfield_index.backends.gpu import library as seam
from nearfield_index.backends.gpu.health import DeviceFailed, Health
from nearfield_index.backends.gpu.setting import CPU, DeviceOptions
from nearfield_index.backends.gpu.worker import Worker
from nearfield_index.errors import InvalidRequest

_log = logging.getLogger(__name__)

_SCRATCH_BYTES = 1024 * 1024 * 1024
_SCRATCH_SHARE = 8
_PROBE = 64

_guard = Lock()
_open: dict[int, Device] = {}


class Device:
    """One CUDA device, shared by every engine of this process. ``resources`` belongs to the worker's thread."""

    def __init__(self, library: Any, options: DeviceOptions) -> None:
        """Raises :class:`DeviceFailed` or what the driver raises where it does not work."""
        self.faiss = library
        self.number = options.number
        self.name = f"cuda:{self.number}"
        self.torch_name = seam.torch_name(library, self.number)
        self.options = options
        self.holders = 0
        free, total = seam.memory(self.number)
        self.most_bytes = min(int(total * options.memory_share), free)
        self.scratch_bytes = min(_SCRATCH_BYTES, self.most_bytes // _SCRATCH_SHARE)
        # FAISS's own, and as much again that cuVS and PyTorch take for a call: nobody tells them where.
        self._taken = 2 * self.scratch_bytes
        self._lock = Lock()
        self.health = Health(self.name)
        self.worker = Worker(self.name, self.health, self._probe)
        try:
            self.resources: Any = self.worker.run(self._start)
            self.worker.run(self._probe)
        except BaseException:
            self.worker.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether a search sent now would be answered soon."""
        return self.health.up and self.worker.free

    @property
    def bytes_held(self) -> int:
        """Bytes taken on the device, scratch memory included."""
        return self._taken

    def take(self, nbytes: int) -> bool:
        """Reserve memory; False where the share has no room for it."""
        with self._lock:
            if self._taken + nbytes > self.most_bytes:
                return False
            self._taken += nbytes
            return True

    def give_back(self, nbytes: int) -> None:
        """Memory that was reserved and is free again."""
        with self._lock:
            self._taken -= nbytes

    def release(self) -> None:
        """One holder less; the last one ends the worker."""
        with _guard:
            self.holders -= 1
            if self.holders:
                return
            if _open.get(self.number) is self:
                del _open[self.number]
        self.worker.close()

    def to_wire(self) -> dict[str, Any]:
        """What ``/readyz`` and ``/metrics`` tell."""
        return {
            "name": self.name,
            "state": "ready" if self.health.up else "down",
            "reason": self.health.reason,
            "failures": self.health.failures,
            "calls": self.worker.calls,
            "queries": self.worker.queries,
            "waiting": self.worker.waiting,
            "bytes": self.bytes_held,
            "most_bytes": self.most_bytes,
        }

    def _start(self) -> Any:
        resources = self.faiss.StandardGpuResources()
        resources.setTempMemory(self.scratch_bytes)
        return resources

    def _probe(self) -> None:
        """A search of known outcome: memory can be had, kernels run, answers are right."""
        rows = np.eye(_PROBE, dtype=np.float32)
        made_with = seam.config(self.faiss, "GpuIndexFlatConfig", self.number)
        index = self.faiss.GpuIndexFlat(self.resources, _PROBE, self.faiss.METRIC_INNER_PRODUCT, made_with)
        index.add(rows)
        _, found = index.search(rows, 1)
        if not np.array_equal(found[:, 0], np.arange(_PROBE)):
            raise DeviceFailed("a search of known outcome came out wrong")


def open_device(options: DeviceOptions) -> Device | None:
    """The device the options name, or None for the CPU; :meth:`Device.release` it in the end.

    ``auto`` is silent where there is no GPU. Raises :class:`InvalidRequest` where a device that was named is missing.
    """
    if options.device == CPU:
        return None
    library = seam.installed()
    why = seam.problem(library, options.number)
    if why is not None:
        if options.required:
            raise _missing(options, why)
        return None
    with _guard:
        found = _open.get(options.number)
        if found is None:
            try:
                found = Device(library, options)
            except Exception as error:  # whatever a driver does
                if options.required:
                    raise _missing(options, f"it does not work: {error}") from error
                _log.warning("a GPU is there but does not work, so the CPU computes: %s", error)
                return None
            _open[options.number] = found
        found.holders += 1
        return found


def for_builds() -> Device | None:
    """The open device, where builds may use it and it works. A device is the process's, as its cores are."""
    with _guard:
        found = next(iter(_open.values()), None)
    return found if found is not None and found.options.builds and found.health.up else None


def current() -> Device:
    """The device that an engine holds open. Raises :class:`DeviceFailed` where there is none."""
    with _guard:
        if not _open:
            raise DeviceFailed("no device is open")
        return next(iter(_open.values()))


def _missing(options: DeviceOptions, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"device is {options.device}, but {why}; or set device to auto or cpu",
        code="device_missing",
        field="device",
        value=options.device,
    )
