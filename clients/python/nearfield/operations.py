"""Every call once: what it sends and how its reply reads, with no I/O.

The blocking, awaiting and embedded forms all run these same objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from nearfield import vectors
from nearfield.errors import InvalidRequest
from nearfield.filters import Expression, compile_where
from nearfield.results import FacetValue, Hits, Id, Job, ManyHits, Point, ScanPage, UpsertResult
from nearfield.scalars import column, plain

T = TypeVar("T")
Where = Expression | Mapping[str, Any] | None
Select = bool | Sequence[str]
Reply = dict[str, Any]

ROUTES: dict[str, tuple[str, str]] = {
    "info": ("GET", "/v1"),
    "list_collections": ("GET", "/v1/collections"),
    "create_collection": ("PUT", "/v1/collections/{}"),
    "describe_collection": ("GET", "/v1/collections/{}"),
    "alter_collection": ("PATCH", "/v1/collections/{}"),
    "drop_collection": ("DELETE", "/v1/collections/{}"),
    "write_points": ("POST", "/v1/collections/{}/points"),
    "patch_points": ("PATCH", "/v1/collections/{}/points"),
    "get_points": ("POST", "/v1/collections/{}/points/get"),
    "delete_points": ("POST", "/v1/collections/{}/points/delete"),
    "count_points": ("POST", "/v1/collections/{}/points/count"),
    "scan_points": ("POST", "/v1/collections/{}/points/scan"),
    "facet": ("POST", "/v1/collections/{}/facet"),
    "query": ("POST", "/v1/collections/{}/query"),
    "optimize": ("POST", "/v1/collections/{}/optimize"),
    "quality": ("GET", "/v1/collections/{}/quality"),
    "fit_hubness": ("PUT", "/v1/collections/{}/hubness"),
    "hubness": ("GET", "/v1/collections/{}/hubness"),
    "drop_hubness": ("DELETE", "/v1/collections/{}/hubness"),
    "rotate_hubness": ("POST", "/v1/collections/{}/hubness/rotate"),
    "release_points": ("POST", "/v1/collections/{}/hubness/release"),
    "list_rerankers": ("GET", "/v1/collections/{}/rerankers"),
    "put_reranker": ("PUT", "/v1/collections/{}/rerankers/{}"),
    "get_reranker": ("GET", "/v1/collections/{}/rerankers/{}"),
    "drop_reranker": ("DELETE", "/v1/collections/{}/rerankers/{}"),
    "scored_pairs": ("POST", "/v1/collections/{}/pairs"),
    "list_jobs": ("GET", "/v1/jobs"),
    "get_job": ("GET", "/v1/jobs/{}"),
    "cancel_job": ("DELETE", "/v1/jobs/{}"),
}
"""The one table: name of the engine's call -> (HTTP method, path with places for the target and its part)."""


class Operation(NamedTuple, Generic[T]):
    """One call: the engine's ``call`` on ``target`` (a collection or job), maybe a ``part`` of it, with ``body``.

    ``parse`` reads the reply. ``body`` may hold float32 arrays where vectors stand.
    ``idempotent``: repeating it is harmless.
    """

    call: str
    parse: Callable[[Reply], T]
    target: str | None = None
    body: dict[str, Any] | None = None
    idempotent: bool = True
    timeout_s: float | None = None
    part: str | None = None


def info() -> Operation[Reply]:
    return Operation("info", dict)


def list_collections() -> Operation[list[Reply]]:
    return Operation("list_collections", lambda reply: list(reply["collections"]))


def create(
    name: str,
    *,
    dim: int | None = None,
    metric: str = "cosine",
    vectors: Mapping[str, Mapping[str, Any]] | None = None,
    attributes: Mapping[str, Any] | None = None,
    index: Mapping[str, Any] | None = None,
    exist_ok: bool = True,
) -> Operation[Reply]:
    if dim is not None and vectors is not None:
        raise InvalidRequest("give dim= for one vector field or vectors= for several, not both", field="dim")
    fields = {"vectors": dict(vectors)} if vectors is not None else {"dim": dim, "metric": metric} if dim else {}
    body = _body(**fields, attributes=_optional_dict(attributes), index=_optional_dict(index))
    # with exist_ok=False a repeated create would take its own first success for somebody else's collection
    return Operation("create_collection", dict, name, body, idempotent=exist_ok)


def describe(name: str) -> Operation[Reply]:
    return Operation("describe_collection", dict, name)


def alter(
    name: str,
    *,
    vectors: Mapping[str, Any] | None = None,
    attributes: Mapping[str, Any] | None = None,
    index: Mapping[str, Any] | None = None,
) -> Operation[Reply | Job]:
    body = _body(vectors=_optional_dict(vectors), attributes=_optional_dict(attributes), index=_optional_dict(index))
    return Operation("alter_collection", _job_or_description, name, body)


def drop(name: str) -> Operation[bool]:
    return Operation("drop_collection", lambda reply: bool(reply["dropped"]), name, idempotent=False)


def write(name: str, body: dict[str, Any], *, mode: str = "upsert") -> Operation[UpsertResult]:
    if mode != "upsert":
        body = {**body, "mode": mode}
    return Operation("write_points", _upsert_result, name, body, idempotent=mode != "insert")


def patch(
    name: str,
    *,
    ids: Any = None,
    where: Where = None,
    set: Mapping[str, Any] | None = None,
    unset: Sequence[str] | None = None,
) -> Operation[int]:
    changes = _body(set=None if set is None else plain(set), unset=None if unset is None else list(unset))
    body = {**_chosen(ids, where), **changes}
    return Operation("patch_points", lambda reply: int(reply["patched"]), name, body)


def get(name: str, ids: Any, *, select: Select = True, with_: Iterable[str] = ()) -> Operation[list[Point]]:
    body = {"ids": id_list(ids), **_shown(select, with_)}
    return Operation("get_points", _points, name, body)


def delete(name: str, *, ids: Any = None, where: Where = None, dry_run: bool = False) -> Operation[int]:
    body = {**_chosen(ids, where), **({"dry_run": True} if dry_run else {})}
    return Operation("delete_points", lambda reply: int(reply["deleted"]), name, body)


def count(name: str, *, where: Where = None) -> Operation[int]:
    return Operation("count_points", lambda reply: int(reply["count"]), name, _body(filter=compile_where(where)))


def scan(
    name: str,
    *,
    where: Where = None,
    limit: int | None = None,
    cursor: str | None = None,
    select: Select = True,
    with_: Iterable[str] = (),
) -> Operation[ScanPage]:
    body = {**_body(filter=compile_where(where), limit=limit, cursor=cursor), **_shown(select, with_)}
    return Operation("scan_points", lambda reply: ScanPage(_points(reply), reply.get("next_cursor")), name, body)


def facet(name: str, field: str, *, where: Where = None, limit: int | None = None) -> Operation[list[FacetValue]]:
    body = _body(field=field, filter=compile_where(where), limit=limit)
    return Operation("facet", _facet_values, name, body)


_OPTIONS = (
    "k",
    "field",
    "recall",
    "min_score",
    "after",
    "timeout_ms",
    "hubness",
    "hubness_strength",
    "offset",
    "exact",
    "explain",
)


def query(
    name: str,
    q: Any = None,
    k: int = 10,
    *,
    ids: Any = None,
    where: Where = None,
    wheres: Sequence[Where] | None = None,
    field: str | None = None,
    recall: float | None = None,
    exact: bool = False,
    offset: int = 0,
    select: Select = True,
    with_: Iterable[str] = (),
    min_score: float | None = None,
    after: int | None = None,
    timeout_ms: int | None = None,
    explain: bool = False,
    hubness: str | None = None,
    hubness_strength: float | None = None,
    rerank: Mapping[str, Any] | None = None,
) -> Operation[Hits | ManyHits]:
    body, single = _sought(q, ids)
    if isinstance(where, (list, tuple)):
        raise InvalidRequest("where= is one filter for all queries", field="where", hint="give wheres= one per query")
    if where is not None and wheres is not None:
        raise InvalidRequest("give where= for all queries or wheres= one per query, not both", field="wheres")
    if where is not None:
        body["filter"] = compile_where(where)
    if wheres is not None:
        body["filters"] = [compile_where(each, "wheres") or {} for each in wheres]
    if rerank is not None:
        body["rerank"] = plain(dict(rerank))
    given = (k, field, recall, min_score, after, timeout_ms, hubness, hubness_strength)
    for option, value in zip(_OPTIONS, (*given, offset or None, exact or None, explain or None), strict=True):
        if value is not None:
            body[option] = value
    body.update(_shown(select, with_))
    # the server's own deadline must speak first, so that it is its error which is reported
    patience = timeout_ms / 1000 + 5 if isinstance(timeout_ms, (int, float)) and timeout_ms > 55_000 else None

    def parse(reply: Reply) -> Hits | ManyHits:
        if single:
            return Hits(reply["results"][0], reply.get("meta"))
        return ManyHits(reply["results"], k, reply.get("meta"))

    return Operation("query", parse, name, body, timeout_s=patience)


def optimize(name: str, *, queries: Any = None, workload: Mapping[str, Any] | None = None) -> Operation[Job]:
    body: dict[str, Any] = {} if queries is None else {"queries": vectors.to_matrix(queries, "queries")}
    if workload is not None:
        body["workload"] = _workload(workload)
    return Operation("optimize", Job.from_wire, name, body)


def _workload(given: Mapping[str, Any]) -> dict[str, Any]:
    sent = dict(given)
    if sent.get("filters") is not None:
        sent["filters"] = [compile_where(where) for where in sent["filters"]]
    if sent.get("vectors") is not None:
        sent["vectors"] = vectors.to_matrix(sent["vectors"], "workload.vectors")
    return sent


def quality(name: str) -> Operation[Reply]:
    return Operation("quality", dict, name)


def fit_hubness(
    name: str,
    bank: Any = None,
    *,
    log: int | None = None,
    pairs: tuple[Any, Any] | None = None,
    method: str = "auto",
    strength: float | None = None,
    gate: bool = False,
    gallery_sample: int | None = None,
    quarantine: bool = False,
    field: str | None = None,
) -> Operation[Job]:
    if (bank is None) == (log is None):
        raise InvalidRequest("a fit needs either a bank of queries or log=", field="bank")
    labelled = None
    if pairs is not None:
        if not isinstance(pairs, tuple) or len(pairs) != 2:
            raise InvalidRequest("pairs= is a tuple: vectors and the id that answers each", field="pairs")
        labelled = {"vectors": vectors.to_matrix(pairs[0], "pairs"), "ids": id_list(pairs[1])}
    body = _body(
        bank={"log": log} if bank is None else {"vectors": vectors.to_matrix(bank, "bank")},
        pairs=labelled,
        method=method,
        strength=strength,
        gate=gate or None,
        quarantine=quarantine or None,
        gallery_bank=None if gallery_sample is None else {"sample": gallery_sample},
        field=field,
    )
    return Operation("fit_hubness", Job.from_wire, name, body)


def hubness(name: str) -> Operation[Reply]:
    return Operation("hubness", dict, name)


def drop_hubness(name: str) -> Operation[bool]:
    return Operation("drop_hubness", lambda reply: bool(reply["dropped"]), name, idempotent=False)


def rotate_hubness(name: str, queries: Any = None, *, field: str | None = None) -> Operation[Job]:
    body = _body(vectors=None if queries is None else vectors.to_matrix(queries, "queries"), field=field)
    return Operation("rotate_hubness", Job.from_wire, name, body, idempotent=False)


def release(name: str, ids: Any) -> Operation[int]:
    return Operation("release_points", lambda reply: int(reply["released"]), name, {"ids": id_list(ids)})


def list_rerankers(name: str) -> Operation[list[Reply]]:
    return Operation("list_rerankers", lambda reply: list(reply["rerankers"]), name)


def get_reranker(name: str, reranker: str) -> Operation[Reply]:
    return Operation("get_reranker", dict, name, part=reranker)


def drop_reranker(name: str, reranker: str) -> Operation[bool]:
    return Operation("drop_reranker", lambda reply: bool(reply["dropped"]), name, idempotent=False, part=reranker)


def put_reranker(
    name: str,
    reranker: str,
    scorer: str,
    *,
    texts: Sequence[str] | None = None,
    anchors: Any = None,
    log: int | None = None,
    count: int | None = None,
    field: str | None = None,
    dry_run: bool = False,
) -> Operation[Any]:
    given = _body(
        texts=None if texts is None else column(texts),
        vectors=None if anchors is None else vectors.to_matrix(anchors, "anchors"),
        log=log,
        count=count,
    )
    body = _body(scorer=scorer, field=field, anchors=given or None, dry_run=True if dry_run else None)
    parse: Callable[[Reply], Any] = (lambda reply: dict(reply["estimate"])) if dry_run else Job.from_wire
    return Operation("put_reranker", parse, name, body, part=reranker)


def scored_pairs(name: str, *, reranker: str | None = None, limit: int, cursor: str | None = None) -> Operation[Reply]:
    return Operation("scored_pairs", dict, name, _body(reranker=reranker, limit=limit, cursor=cursor))


def list_jobs() -> Operation[list[Job]]:
    return Operation("list_jobs", lambda reply: [Job.from_wire(job) for job in reply["jobs"]])


def get_job(job_id: str) -> Operation[Job]:
    return Operation("get_job", Job.from_wire, job_id)


def cancel_job(job_id: str) -> Operation[Job]:
    return Operation("cancel_job", Job.from_wire, job_id)


def id_list(ids: Any) -> list[Id]:
    """Return one id or a collection of ids as a list of plain ids."""
    if isinstance(ids, (Expression, Mapping)):
        raise InvalidRequest(
            f"ids are text or integers, not {type(ids).__name__}", field="ids", hint="filters go in where="
        )
    return [plain(ids)] if _is_one_id(ids) else column(ids)


def _is_one_id(ids: Any) -> bool:
    return isinstance(ids, (str, int, np.integer)) or not (hasattr(ids, "__iter__") or hasattr(ids, "to_pylist"))


def _sought(q: Any, ids: Any) -> tuple[dict[str, Any], bool]:
    """Return what to search for, in wire form, and whether it is a single query."""
    if (q is None) == (ids is None):
        raise InvalidRequest(
            "give either a vector (or several) or ids=", code="missing" if q is None else None, field="q"
        )
    if q is None:
        return {"ids": id_list(ids)}, _is_one_id(ids)
    array = vectors.to_array(q, "query")
    return ({"vector": array}, True) if array.ndim == 1 else ({"vectors": array}, False)


def _chosen(ids: Any, where: Where) -> dict[str, Any]:
    if (ids is None) == (where is None):
        raise InvalidRequest("give either ids= or where=", code="missing" if ids is None else "invalid", field="where")
    return _body(ids=None if ids is None else id_list(ids), filter=compile_where(where))


def _shown(select: Select, with_: Iterable[str]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if select is not True:
        shown["select"] = select if select is False else list(_names(select, "select"))
    if with_:
        shown["with"] = list(_names(with_, "with_"))
    return shown


def _names(names: Any, what: str) -> Iterable[str]:
    if isinstance(names, str):
        return [names]
    if not isinstance(names, Iterable):
        raise InvalidRequest(f"{what} must be a list of names", field=what)
    return names


def _body(**entries: Any) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if value is not None}


def _optional_dict(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else dict(value)


def _points(reply: Reply) -> list[Point]:
    return [Point.from_wire(row) for row in reply["points"]]


def _facet_values(reply: Reply) -> list[FacetValue]:
    return [FacetValue(entry["value"], int(entry["count"])) for entry in reply["values"]]


def _upsert_result(reply: Reply) -> UpsertResult:
    return UpsertResult(int(reply["upserted"]), int(reply["sequence"]), reply.get("outcomes"))


def _job_or_description(reply: Reply) -> Reply | Job:
    # a description has a "state" too (ready, building, read_only); only a job has an id and a kind
    return Job.from_wire(reply) if "id" in reply and "kind" in reply else dict(reply)
