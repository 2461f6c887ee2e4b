"""Background work of a collection: merge segments, build their indexes, calibrate. Runs in the maintenance thread."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np
import orjson

from nearfield_index.backends.gpu.device import Device
from nearfield_index.backends.gpu.health import DeviceFailed
from nearfield_index.backends.space import stored
from nearfield_index.errors import Busy, NearfieldError
from nearfield_index.execution.cost import Calibration
from nearfield_index.jobs import Job
from nearfield_index.maintenance import Maintenance
from nearfield_index.points import Attributes, PointId
from nearfield_index.quality import calibration
from nearfield_index.quality.layouts import LayoutPolicy
from nearfield_index.quality.reservoir import QueryReservoir
from nearfield_index.quality.workload import WORTH, WorkloadLog
from nearfield_index.residents import Residents
from nearfield_index.schema import Schema
from nearfield_index.segments.compaction import SegmentSize, plan_merge
from nearfield_index.segments.live import LiveSegments
from nearfield_index.segments.normal import NormalField
from nearfield_index.segments.part import FieldPart, Keys
from nearfield_index.segments.segment import Segment
from nearfield_index.segments.writer import FieldRows, SegmentRows, pick_kind, write_indexed
from nearfield_index.storage.rows import RowStore
from nearfield_index.threads import BACKGROUND

_log = logging.getLogger(__name__)

_READ_ROWS = 2_000
_LONGEST_WAIT_S = 600.0

Floats = np.ndarray[Any, np.dtype[np.float32]]


class Builder:
    """Keeps a collection's segments few, indexed and calibrated; owns the calibrations."""

    def __init__(
        self,
        name: str,
        store: RowStore,
        live: LiveSegments,
        reservoir: QueryReservoir,
        log: WorkloadLog,
        turn: AbstractContextManager[object],
        maintenance: Maintenance,
        device: Device | None = None,
    ) -> None:
        """``turn`` is the collection's write turn: held for the moment in which a view is replaced."""
        self._name = name
        self._store = store
        self._live = live
        self._reservoir = reservoir
        self._log = log
        self.layouts = LayoutPolicy(live, log)
        self._turn = turn
        self._maintenance = maintenance
        self._device = device
        self.residents = Residents(device)
        self._guard = Lock()
        self._wanted = 0
        self._new_queries = False
        self._new_workload = False
        self._unindexed = store.unindexed is not None
        self._least_gain = WORTH
        self._failures = 0
        self._not_before = 0.0
        self.calibrations: dict[tuple[str, str], Calibration] = {}
        if device is not None:
            device.health.returned.append(self.schedule)  # what could not be put there meanwhile
        for segment, _ in live.view.segments:
            self._adopt(segment.name, calibration.load(self._calibration_path(segment.name)))

    # ------------------------------------------------------------------ asking for work

    def schedule(self) -> None:
        """Queue a compaction when the policy finds something to merge, an alter left rows unindexed, or a segment was
        never calibrated."""
        if time.monotonic() >= self._not_before and (
            self._unindexed or plan_merge(self._sizes(), full=False) or self._uncalibrated()
        ):
            self._submit("compact", self._compact, priority=5)
        elif self.residents.due(self._segments()):
            self._submit("upload", self._upload_all, priority=6)

    def rewritten(self) -> None:
        """An alter made all rows flat, under the write turn. They are indexed by the optimize it asks for, or, where
        that does not end well, by the next compaction, over a restart too."""
        self._unindexed = True

    def schedule_calibration(self) -> None:
        """Queue a new calibration on the queries seen so far."""
        self._submit("calibrate", self._recalibrate, priority=7)

    def _submit(self, kind: str, work: Callable[[Job], None], *, priority: int) -> None:
        try:
            self._maintenance.submit(kind, self._name, work, priority=priority)
        except Busy as error:  # nobody asked for it, and a later write or query will
            _log.warning("no %s of %s for now: %s", kind, self._name, error)

    def optimize(self, *, new_queries: bool = False, new_workload: bool = False, least_gain: float = WORTH) -> Job:
        """Queue (or join) the job after which every point written before this call is indexed and calibrated, under the
        schema of now, with ``new_queries`` on the samples of now; rows are laid out where that saves at least
        ``least_gain``. With ``new_workload`` the job tells where the log is too short to go by."""
        with self._guard:
            self._wanted = self._store.sequence
            self._new_queries |= new_queries
            self._new_workload |= new_workload
            self._least_gain = min(self._least_gain, least_gain)
            return self._maintenance.submit("optimize", self._name, self._optimize, priority=1)

    def state(self, segment: str) -> dict[str, Calibration]:
        """What is known about a segment, by field."""
        return {field: c for (name, field), c in self.calibrations.items() if name == segment}

    # ------------------------------------------------------------------ the work

    def _compact(self, job: Job) -> None:
        job.joinable = False  # who asks from now on may have seen what this job will not see
        if time.monotonic() < self._not_before:
            return
        try:
            with self._turn:
                schema, full = self._live.schema, self._unindexed
                if full:
                    self._live.seal()
            while names := plan_merge(self._sizes(), full=full):
                if self._merge(job, names, lambda done: job.report(0.9 * done)):
                    full = False
            with self._turn:
                self._note_indexed(schema)
            self._calibrate(job, self._uncalibrated())
            self._upload_all(job)
        except Exception:
            # What failed would fail again at once, and every write asks for it: wait longer each time.
            self._failures += 1
            self._not_before = time.monotonic() + min(_LONGEST_WAIT_S, 2.0**self._failures)
            raise
        self._failures = 0

    def _note_indexed(self, schema: Schema) -> None:
        """What an alter left flat is indexed, unless another came meanwhile. Under the write turn."""
        if self._unindexed and self._live.schema is schema:
            self._store.set_indexed()
            self._unindexed = False

    def _upload_all(self, job: Job) -> None:
        """Put on the device what should lie there and does not."""
        segments = self._segments()
        self.residents.sweep(segments)
        for segment in segments:
            self._upload(job, segment)

    def _segments(self) -> list[Segment]:
        return [segment for segment, _ in self._live.view.segments]

    def close(self) -> None:
        """Free what lies on the device. Jobs have ended."""
        if self._device is not None and self.schedule in self._device.health.returned:
            self._device.health.returned.remove(self.schedule)
        self.residents.close()

    def _upload(self, job: Job, segment: Segment) -> None:
        for name, part in segment.fields.items():
            if not self.residents.wanted or not self.residents.suits(segment, part):
                continue
            job.report(job.progress, "uploading")
            sample = self._reservoir.sample(name)
            known = self.calibrations.get((segment.name, name))
            if known is None:  # it has no index, only prices
                known = calibration.calibrate(part, sample, threads=BACKGROUND, step=lambda done: None)
            face = self.residents.put(segment, name, part, sample, lambda done: job.report(job.progress))
            if face is not None:
                self._adopt(segment.name, {name: replace(known, device=face)})

    def _recalibrate(self, job: Job) -> None:
        job.joinable = False
        self._calibrate(job, [segment for segment, _ in self._live.view.segments])

    def _optimize(self, job: Job) -> None:
        while True:
            job.report(0.0, "sealing")
            with self._guard:
                self._new_queries = False
                workload, self._new_workload = self._new_workload, False
                least_gain, self._least_gain = self._least_gain, WORTH
            with self._turn:
                self._live.seal()
                sealed, schema = self._store.sequence, self._live.schema
            names = plan_merge(self._sizes(), full=True)
            before = {segment.name for segment, _ in self._live.view.segments}
            whole = not names or self._merge(job, names, lambda done: job.report(0.6 * done), least_gain)
            job.report(0.6, "laying out")
            due, others = self.layouts.due(
                before.difference(names), self.calibrations, least=least_gain, check=lambda: job.report(0.6)
            )
            if others:
                _tell(job, "layouts_not_worth_it", others)
            if workload and (ignored := self.layouts.ignored()):
                job.result = (job.result or {}) | {"workload_ignored": ignored}
            for name in due:
                if any(segment.name == name for segment, _ in self._live.view.segments):  # not indexed anew meanwhile
                    whole &= self._merge(job, [name], lambda done: job.report(0.6 + 0.25 * done), least_gain)
            # A segment built just now was calibrated on the way.
            self._calibrate(job, [s for s, _ in self._live.view.segments if s.name in before])
            self._upload_all(job)
            with self._turn:
                if whole:
                    self._note_indexed(schema)
                self._store.checkpoint(truncate=True)
            with self._guard:
                # An alter replaces segments without a new sequence, and whoever joined meanwhile saw its schema.
                unchanged = whole and self._live.schema is schema
                if unchanged and self._wanted <= sealed and not self._new_queries:
                    job.joinable = False
                    return

    def _sizes(self) -> list[SegmentSize]:
        return [
            SegmentSize(s.name, s.head.state == "indexed", s.count, dead.count, s.head.nbytes, self._is_current(s))
            for s, dead in self._live.view.segments
        ]

    def _is_current(self, segment: Segment) -> bool:
        spec = self._live.schema.index
        return all(
            field["kind"] == pick_kind(spec, field["rows"], field["columns"])
            and (field["kind"] == "exact" or (field["m"], field["ef_construction"]) == (spec.m, spec.ef_construction))
            for field in segment.head.fields.values()
        )

    def _merge(self, job: Job, names: Sequence[str], step: Callable[[float], None], least_gain: float = WORTH) -> bool:
        """Rewrite segments into one indexed segment from the row store, and put it in their place. Returns whether it
        came there: segments may vanish meanwhile, when an alter has all rows indexed anew."""
        job.report(0.0, "reading")
        chosen = [(s, dead) for s, dead in self._live.view.segments if s.name in names]
        if len(chosen) < len(names):
            return False
        keys = [s.pks if not dead.count else s.pks[(~dead).rows()] for s, dead in chosen]
        rows = self._read(np.sort(np.concatenate(keys)), lambda done: step(0.1 * done))
        segment, layout = None, None
        refused: list[dict[str, Any]] = []
        propose = self.layouts.proposer(
            [s for s, _ in chosen],
            self.calibrations,
            least=least_gain,
            check=lambda: job.report(job.progress),
            refused=refused.append,
        )
        if len(rows.ids):
            job.report(0.0, "building")
            sequence = max(s.head.sequence for s, _ in chosen)
            where = self._live.segment_path()
            name = write_indexed(
                where,
                rows,
                self._live.schema,
                sequence=sequence,
                threads=BACKGROUND,
                step=lambda done: step(0.1 + 0.8 * done),
                propose=propose,
            )
            try:
                segment = self._live.fitted(Segment(where / name))
                self._calibrate_segment(job, segment, lambda done: step(0.9 + 0.1 * done))
                if segment.layout is not None:
                    job.report(job.progress, "measuring the layout")
                    layout = self.layouts.measure(
                        [p for p in self._live.view.parts if p.part.name in names],
                        segment,
                        self.calibrations,
                        check=lambda: job.report(job.progress),
                    )
            except BaseException:
                self.residents.drop([name])
                shutil.rmtree(where / name, ignore_errors=True)
                raise
        with self._turn:
            replaced = self._live.replace(names, segment)
        self.residents.drop(names)
        self._forget_gone()
        if replaced and segment is not None:
            if segment.layout is not None:
                _tell(job, "layouts", [{"segment": segment.name, **(layout or {})}])
            elif propose is not None:
                gain = refused[-1] if refused else None
                _tell(job, "layouts_not_worth_it", [{"segment": segment.name, "expected_gain": gain}])
        self.keep_log()
        return replaced

    def _forget_gone(self) -> None:
        segments = self._segments()
        there = {segment.name for segment in segments}
        self.calibrations = {key: c for key, c in self.calibrations.items() if key[0] in there}
        self.residents.sweep(segments)

    def keep_log(self) -> None:
        """Save the workload as of now, or delete it where it is switched off. After a crash the next merge should know
        what this one knew."""
        try:
            self._log.save(self._live.segment_path().with_name("workload"))
        except (NearfieldError, OSError) as error:  # only a sample
            _log.warning("the workload log of %s was not kept: %s", self._name, error)

    def _read(self, pks: Keys, step: Callable[[float], None]) -> SegmentRows:
        """Live points of these row keys from the row store, vectors in stored form."""
        found_pks: list[int] = []
        ids: list[PointId] = []
        attributes: list[Attributes] = []
        blocks: dict[str, list[tuple[Keys, Floats]]] = {}
        for start in range(0, len(pks), _READ_ROWS):
            points = self._live.readable(pks[start : start + _READ_ROWS])
            base = len(ids)
            vkeys = [p.vkey for p in points]
            for name, spec in self._live.schema.vectors.items():
                positions, matrix = self._live.vectors(name, vkeys, spec.dim)
                if len(positions):
                    blocks.setdefault(name, []).append((positions + base, stored(matrix, spec.metric)))
            found_pks += [p.pk for p in points]
            ids += [p.id for p in points]
            attributes += [orjson.loads(p.attributes) for p in points]
            step((start + len(points)) / max(1, len(pks)))
        fields = {
            name: FieldRows(np.concatenate([r for r, _ in parts]), np.concatenate([m for _, m in parts]))
            for name, parts in blocks.items()
        }
        return SegmentRows(np.array(found_pks, dtype=np.int64), ids, attributes, fields)

    # ------------------------------------------------------------------ calibration

    def _uncalibrated(self) -> list[Segment]:
        return [
            segment
            for segment, _ in self._live.view.segments
            if any((segment.name, name) not in self.calibrations for name, _ in _searched(segment))
        ]

    def _calibrate(self, job: Job, segments: Sequence[Segment]) -> None:
        for segment in segments:
            try:
                self._calibrate_segment(job, segment, lambda done: job.report(job.progress))
            except NearfieldError:
                if segment.name in {s.name for s in self._segments()}:
                    raise
        self._forget_gone()  # an alter may have replaced them meanwhile

    def _calibrate_segment(self, job: Job, segment: Segment, step: Callable[[float], None]) -> None:
        job.report(job.progress, "calibrating")
        measured = {}
        for name, part in _searched(segment):
            field, _, version = name.partition("@")
            sample = self._reservoir.sample(field)
            if version:
                sample = self._live.fits[field].probes if field in self._live.fits else sample[:0]
            judge = None if version else self._judge(job, segment, name, part, sample)
            measured[name] = _calibrated(part, sample, step, judge)
        if measured:
            calibration.save(self._calibration_path(segment.name), measured)
            self._adopt(segment.name, measured)
        self._upload(job, segment)

    def _judge(self, job: Job, segment: Segment, name: str, part: FieldPart, sample: Floats) -> FieldPart | None:
        """The field on the device, where exact answers come quicker."""
        face = self.residents.put(segment, name, part, sample, lambda done: job.report(job.progress))
        return None if face is None else face.field

    def calibrate_face(
        self,
        segment: Segment,
        field: str,
        face: FieldPart,
        version: str,
        probes: Floats,
        step: Callable[[float], None],
    ) -> None:
        """Calibrate normalised search of a segment for a fit that is not in force yet, unless that is done."""
        name = f"{field}@{version}"
        if face.backend is None or (segment.name, name) in self.calibrations:
            return
        known = self.state(segment.name)
        known[name] = calibration.calibrate(face, probes, threads=BACKGROUND, step=step)
        calibration.save(self._calibration_path(segment.name), known)
        self._adopt(segment.name, {name: known[name]})

    def forget_faces(self, versions: set[str]) -> None:
        """Drop the calibrations of fits that are no longer in force."""
        self.calibrations = {
            key: known
            for key, known in self.calibrations.items()
            if "@" not in key[1] or key[1].partition("@")[2] in versions
        }

    def _adopt(self, segment: str, measured: dict[str, Calibration]) -> None:
        # Replaced whole: queries read the mapping without a lock.
        self.calibrations = self.calibrations | {(segment, name): c for name, c in measured.items()}

    def _calibration_path(self, segment: str) -> Any:
        return self._live.segment_path() / segment / "calibration.json"


def _tell(job: Job, key: str, more: list[dict[str, Any]]) -> None:
    """Add to what the job tells, a segment once."""
    segments = {each["segment"] for each in more}
    held = [each for each in (job.result or {}).get(key, []) if each["segment"] not in segments]
    job.result = (job.result or {}) | {key: [*held, *more]}


def _calibrated(part: FieldPart, sample: Floats, step: Callable[[float], None], judge: FieldPart | None) -> Calibration:
    if judge is not None:
        try:
            return calibration.calibrate(part, sample, threads=BACKGROUND, step=step, judge=judge)
        except DeviceFailed as error:
            _log.warning("calibrating on the CPU, for the device failed: %s", error)
    return calibration.calibrate(part, sample, threads=BACKGROUND, step=step)


def _searched(segment: Segment) -> Iterator[tuple[str, FieldPart]]:
    """What of a segment has an index, raw and normalised, under the name it is calibrated by."""
    for name, part in segment.fields.items():
        if part.backend is not None:
            yield name, part
        if isinstance(part.normal, NormalField) and part.normal.backend is not None:
            yield f"{name}@{part.normal.version}", part.normal
