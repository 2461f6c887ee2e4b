"""A collection: the one object that joins its row store, its live segments and its background work."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import orjson

from nearfield_index.backends.gpu.device import Device
from nearfield_index.building import Builder
from nearfield_index.errors import Conflict, InvalidRequest, NearfieldError, NotFound
from nearfield_index.execution.batch import Report, Search
from nearfield_index.execution.query import Query, Selection
from nearfield_index.execution.run import run
from nearfield_index.execution.topk import Candidates
from nearfield_index.filters.expr import Expr
from nearfield_index.filters.facets import merge_facets
from nearfield_index.hubness.fit import load_fit
from nearfield_index.hubness.job import Workplace
from nearfield_index.hubness.monitor import HubMonitor
from nearfield_index.hubness.request import unfinished
from nearfield_index.hubness.search import (
    Normalised,
    biases_of_hits,
    fit_for,
    raw_scores,
    search_normalised,
)
from nearfield_index.hubness.service import Hubness
from nearfield_index.limits import Limits
from nearfield_index.maintenance import Maintenance
from nearfield_index.points import PointId, check_attributes
from nearfield_index.quality.probes import ENOUGH_QUERIES
from nearfield_index.quality.recall import RecallMonitor
from nearfield_index.quality.reservoir import QueryReservoir
from nearfield_index.quality.workload import WorkloadLog
from nearfield_index.ranking.querylog import QueryLog
from nearfield_index.ranking.request import Rerank
from nearfield_index.ranking.scorers import Scorers
from nearfield_index.rerankers import Rerankers
from nearfield_index.schema import Metric, Schema, schema_from_wire
from nearfield_index.segments.live import Hooks, LiveSegments
from nearfield_index.segments.mutable import Judged
from nearfield_index.segments.part import FindKeys, Keys
from nearfield_index.segments.view import View
from nearfield_index.storage.commits import GroupCommit
from nearfield_index.storage.pairs import PairLog, Scored
from nearfield_index.storage.rows import RowStore, StoredPoint
from nearfield_index.writes import DeletePoints, PointWrite

_log = logging.getLogger(__name__)

_RETRIES = 2
_CHECKED_ROWS = 2_000
WORKLOAD = "workload"


class Answer(NamedTuple):
    """Hits of a batch: ``found`` ``(n, k)``, ids by flat position, what the row store said, the report."""

    view: View
    found: Candidates
    ids: list[PointId]
    stored: dict[int, StoredPoint]
    vectors: dict[str, dict[int, Any]]
    report: Report
    normalised: Normalised | None = None
    biases: Any = None
    raw: Any = None
    """Of a normalised answer: what was subtracted from each hit, and its score without, both ``(n, k)``."""


class Collection:
    """Open one directory; every method may be called from any thread."""

    def __init__(
        self,
        directory: Path,
        *,
        maintenance: Maintenance,
        limits: Limits,
        sample_rate: float = 0.0,
        scorers: Scorers,
        scoring: Maintenance,
        device: Device | None = None,
    ) -> None:
        """``scoring`` is the worker of anchor jobs, which take long and must hold up nothing else."""
        self.directory = directory
        self.limits = limits
        self.maintenance = maintenance
        self.store = RowStore(directory)
        self.name: str = self.store.meta("name")
        schema = schema_from_wire(orjson.loads(self.store.meta("schema")))
        watcher = HubMonitor(directory / "hubness" / "quarantine.json")
        fits = directory / "hubness"
        hooks = Hooks(partial(_load_fit, fits), partial(_watch, watcher), watcher.held, unfinished(fits))
        self.live = LiveSegments(directory, self.store, schema, tail_bytes=limits.tail_bytes, hooks=hooks)
        self.reservoir = QueryReservoir(schema)
        self.reservoir.load(directory / "queries")
        self.workload = WorkloadLog(schema)
        self.workload.load(directory / WORKLOAD, schema, limits)
        self.commits: GroupCommit[PointWrite] = GroupCommit(
            self._commit, most_writes=limits.waiting_writes, most_bytes=limits.waiting_bytes
        )
        self.builder = Builder(
            self.name, self.store, self.live, self.reservoir, self.workload, self.commits.turn, maintenance, device
        )
        place = Workplace(
            directory / "hubness", self.store, self.live, self.builder, self.reservoir, watcher, self.commits.turn
        )
        self.hubness = Hubness(self.name, place, maintenance, limits)
        self.monitor = RecallMonitor(rate=sample_rate, submit=maintenance.run_quietly)
        self.queries = 0
        self.exact_rows = 0
        self.scorers = scorers
        self.rerankers = Rerankers(self.name, directory / "rerankers", self.store, self.live, scorers, scoring)
        self.reranked = QueryLog()
        self.reranked.load(directory / "reranked")
        self.pair_log = PairLog(directory / "pairs.db", most=limits.logged_pairs)
        self.altering = Lock()
        """Held from reading the schema to storing a changed one."""
        self._closed = False
        self.builder.schedule()

    @property
    def schema(self) -> Schema:
        """What it holds and how it is indexed, as of now."""
        return self.live.schema

    def close(self) -> None:
        """Stop its jobs, checkpoint, close. Searches in other threads must have ended."""
        self.maintenance.stop_jobs(self.name)
        self.builder.close()
        with self.commits.turn:
            if not self._closed:
                self._closed = True
                try:
                    self.hubness.save()
                    self.reservoir.save(self.directory / "queries")
                    self.workload.save(self.directory / WORKLOAD)
                    self.reranked.save(self.directory / "reranked")
                    self.pair_log.close()
                except (NearfieldError, OSError) as error:  # only a sample
                    _log.warning("the sample of queries of %s was not kept: %s", self.name, error)
                self.store.close()

    # ------------------------------------------------------------------ writes

    def write(self, write: PointWrite) -> int:
        """Run one write; returns the sequence at which it is durable and visible."""
        if self.live.tail_size[1] > self.limits.unsealed_bytes and not isinstance(write, DeletePoints):
            with self.commits.turn:
                self.live.seal()  # it did not work when it was due: the writer hears why, and memory stays bounded
        return self.commits.submit(write)

    def _commit(self, writes: Sequence[PointWrite]) -> int:
        for write in writes:
            write.check(self.schema, self.live.names)
        with self.store.transaction() as change:
            for write in writes:
                write.apply(self.store, change)
        try:
            self.live.apply(change)
            self.hubness.buried(change.dead)
        except BaseException as error:
            self.store.fail(f"a commit was not made visible: {error!r}")
            raise
        try:
            self.store.checkpoint_if_due()
            if self.live.seal_if_due() or change.dead:
                self.builder.schedule()
        except NearfieldError as error:  # the writes are durable; what failed is tried again later
            _log.error("after a commit of %s: %s", self.name, error)
        return self.store.sequence

    def use_schema(self, schema: Schema, *, rewrite: bool) -> None:
        """Store a changed schema and go on with it; ``rewrite`` brings every row into the tail again, so that
        attributes are indexed under the types now declared."""
        with self.commits.turn:
            if rewrite:
                self._check_declared(schema)
            self.store.set_schema(schema.to_wire(), rewrite=rewrite)
            self.reservoir.use_schema(schema)
            self.workload.use_schema(schema)
            if not schema.index.workload:
                self.builder.keep_log()
            self.live.use_schema(schema, rewrite=rewrite)
            if rewrite:
                self.builder.rewritten()

    def _check_declared(self, schema: Schema) -> None:
        keys = self.store.keys()
        for start in range(0, len(keys), _CHECKED_ROWS):
            points = self.store.fetch(keys[start : start + _CHECKED_ROWS].tolist())
            rows = [orjson.loads(p.attributes) for p in points]
            check_attributes(rows, schema=schema, limits=self.limits, row_at="attributes")

    def view_for(self, exprs: Sequence[Expr | None], ids: Sequence[PointId] = ()) -> tuple[View, FindKeys]:
        """The view of now, with the row keys that the filters' ids (and ``ids``) have in it.

        A point is known to the row store a moment before it is in the view: the two are taken at one sequence, or
        a filter by id would miss a point that is being written.
        """
        wanted = {point_id for expr in exprs if expr is not None for point_id in expr.point_ids()}.union(ids)
        if not wanted:
            return self.live.view, _no_keys
        for _ in range(_RETRIES):
            view = self.live.view
            sequence, keys = self.store.keys_of(wanted)
            if sequence == view.sequence:
                break
        else:
            with self.commits.turn:
                view = self.live.view
                _, keys = self.store.keys_of(wanted)
        return view, lambda ids: np.array([keys[i] for i in ids if i in keys], dtype=np.int64)

    def matching_keys(self, expr: Expr | None) -> Keys:
        """Row keys of the live points that pass a filter, ascending."""
        found = [np.empty(0, dtype=np.int64)]
        view, find_keys = self.view_for([expr])
        for part in view.parts:
            passing = part.passing(expr, find_keys)
            found.append(part.part.pks if passing is None else part.part.pks[passing.bitmap.rows()])
        return np.sort(np.concatenate(found))

    def page(
        self, expr: Expr | None, after: int, limit: int, selection: Selection
    ) -> tuple[list[StoredPoint], dict[str, dict[int, Any]]]:
        """The first ``limit`` points that pass and have a row key above ``after``, by row key; their vectors.

        Keys and points are of one moment: a point updated between the two would be in no page, neither under its
        old key nor under its new one.
        """
        points: list[StoredPoint] = []
        vectors: dict[str, dict[int, Any]] = {}
        for waiting in (False, True):
            with self.commits.turn if waiting else nullcontext():
                if expr is None:
                    keys = self.store.keys(after=after, limit=limit)
                else:
                    keys = self.matching_keys(expr)
                    start = int(np.searchsorted(keys, after, side="right"))
                    keys = keys[start : start + limit]
                with self.store.snapshot():
                    points = self.store.fetch(keys.tolist())
                    vectors = self.vectors_of(points) if selection.vectors else {}
            if len(points) == len(keys):
                break
        return points, vectors

    def count(self, expr: Expr | None) -> int:
        """Live points that pass a filter."""
        view, find_keys = self.view_for([expr])
        passing = (part.passing(expr, find_keys) for part in view.parts)
        return sum(part.count if p is None else p.count for part, p in zip(view.parts, passing, strict=True))

    def facet(self, name: str, expr: Expr | None, limit: int) -> list[tuple[Any, int]]:
        """Values of an attribute with how many live, passing points have each."""
        counted = []
        view, find_keys = self.view_for([expr])
        for part in view.parts:
            passing = part.passing(expr, find_keys)
            counted.append(part.part.facet(name, ~part.dead if passing is None else passing.bitmap))
        return list(merge_facets(counted, limit))

    def warnings(self, view: View, exprs: Sequence[Expr | None]) -> list[str]:
        """Attributes a filter names and no point has."""
        types = view.types
        unknown = {name for expr in exprs if expr is not None for name in expr.names() if name not in types}
        return [f"no point has an attribute {name!r}" for name in sorted(unknown)]

    # ------------------------------------------------------------------ queries

    def search(self, query: Query) -> Answer:
        """Answer a batch; the view is taken once, and again when points died before they could be read."""
        deadline = None if query.timeout_s is None else time.monotonic() + query.timeout_s
        self.wait_for(query)
        vectors = self.query_vectors(query)
        wanted = query.recall if query.recall >= 1.0 else min(0.9999, query.recall + self.monitor.margin)
        count = query.k + query.offset + (query.ids is not None)
        search = Search(query.field, vectors, query.filters, count, wanted, deadline, explain=query.explain)
        for _ in range(_RETRIES):
            answer = self._answer(query, search)
            if answer is not None:
                break
        else:
            with self.commits.turn:  # writers were quicker every time: they wait once
                answer = self._answer(query, search)
        assert answer is not None
        self._note(query, vectors, answer.report)
        return answer

    def _answer(self, query: Query, search: Search) -> Answer | None:
        """The answer by the view of now; None where points of it died before they could be read."""
        metric = self.schema.vectors[query.field].metric
        view, find_keys = self.view_for(query.filters, query.ids or ())
        fitted = fit_for(view, query) if view.fits or query.hubness == "on" else None
        if fitted is None:
            whole, report = run(view, search, metric, self.builder.calibrations, find_keys)
            found, used = _cut(whole, query, find_keys), None
        else:
            whole, report, used = search_normalised(view, search, *fitted, metric, self.builder.calibrations, find_keys)
            found = _cut(whole, query._replace(min_score=None), find_keys)
        stored: dict[int, StoredPoint] = {}
        loaded: dict[str, dict[int, Any]] = {}
        if query.selection.anything:
            pks = np.unique(found.pks[found.pks >= 0])
            with self.store.snapshot():
                stored = self._stored(pks)
                loaded = self._vectors(stored, query.selection)
            if len(stored) < len(pks):
                return None
        answer = Answer(view, found, _ids(view, found), stored, loaded, report, used)
        if used is not None:
            return self._normalised(answer, query, metric)
        self.monitor.consider(view, search, query.recall, metric, find_keys, whole, report)
        return answer

    def _normalised(self, answer: Answer, query: Query, metric: Metric) -> Answer:
        """The answer with bias and raw score of each hit. ``min_score`` is about raw scores, as without a fit."""
        assert answer.normalised is not None
        biases = biases_of_hits(answer.view, query.field, answer.found, answer.normalised)
        raw = raw_scores(answer.found.scores, biases, metric)
        if query.min_score is not None:
            found = answer.found._replace(pks=np.where(raw < query.min_score, -1, answer.found.pks))
            answer = answer._replace(found=found)
        self.hubness.normalised += len(biases)
        return answer._replace(biases=biases, raw=raw)

    def wait_for(self, query: Query) -> None:
        """Wait until the sequence a query is ``after`` is visible. Raises :class:`Conflict` when it is not to come."""
        if query.after is not None and query.after > self.live.view.sequence:
            with self.commits.turn:  # what is committed by now is visible then
                last = self.live.view.sequence
            if query.after > last:
                raise Conflict(
                    f"sequence {query.after} is not there yet, the last is {last}",
                    code="sequence_ahead",
                    field="after",
                )

    def query_vectors(self, query: Query) -> Any:
        """Raw query vectors; those of stored points when it was asked by id."""
        if query.vectors is not None:
            return query.vectors
        with self.store.snapshot():
            return self._own_vectors(query.ids or [], query.field)

    def _own_vectors(self, ids: Sequence[PointId], field: str) -> Any:
        found = {p.id: p for p in self.store.find(dict.fromkeys(ids))}
        missing = [n for n, point_id in enumerate(ids) if point_id not in found]
        if missing:
            raise NotFound("no point of that id", code="point_not_found", field=f"ids[{missing[0]}]")
        points = [found[point_id] for point_id in ids]
        spec = self.schema.vectors[field]
        vkeys = list(dict.fromkeys(p.vkey for p in points))
        positions, matrix = self.store.vectors(field, vkeys, spec.dim)
        place = {vkeys[position]: row for row, position in enumerate(positions.tolist())}
        lacking = [n for n, p in enumerate(points) if p.vkey not in place]
        if lacking:
            raise InvalidRequest(
                f"this point has no vector in field {field}",
                code="no_vector",
                field=f"ids[{lacking[0]}]",
            )
        rows = [place[p.vkey] for p in points]
        return np.array(matrix[rows], dtype=np.float32).reshape(len(points), spec.dim)

    def _stored(self, pks: Keys) -> dict[int, StoredPoint]:
        return {p.pk: p for p in self.store.fetch(pks.tolist())}

    def _vectors(self, stored: Mapping[int, StoredPoint], selection: Selection) -> dict[str, dict[int, Any]]:
        return self.vectors_of(list(stored.values())) if selection.vectors else {}

    def vectors_of(self, points: Sequence[StoredPoint]) -> dict[str, dict[int, Any]]:
        """Stored vectors as sent: by field, then by row key."""
        found: dict[str, dict[int, Any]] = {}
        for name, spec in self.schema.vectors.items():
            positions, matrix = self.store.vectors(name, [p.vkey for p in points], spec.dim)
            found[name] = {points[p].pk: row for p, row in zip(positions.tolist(), matrix, strict=True)}
        return found

    def _note(self, query: Query, vectors: Any, report: Report) -> None:
        self.queries += len(vectors)
        self.exact_rows += report.exact_rows
        if self.workload.note(query.field, query.filters, vectors):
            self.builder.layouts.watch(self.name)
        if query.ids is None and len(vectors):
            self.hubness.note(query.field, vectors)
            before, now = self.reservoir.add(query.field, vectors)
            if before < ENOUGH_QUERIES <= now and self._calibrated_on_rows(query.field):
                self.builder.schedule_calibration()

    def note_reranked(self, query: Query, vectors: Any, rerank: Rerank) -> None:
        """Count reranked queries and keep a sample of them, from which anchor queries may be chosen."""
        self.queries += len(vectors)
        if query.ids is None:
            for text, vector in zip(rerank.texts, vectors, strict=True):
                self.reranked.add(query.field, text, vector)

    def note_scored(self, scored: Scored) -> None:
        """Log what a query had scored, in the background."""
        if self.pair_log.note(scored):
            self.maintenance.run_quietly(self._log_pairs)

    def _log_pairs(self) -> None:
        if not self._closed:
            self.pair_log.flush()

    def _calibrated_on_rows(self, field: str) -> bool:
        return any(c.source == "rows" for (_, name), c in self.builder.calibrations.items() if name == field)


def _load_fit(directory: Path, field: str, file: str) -> Any:
    return load_fit(directory, file)


def _watch(watcher: HubMonitor, live: LiveSegments, judged: Sequence[Judged]) -> None:
    """New points are judged before they are visible. A fault here must not stop a write that is durable already."""
    try:
        if watcher.judge(live.fits, judged):
            live.hide(watcher.held)
    except Exception:
        _log.exception("the hub monitor failed")


def _no_keys(ids: Sequence[PointId]) -> Keys:
    return np.empty(0, dtype=np.int64)


def _cut(found: Candidates, query: Query, find_keys: FindKeys) -> Candidates:
    """Leave out the point a query was made from, hits under ``min_score``, and those before ``offset``."""
    if query.ids is not None:
        own = np.full((len(query.ids), 1), -1, dtype=np.int64)  # -1: deleted meanwhile
        for number, point_id in enumerate(query.ids):
            key = find_keys([point_id])
            own[number, : len(key)] = key
        mine = found.pks == own
        order = np.argsort(mine, axis=1, kind="stable")[:, : query.k + query.offset]
        found = found._replace(pks=np.where(mine, -1, found.pks)).take(order)
    if query.offset:
        kept = np.arange(query.offset, found.pks.shape[1])
        found = found.take(np.broadcast_to(kept, (len(found.pks), len(kept))))
    if query.min_score is not None:
        found = found._replace(pks=np.where(found.scores < query.min_score, -1, found.pks))
    return found


def _ids(view: View, found: Candidates) -> list[PointId]:
    """Ids of all hits by flat position (anything where there is no hit)."""
    flat_rows = found.rows.ravel()
    if len(view.filled) == 1:
        return view.filled[0].ids(flat_rows)
    flat_parts, flat_pks = found.parts.ravel(), found.pks.ravel()
    ids: list[PointId] = [0] * len(flat_pks)
    for number, part in enumerate(view.parts):
        if not part.part.count:
            continue
        places = np.flatnonzero((flat_parts == number) & (flat_pks >= 0))
        for place, point_id in zip(places.tolist(), part.part.ids(flat_rows[places]), strict=True):
            ids[place] = point_id
    return ids
