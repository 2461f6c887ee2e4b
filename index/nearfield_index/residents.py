"""Which fields of a collection lie on the device, in which form: put there in the background, dropped with their
segments. A cache: what does not fit or fails is answered by the CPU, as everything is without a device."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np

from nearfield_index.backends.base import Lists, Space
from nearfield_index.backends.gpu.cagra import Cagra
from nearfield_index.backends.gpu.device import Device
from nearfield_index.backends.gpu.flat import GpuFlat, GpuFlatHalf
from nearfield_index.backends.gpu.gathered import Gathered
from nearfield_index.backends.gpu.health import DeviceFailed, Unfit
from nearfield_index.backends.gpu.ivf import GpuIvf, GpuIvfPq
from nearfield_index.backends.gpu.searcher import OnDevice
from nearfield_index.execution.device import DeviceFace, DeviceField
from nearfield_index.quality.on_device import curves, measured
from nearfield_index.schema import Metric
from nearfield_index.segments.part import FieldPart, Floats
from nearfield_index.segments.segment import Segment
from nearfield_index.storage.vectors import MappedVectors

_log = logging.getLogger(__name__)

# Past so many rows a scan of all is no longer cheap, and an index is made beside it.
_SCANNED_ROWS = 2_000_000
_RETRY_S = 60.0
_INDEXES: dict[str, type[OnDevice]] = {"cagra": Cagra, "ivf": GpuIvf, "ivfpq": GpuIvfPq}


@dataclass(frozen=True)
class Forms:
    """What a field becomes: a scanned matrix, the same for rows picked out, an index; each may be left out."""

    flat: type[GpuFlat] | None = None
    gathered: type[Gathered] | None = None
    index: type[OnDevice] | None = None

    @property
    def kinds(self) -> tuple[type[OnDevice], ...]:
        return tuple(kind for kind in (self.flat, self.gathered, self.index) if kind is not None)


class Residents:
    """The fields of one collection on one device. Changed by the maintenance thread."""

    def __init__(self, device: Device | None) -> None:
        self._device = device
        self._lock = Lock()
        self._faces: dict[tuple[str, str], tuple[DeviceFace, list[OnDevice]]] = {}
        self._not_before: dict[tuple[str, str], float] = {}

    @property
    def wanted(self) -> bool:
        """Whether there is a device for segments to lie on, and it works."""
        return self._device is not None and self._device.options.form != "none" and self._device.health.up

    def due(self, segments: Sequence[Segment]) -> bool:
        """Whether something of these (all there are) should lie there and does not, or lies there of others."""
        return self.wanted and (
            bool(self._gone(segments))
            or any(
                (segment.name, name) not in self._faces and self._may_try((segment.name, name))
                for segment in segments
                for name, part in segment.fields.items()
                if self.suits(segment, part)
            )
        )

    def _gone(self, segments: Sequence[Segment]) -> set[str]:
        return {segment for segment, _ in [*self._faces]} - {segment.name for segment in segments}

    def _may_try(self, key: tuple[str, str]) -> bool:
        return time.monotonic() >= self._not_before.get(key, 0.0)

    def suits(self, segment: Segment, part: FieldPart) -> bool:
        """Whether a field is one for the device: of an indexed segment, and too large to be nothing for the CPU."""
        if self._device is None or segment.head.state != "indexed":
            return False
        return part.matrix.nbytes >= self._device.options.least_bytes

    def put(
        self, segment: Segment, name: str, part: FieldPart, sample: Floats, step: Callable[[float], None]
    ) -> DeviceFace | None:
        """A field on the device, measured, or what was put there before; None where it stays on the CPU."""
        key = segment.name, name
        if key in self._faces:
            return self._faces[key][0]
        if self._device is None or not self.wanted or not self.suits(segment, part) or not self._may_try(key):
            return None
        self._not_before[key] = time.monotonic() + _RETRY_S
        rows, columns = part.matrix.shape
        forms = chosen(self._device, rows, columns, part.metric)
        if not forms.kinds:
            _log.info(
                "segment %s stays on the CPU: it does not fit what is left of %s", segment.name, self._device.name
            )
            return None
        made: list[OnDevice] = []
        try:
            face = self._made(self._device, forms, part, sample, step, made)
        except DeviceFailed as error:
            self._close(made)
            if isinstance(error, Unfit):
                self._not_before[key] = np.inf
            _log.warning("segment %s stays on the CPU: %s", segment.name, error)
            return None
        except BaseException:
            self._close(made)
            raise
        with self._lock:
            self._faces[key] = face, made
        return face

    def _made(
        self,
        device: Device,
        forms: Forms,
        part: FieldPart,
        sample: Floats,
        step: Callable[[float], None],
        made: list[OnDevice],
    ) -> DeviceFace:
        lists = part.lists or Lists(np.array([0, len(part)]), part.matrix[:1])
        space = Space(part.metric, MappedVectors(part.matrix, part.flat, part.matrix.nbytes, ()), lists)
        scanned: dict[str, OnDevice] = {}
        index: OnDevice | None = None
        for kind in forms.kinds:
            opened = kind(space, device)
            made.append(opened)
            if kind is forms.index:
                index = opened
            else:
                scanned["flat_on" if isinstance(opened, GpuFlat) else "gathered_on"] = opened
        field = measured(DeviceField.of(part, **scanned), sample)
        known = None if index is None else curves(field, index, sample, step)
        return DeviceFace(device, field, index, known)

    def drop(self, segments: Sequence[str]) -> None:
        """Free what segments that are gone had there."""
        with self._lock:
            gone = [self._faces.pop(key)[1] for key in [*self._faces] if key[0] in segments]
            kept = [(key, at) for key, at in self._not_before.items() if key[0] not in segments]
            # Where something is gone, there is room again.
            self._not_before = {key: at for key, at in kept if not gone or at == np.inf}
        for made in gone:
            self._close(made)

    def sweep(self, segments: Sequence[Segment]) -> None:
        """Free what is not of these segments, which are all there are."""
        if gone := self._gone(segments):
            self.drop([*gone])

    def close(self) -> None:
        """Free everything."""
        self.drop([segment for segment, _ in self._faces])

    def _close(self, made: Sequence[OnDevice]) -> None:
        for each in made:
            each.close()


def chosen(device: Device, rows: int, columns: int, metric: Metric) -> Forms:
    """The forms for a field, by what was asked for, by its size and by the memory that is left."""
    wanted = device.options.form
    left = device.most_bytes - device.bytes_held

    def fits(forms: Forms) -> bool:
        return _most_bytes(forms.kinds, rows, columns, metric) <= left

    flat: type[GpuFlat] = GpuFlat if metric is Metric.L2 else GpuFlatHalf
    scans = [Forms(flat)]
    if Gathered.available():
        scans = [Forms(flat, Gathered), *scans, Forms(None, Gathered)]
    scanned = next((each for each in scans if fits(each)), None)
    indexes: list[type[OnDevice]] = []
    if wanted in _INDEXES:
        indexes = [_INDEXES[wanted]]
    elif wanted == "auto" and (rows > _SCANNED_ROWS or scanned is None):
        indexes = [Cagra, GpuIvf, GpuIvfPq]
    # Everything, then without a second matrix, then without any, then smaller indexes.
    for index in indexes:
        for scan in (*scans, Forms()):
            if fits(replace(scan, index=index)):
                return replace(scan, index=index)
    return scanned if scanned is not None and wanted in ("auto", "flat") else Forms()


def _most_bytes(kinds: Sequence[type[OnDevice]], rows: int, columns: int, metric: Metric) -> int:
    """What these take at most while they are made, one after the other."""
    held = most = 0
    for kind in kinds:
        held += kind.bytes_needed(rows, columns, metric)
        most = max(most, held + kind.bytes_to_make(rows, columns))
    return most
