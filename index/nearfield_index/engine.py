"""The one door to the engine: requests in the shape of the wire in, replies in the shape of the wire out.

Server and embedded SDK call the same methods. A request body is a mapping as its JSON would be, in which any batch
of vectors may also be a numpy array; replies may hold numpy arrays. All checks stand behind this door.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from nearfield_index import describing, fitting, reading
from nearfield_index.backends.gpu.device import open_device
from nearfield_index.backends.gpu.setting import DeviceOptions
from nearfield_index.catalog import Catalog, check_installed
from nearfield_index.checking import check_directory
from nearfield_index.collection import Collection
from nearfield_index.distilling import scored_pairs
from nearfield_index.errors import Conflict, InvalidRequest
from nearfield_index.execution.query import parse_filter_of, parse_query, parse_selection
from nearfield_index.limits import Limits
from nearfield_index.points import check_attributes, check_ids, parse_points
from nearfield_index.quality.workload import parse_workload
from nearfield_index.reranking import rerank_query
from nearfield_index.schema import (
    DEFAULT_FIELD,
    Schema,
    check_attribute_name,
    check_flag,
    check_int,
    check_name,
    check_object,
    parse_index,
    parse_schema,
)
from nearfield_index.vectors import as_matrix
from nearfield_index.version import VERSION
from nearfield_index.writes import DeletePoints, PatchPoints, PutPoints, Targets

Json = dict[str, Any]
Body = Mapping[str, Any]
Admit = Callable[[int], None]
Told = Callable[[list[Json]], Any]

_MODES = ("upsert", "insert", "update")


@dataclass(frozen=True)
class EngineOptions:
    """Settings of an engine."""

    limits: Limits = field(default_factory=Limits)
    sample_rate: float = 0.01
    """Share of queries that are answered again exactly in the background, to measure recall; 0 switches it off."""
    scorers: Mapping[str, object] = field(default_factory=dict)
    """What ``rerank`` may name: callables ``f(query, texts) -> scores``, or ``ranking.scorer.Scorer``."""
    device: DeviceOptions = field(default_factory=DeviceOptions)
    """What computes: the CPU, or a GPU beside it."""


class Engine:
    """The collections of one data directory. Thread-safe; one process at a time."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._limits = catalog.limits

    @classmethod
    def open(cls, path: str | Path, *, options: EngineOptions | None = None) -> Self:
        """Open or create a data directory. Raises :class:`Locked` when another process holds it, and
        :class:`InvalidRequest` when a device was named that is not there."""
        options = options or EngineOptions()
        device = open_device(options.device)
        try:
            return cls(
                Catalog(
                    Path(path),
                    limits=options.limits,
                    sample_rate=options.sample_rate,
                    scorers=options.scorers,
                    device=device,
                )
            )
        except BaseException:
            if device is not None:
                device.release()
            raise

    def close(self) -> None:
        """Finish what is written, stop background work, release the directory."""
        self._catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ the whole

    def info(self) -> Json:
        """Version, limits, features."""
        return {
            "name": "nearfield",
            "version": VERSION,
            "limits": self._limits.to_wire(),
            "features": ["frame", "filters", "facet", "jobs", "hubness", "rerank"],
            "scorers": [each["name"] for each in self._catalog.scorers.to_wire()],
            "device": "cpu" if self._catalog.device is None else self._catalog.device.name,
        }

    def ready(self) -> Json:
        """Whether every collection serves."""
        read_only = [c.name for c in self._catalog.list() if c.store.failed is not None]
        broken = self._catalog.broken
        reason = f"{len(broken)} collections do not open; run nearfield doctor" if broken else None
        if read_only:
            reason = f"read-only after a storage fault: {', '.join(read_only)}"
        device = None if self._catalog.device is None else self._catalog.device.to_wire()
        return {"ready": reason is None, "reason": reason, "read_only": read_only, "device": device}

    def stats(self) -> Json:
        """Figures for metrics."""
        jobs = self._catalog.maintenance.jobs.list()
        return {
            "collections": [
                {
                    "name": c.name,
                    "points": c.live.view.count,
                    "segments": len(c.live.view.segments),
                    "tail_points": c.live.tail_size[0],
                    "bytes": describing.nbytes(c),
                    "sequence": c.store.sequence,
                    "queries": c.queries,
                    "exact_rows": c.exact_rows,
                    "recall": c.monitor.to_wire()["buckets"],
                    "hubness": c.hubness.stats(),
                }
                for c in self._catalog.list()
            ],
            "scorers": self._catalog.scorers.to_wire(),
            "devices": [] if self._catalog.device is None else [self._catalog.device.to_wire()],
            "jobs": {state: sum(j.state == state for j in jobs) for state in ("running", "queued")},
        }

    def check(self, repair: bool = False) -> Json:
        """Check every page, row and segment file; with ``repair`` also rebuild and accept what is lost."""
        return check_directory(self._catalog, repair=repair)

    # ------------------------------------------------------------------ collections

    def list_collections(self) -> Json:
        return {"collections": [describing.describe(c) for c in self._catalog.list()]}

    def create_collection(self, name: str, body: Body) -> Json:
        collection, created = self._catalog.create(name, body)
        return describing.describe(collection) | {"created": created}

    def describe_collection(self, name: str) -> Json:
        return describing.describe(self._catalog.get(name))

    def drop_collection(self, name: str) -> Json:
        self._catalog.drop(name)
        return {"dropped": True}

    def alter_collection(self, name: str, body: Body) -> Json:
        """Add vector fields or attributes, or change index settings. A job starts for the settings, and for attributes
        where there are points: all are read again while writes wait, and are scanned until it ends."""
        collection = self._catalog.get(name)
        check_object(body, at="body", known=frozenset({"vectors", "attributes", "index"}))
        with collection.altering:
            schema = self._altered(collection.schema, body)
            if schema == collection.schema:
                return describing.describe(collection)
            retyped = schema.attributes != collection.schema.attributes and bool(collection.live.view.count)
            rebuild = schema.index != collection.schema.index or retyped
            collection.use_schema(schema, rewrite=retyped)
        return collection.builder.optimize().to_wire() if rebuild else describing.describe(collection)

    def _altered(self, old: Schema, body: Body) -> Schema:
        added = _given(body, "vectors", {})
        # Nothing to add is no schema of its own: the field there is stands in for one.
        checked = {"vectors": {DEFAULT_FIELD: {"dim": 1}} if added == {} else added}
        asked = parse_schema(checked | {"attributes": _given(body, "attributes", {})}, limits=self._limits)
        vectors = dict(old.vectors)
        for name, spec in ({} if added == {} else asked.vectors).items():
            if vectors.setdefault(name, spec) != spec:
                raise Conflict("a vector field cannot change", code="schema_conflict", field=f"vectors.{name}")
        if len(vectors) > 64:
            raise InvalidRequest("at most 64 vector fields", field="vectors")
        attributes = dict(old.attributes)
        for name, kind in asked.attributes.items():
            if attributes.setdefault(name, kind) != kind:
                raise Conflict("a declared type cannot change", code="schema_conflict", field=f"attributes.{name}")
        index = parse_index(body["index"], base=old.index) if body.get("index") is not None else old.index
        check_installed(index)
        return replace(old, vectors=vectors, attributes=attributes, index=index)

    # ------------------------------------------------------------------ points

    def write_points(self, name: str, body: Body) -> Json:
        collection = self._catalog.get(name)
        schema = collection.schema
        points = parse_points(body, schema=schema, limits=self._limits)
        mode = body.get("mode", "upsert")
        if not isinstance(mode, str) or mode not in _MODES:
            raise InvalidRequest(f"must be one of: {', '.join(_MODES)}", field="mode")
        if not len(points):
            return {"upserted": 0, "sequence": collection.store.sequence} | (
                {} if mode == "upsert" else {"outcomes": []}
            )
        write = PutPoints(points, mode, schema, self._limits)
        sequence = collection.write(write)
        reply: Json = {"upserted": write.count, "sequence": sequence}
        return reply if mode == "upsert" else reply | {"outcomes": write.outcomes}

    def patch_points(self, name: str, body: Body) -> Json:
        collection = self._catalog.get(name)
        check_object(body, at="body", known=frozenset({"ids", "filter", "set", "unset"}))
        assign, unset = _given(body, "set", {}), _given(body, "unset", [])
        if not isinstance(assign, dict):
            raise InvalidRequest("must be an object of attributes", code="attribute_type", field="set")
        if not isinstance(unset, (list, tuple)):
            raise InvalidRequest("must be a list of attribute names", field="unset")
        for attribute in [*assign, *unset]:
            check_attribute_name(attribute, at="unset" if attribute in unset else "set")
        if not assign and not unset:
            raise InvalidRequest("a patch needs 'set' or 'unset'", code="missing", field="set")
        check_attributes([assign], schema=collection.schema, limits=self._limits, row_at="set")
        write = PatchPoints(self._targets(collection, body), assign, unset, collection.schema, self._limits)
        sequence = collection.write(write)
        return {"patched": write.count, "sequence": sequence}

    def delete_points(self, name: str, body: Body) -> Json:
        collection = self._catalog.get(name)
        check_object(body, at="body", known=frozenset({"ids", "filter", "dry_run"}))
        targets = self._targets(collection, body)
        if check_flag(body.get("dry_run", False), at="dry_run"):
            count = len(targets() if callable(targets) else collection.store.find(dict.fromkeys(targets)))
            return {"deleted": count, "dry_run": True, "sequence": collection.store.sequence}
        write = DeletePoints(targets)
        sequence = collection.write(write)
        return {"deleted": write.count, "sequence": sequence}

    def _targets(self, collection: Collection, body: Body) -> Targets:
        """Which points a write is about: exactly one of ``ids`` and ``filter``, never everything by omission."""
        if "ids" in body and "filter" in body:
            raise InvalidRequest("give exactly one of 'ids' and 'filter'", field="filter")
        if "ids" not in body and "filter" not in body:
            raise InvalidRequest("give 'ids' or 'filter'", code="missing", field="filter")
        if "ids" in body:
            return check_ids(body["ids"], at="ids", limits=self._limits)
        if body["filter"] is None:
            raise InvalidRequest("must be an object; {} means every point", code="filter_type", field="filter")
        expr = parse_filter_of(body, schema=collection.schema, limits=self._limits)
        return lambda: collection.matching_keys(expr).tolist()

    def get_points(self, name: str, body: Body) -> Json:
        collection = self._catalog.get(name)
        check_object(body, at="body", known=frozenset({"ids", "select", "with"}))
        if "ids" not in body:
            raise InvalidRequest("give 'ids'", code="missing", field="ids")
        ids = check_ids(body["ids"], at="ids", limits=self._limits)
        selection = parse_selection(body)
        with collection.store.snapshot():
            found = collection.store.find(dict.fromkeys(ids))
            return {"points": reading.points_to_wire(collection, found, selection)}

    def count_points(self, name: str, body: Body) -> Json:
        collection = self._catalog.get(name)
        check_object(body, at="body", known=frozenset({"filter"}))
        expr = parse_filter_of(body, schema=collection.schema, limits=self._limits)
        return {"count": collection.count(expr), "warnings": collection.warnings(collection.live.view, [expr])}

    def scan_points(self, name: str, body: Body) -> Json:
        collection = self._catalog.get(name)
        check_object(body, at="body", known=frozenset({"filter", "limit", "cursor", "select", "with"}))
        limit = check_int(body.get("limit", 100), at="limit", low=1, high=self._limits.scan_page)
        after = 0 if body.get("cursor") is None else reading.decode_cursor(body["cursor"])
        selection = parse_selection(body)
        expr = parse_filter_of(body, schema=collection.schema, limits=self._limits)
        found, vectors = collection.page(expr, after, limit, selection)
        points = [reading.point_to_wire(point, selection, vectors) for point in found]
        cursor = reading.encode_cursor(found[-1].pk) if len(found) == limit else None
        return {"points": points, "next_cursor": cursor}

    def facet(self, name: str, body: Body) -> Json:
        collection = self._catalog.get(name)
        check_object(body, at="body", known=frozenset({"field", "filter", "limit"}))
        limit = check_int(body.get("limit", 100), at="limit", low=1, high=self._limits.facet_values)
        attribute = check_attribute_name(body.get("field"), at="field")
        expr = parse_filter_of(body, schema=collection.schema, limits=self._limits)
        values = collection.facet(attribute, expr, limit)
        warnings = collection.warnings(collection.live.view, [expr])
        if attribute not in collection.live.view.types:
            warnings.append(f"no point has an attribute {attribute!r}")
        return {"field": attribute, "values": [{"value": v, "count": c} for v, c in values], "warnings": warnings}

    # ------------------------------------------------------------------ queries

    def query(self, name: str, body: Body, *, admit: Admit | None = None, told: Told | None = None) -> Json:
        """The nearest points of each query.

        ``admit`` is called with the number of hits looked for, once the request is checked and before anything is
        searched, and may raise. ``told`` makes of the hits of each query what stands in the reply.
        """
        start = time.perf_counter()
        collection = self._catalog.get(name)
        query = parse_query(body, schema=collection.schema, limits=self._limits)
        if admit is not None:
            admit(query.hits)
        if query.rerank is not None:
            reply = rerank_query(collection, query, query.rerank)
            reply["results"] = [*map(told, reply["results"])] if told is not None else reply["results"]
            reply["meta"]["ms"] = round((time.perf_counter() - start) * 1e3, 3)
            return reply
        answer = collection.search(query)
        size = query.size
        recall: Json = {"target": query.recall, "estimate": round(answer.report.recall, 4) if size else None}
        if size == 1:
            recall["interval"] = collection.monitor.interval(answer.report)
        meta: Json = {
            "sequence": answer.view.sequence,
            "warnings": collection.warnings(answer.view, query.filters, query.selection),
            "recall": recall,
        }
        if query.explain:
            meta["plans"] = answer.report.plans
        if answer.normalised is not None:
            meta["hubness"] = answer.normalised.to_wire() | {"exact": answer.report.all_exact}
        hits = reading.answer_to_wire(answer, query)
        results = list(hits if told is None else map(told, hits))
        meta["ms"] = round((time.perf_counter() - start) * 1e3, 3)
        return {"results": results, "meta": meta}

    # ------------------------------------------------------------------ background work

    def optimize(self, name: str, body: Body | None = None) -> Json:
        """Seal, merge, index and calibrate as a job. ``queries`` become the sample it is calibrated on, ``workload``
        the one that rows are laid out for."""
        collection = self._catalog.get(name)
        body = body or {}
        check_object(body, at="body", known=frozenset({"queries", "field", "workload"}))
        new_sample = None
        if body.get("queries") is not None:
            name_of_field = collection.schema.field_of(body)
            spec = collection.schema.field(name_of_field)
            sample = as_matrix(
                body["queries"],
                dim=spec.dim,
                at="queries",
                metric=spec.metric,
                max_rows=self._limits.queries,
            )
            if not len(sample):
                raise InvalidRequest("must hold at least one query", field="queries")
            new_sample = (name_of_field, sample)
        least_gain, workload = parse_workload(body.get("workload"), schema=collection.schema, limits=self._limits)
        if new_sample is not None:
            collection.reservoir.replace(*new_sample)
        if workload is not None:
            collection.workload.replace(*workload)
        given = new_sample is not None or body.get("workload") is not None
        new_workload = workload is not None
        return collection.builder.optimize(
            new_queries=given, new_workload=new_workload, least_gain=least_gain
        ).to_wire()

    def fit_hubness(self, name: str, body: Body) -> Json:
        """Fit a normalisation as a job: bank, method, pairs; in force once the job is done."""
        return self._catalog.get(name).hubness.request_fit(body).to_wire()

    def hubness(self, name: str) -> Json:
        """The reports of the fits in force."""
        return self._catalog.get(name).hubness.describe()

    def drop_hubness(self, name: str) -> Json:
        """Search raw again."""
        return self._catalog.get(name).hubness.drop()

    def rotate_hubness(self, name: str, body: Body | None = None) -> Json:
        """Replace a sixteenth of the bank as a job, by ``vectors`` or by queries of the log."""
        return self._catalog.get(name).hubness.request_rotation(body or {}).to_wire()

    def release_points(self, name: str, body: Body) -> Json:
        """Let points out of the hub monitor's quarantine."""
        return self._catalog.get(name).hubness.release(body)

    def quality(self, name: str) -> Json:
        return describing.quality(self._catalog.get(name))

    # ------------------------------------------------------------------ rerankers

    def list_rerankers(self, name: str) -> Json:
        """Every reranker of a collection."""
        rerankers = self._catalog.get(name).rerankers
        return {"rerankers": [rerankers.describe(each) for each in rerankers.names()]}

    def get_reranker(self, name: str, reranker: str) -> Json:
        """State, calls and cost of one."""
        return self._catalog.get(name).rerankers.describe(check_name(reranker, at="reranker"))

    def put_reranker(self, name: str, reranker: str, body: Body) -> Json:
        """Start or resume the job that scores anchor queries, or (``dry_run``) only say what it will cost."""
        collection = self._catalog.get(name)
        return fitting.put(collection, check_name(reranker, at="reranker"), body, limits=self._limits)

    def drop_reranker(self, name: str, reranker: str) -> Json:
        self._catalog.get(name).rerankers.drop(check_name(reranker, at="reranker"))
        return {"dropped": True}

    def scored_pairs(self, name: str, body: Body | None = None) -> Json:
        """A page of scored pairs, to train a smaller model on."""
        return scored_pairs(self._catalog.get(name), body or {}, limits=self._limits)

    # ------------------------------------------------------------------ jobs

    def list_jobs(self) -> Json:
        return {"jobs": [job.to_wire() for job in self._catalog.maintenance.jobs.list()]}

    def get_job(self, job_id: str) -> Json:
        return self._catalog.maintenance.jobs.get(job_id).to_wire()

    def cancel_job(self, job_id: str) -> Json:
        job = self._catalog.maintenance.jobs.cancel(job_id)
        for collection in self._catalog.list():
            if collection.name == job.collection:
                collection.rerankers.note_cancel(job)
        return job.to_wire()


def _given(body: Body, key: str, default: Any) -> Any:
    """A part of the request, or the default where it is missing or null."""
    value = body.get(key)
    return default if value is None else value
