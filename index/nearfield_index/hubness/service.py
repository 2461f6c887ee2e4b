"""Hubness normalisation of one collection, as the engine sees it: fits, their life, the query log, the monitor."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nearfield_index.errors import Conflict, Corrupt, InvalidRequest, NearfieldError, NotFound
from nearfield_index.hubness import fit as fits
from nearfield_index.hubness.fit import Fit
from nearfield_index.hubness.job import Workplace, fit, rotate
from nearfield_index.hubness.querylog import QueryLog
from nearfield_index.hubness.request import (
    LEAST_BANK,
    FitRequest,
    distinct,
    load_request,
    parse_fit,
    pending_files,
    save_request,
)
from nearfield_index.jobs import Cancelled, Job
from nearfield_index.limits import Limits
from nearfield_index.maintenance import Maintenance
from nearfield_index.points import PointId, check_ids
from nearfield_index.ranking.bias import block_bounds
from nearfield_index.schema import check_object
from nearfield_index.vectors import as_matrix

_log = logging.getLogger(__name__)

Floats = np.ndarray[Any, np.dtype[np.float32]]
Json = dict[str, Any]

_KIND = "hubness"
_FROM_LOG = 200


class Hubness:
    """Every method may be called from any thread; long work runs as jobs of the collection."""

    def __init__(self, name: str, place: Workplace, maintenance: Maintenance, limits: Limits) -> None:
        self._name = name
        self._place = place
        self._maintenance = maintenance
        self._limits = limits
        self._logs: dict[str, QueryLog] = {}
        self.normalised = 0
        """Queries answered with a bias, for metrics."""
        for field, spec in place.live.schema.vectors.items():
            found = QueryLog.load(self._log_path(field), spec.dim)
            if found is not None:
                self._logs[field] = found
        self._sweep()
        for path in pending_files(place.directory):
            self._resume(path)

    # ------------------------------------------------------------------ fits

    def request_fit(self, body: Mapping[str, Any]) -> Job:
        """Check the body of ``PUT .../hubness`` and start its job."""
        field = self._field(body)
        spec = self._place.live.schema.vectors[field]
        request = parse_fit(body, field=field, dim=spec.dim, metric=spec.metric, limits=self._limits)
        self._check_pairs(request)
        if request.bank is None:
            self._open_log(field, request.log)
        version = uuid.uuid4().hex
        save_request(self._place.directory, request, version)
        try:
            return self._submit(request, version)
        except NearfieldError:
            self._forget(field, version)
            raise

    def _field(self, body: Mapping[str, Any]) -> str:
        schema = self._place.live.schema
        name = body.get("field", "vector" if "vector" in schema.vectors else next(iter(schema.vectors)))
        if not isinstance(name, str):
            raise InvalidRequest("must be the name of a vector field", code="unknown_field", field="field")
        schema.field(name)
        return name

    def _check_pairs(self, request: FitRequest) -> None:
        if not request.answers:
            return
        known = {p.id for p in self._place.store.find(dict.fromkeys(request.answers))}
        for number, point_id in enumerate(request.answers):
            if point_id not in known:
                raise InvalidRequest("no point of that id", code="point_not_found", field=f"pairs.ids[{number}]")

    def _open_log(self, field: str, size: int) -> None:
        """Switch the log of a field on, or make it larger; raises :class:`Conflict` while it holds too few."""
        log = self._logs.get(field)
        if log is None or log.size < size:
            larger = QueryLog(self._log_path(field), size, self._place.live.schema.vectors[field].dim)
            larger.add_all(self._place.reservoir.sample(field) if log is None else log.sample())
            self._place.directory.mkdir(exist_ok=True)
            larger.save()
            self._logs = self._logs | {field: larger}
            log = larger
        if len(log) < _FROM_LOG:
            raise Conflict(
                f"the query log is on and holds {len(log)} distinct queries, a fit from it needs {_FROM_LOG}",
                code="not_enough_queries",
                field="bank.log",
                hint="ask again later, or upload a bank",
            )

    def _submit(self, request: FitRequest, version: str) -> Job:
        job = self._start(lambda job: self._fit(job, request, version))
        job.abandoned = lambda: self._forget(request.field, version)
        return job

    def _start(self, work: Callable[[Job], None]) -> Job:
        job = self._maintenance.submit(_KIND, self._name, work, priority=3)
        job.joinable = False  # the next request has a bank of its own
        return job

    def _fit(self, job: Job, request: FitRequest, version: str) -> None:
        if not self._is_pending(request.field, version):
            raise Cancelled  # a newer request took its place, or the fit was dropped
        bank = request.bank
        if bank is None:
            log = self._logs.get(request.field)
            bank = np.empty((0, 1), np.float32) if log is None else log.sample()[: request.log]
            if len(bank) < LEAST_BANK:
                raise Conflict("the query log is empty", code="not_enough_queries", field="bank.log")
        try:
            fit(self._place, job, request, version, bank)
        except Cancelled:
            if not self._maintenance.closing:  # a restart goes on with it, a cancelled one is over
                self._forget(request.field, version)
            raise
        except Exception:
            self._forget(request.field, version)  # it would fail again at every start
            raise
        self._forget(request.field, version)

    def _is_pending(self, field: str, version: str) -> bool:
        for path in pending_files(self._place.directory, field):
            try:
                return load_request(path)[1] == version
            except Corrupt:
                continue
        return False

    def _forget(self, field: str, version: str) -> None:
        if self._is_pending(field, version):
            for path in pending_files(self._place.directory, field):
                path.unlink(missing_ok=True)
        self._sweep()

    def _resume(self, path: Any) -> None:
        try:
            request, version = load_request(path)
            self._place.live.schema.field(request.field)
            self._submit(request, version)
        except NearfieldError as error:
            _log.warning("an unfinished hubness fit of %s is given up: %s", self._name, error)
            path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove the files of fits that are neither in force nor under way."""
        directory = self._place.directory
        kept = set(self._place.live.fit_files.values())
        for path in pending_files(directory):
            try:
                version = load_request(path)[1]
            except Corrupt:
                continue
            kept |= {made.name for made in directory.glob(f"*-fit-{version}-*")}
        fits.sweep(directory, kept)

    def request_rotation(self, body: Mapping[str, Any]) -> Job:
        """Start the job that replaces a sixteenth of the bank by the given queries, or by some of the log."""
        check_object(body, at="body", known=frozenset({"field", "vectors"}))
        field = self._field(body)
        old = self.fit_of(field)
        bounds = block_bounds(len(old.model.bank))
        wanted = bounds[old.next_block + 1] - bounds[old.next_block]
        spec = self._place.live.schema.vectors[field]
        if body.get("vectors") is not None:
            fresh = distinct(
                as_matrix(
                    body["vectors"], dim=spec.dim, at="vectors", metric=spec.metric, max_rows=self._limits.queries
                )
            )
        else:
            log = self._logs.get(field)
            fresh = np.empty((0, spec.dim), np.float32) if log is None else log.sample()
            fresh = fresh[np.random.default_rng().permutation(len(fresh))]
        if len(fresh) < wanted:
            raise InvalidRequest(
                f"{len(fresh)} distinct queries, a block of this bank has {wanted}",
                code="bank_too_small",
                field="vectors",
            )
        version = uuid.uuid4().hex
        return self._start(lambda job: self._rotate(job, field, old.version, fresh[:wanted], version))

    def _rotate(self, job: Job, field: str, before: str, fresh: Floats, version: str) -> None:
        old = self.fit_of(field)
        if old.version != before:
            raise Conflict("another fit took its place meanwhile", code="fit_changed", field="field")
        rotate(self._place, job, field, old, fresh, version)
        self._sweep()

    def fit_of(self, field: str) -> Fit:
        """The fit in force. Raises :class:`NotFound`."""
        found = self._place.live.fits.get(field)
        if not isinstance(found, Fit):
            raise NotFound(
                "this field has no hubness fit", code="no_hubness_fit", field="field", hint="fit one: PUT .../hubness"
            )
        return found

    def describe(self) -> Json:
        """The reports of the fits in force by field; beside them that of the default field, or of the only one."""
        found: Json = {}
        for name in self._place.live.fits:
            log = self._logs.get(name)
            about = None if log is None else {"queries": len(log), "size": log.size}
            found[name] = dict(self.fit_of(name).report) | {"log": about}
        if not found:
            self.fit_of(self._field({}))
        first = self._field({})
        report: Json = found.get(first, next(iter(found.values())))
        return report | {"fields": found}

    def drop(self) -> Json:
        """Search raw again: fits, biases and logs go, work on them ends, nothing stays in quarantine."""
        pending = pending_files(self._place.directory)
        for path in pending:
            path.unlink(missing_ok=True)
        for job in self._maintenance.jobs.list():
            if (job.kind, job.collection) == (_KIND, self._name) and job.active:
                job.cancel()
        logs, self._logs = self._logs, {}
        for name in logs:
            self._log_path(name).unlink(missing_ok=True)
        with self._place.turn:
            dropped = list(self._place.live.fits)
            for name in dropped:
                self._place.live.publish_fit(name, None, "", {})
            self._place.monitor.clear()
            self._place.live.hide(self._place.monitor.held)
        if not (dropped or pending or logs):
            self.fit_of(self._field({}))
        self._place.builder.forget_faces(set())
        self._sweep()
        return {"dropped": True}

    # ------------------------------------------------------------------ the monitor and the log

    def release(self, body: Mapping[str, Any]) -> Json:
        """Let points out of quarantine; the same vectors are not flagged again."""
        check_object(body, at="body", known=frozenset({"ids"}))
        if "ids" not in body:
            raise InvalidRequest("give 'ids'", code="missing", field="ids")
        ids = check_ids(body["ids"], at="ids", limits=self._limits)
        place = self._place
        with place.turn:
            vectors: dict[PointId, list[Any]] = {}
            points = place.store.find(dict.fromkeys(ids))
            for point in points:
                vectors[point.id] = []
            for name, spec in place.live.schema.vectors.items():
                positions, matrix = place.store.vectors(name, [p.vkey for p in points], spec.dim)
                for position, row in zip(positions.tolist(), matrix, strict=True):
                    vectors[points[position].id].append(row)
            count = place.monitor.release(vectors)
            place.live.hide(place.monitor.held)
        return {"released": count}

    def buried(self, dead: Sequence[int]) -> None:
        """Points died, inside the write turn: those in quarantine leave it."""
        if self._place.monitor.forget(dead):
            self._place.live.hide(self._place.monitor.held)

    def note(self, field: str, vectors: Floats) -> None:
        """Take note of live queries where the log is on."""
        if self._logs:
            log = self._logs.get(field)
            if log is not None:
                log.add(vectors)

    def save(self) -> None:
        """Keep the logs over a restart."""
        for log in self._logs.values():
            log.save()

    def alerts(self) -> list[Json]:
        """Points flagged lately."""
        return self._place.monitor.alerts()

    def stats(self) -> Json:
        """Figures for metrics."""
        monitor = self._place.monitor
        return {"flagged": monitor.flagged, "quarantined": len(monitor.held), "normalised": self.normalised}

    def _log_path(self, field: str) -> Any:
        return self._place.directory / f"log-{field}"
