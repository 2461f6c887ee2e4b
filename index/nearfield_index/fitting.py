"""``PUT .../rerankers/{name}``: checked, its anchor queries chosen, its cost told, its job started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nearfield_index.collection import Collection
from nearfield_index.errors import InvalidRequest, ScorerFailed, TooLarge
from nearfield_index.limits import Limits
from nearfield_index.ranking.anchors import medoids
from nearfield_index.ranking.anchorset import AnchorSet
from nearfield_index.ranking.dispatch import Dispatcher
from nearfield_index.ranking.request import check_text
from nearfield_index.schema import check_flag, check_int, check_object
from nearfield_index.vectors import as_matrix

Json = dict[str, Any]

_KEYS = frozenset({"scorer", "field", "anchors", "dry_run"})
_ANCHOR_KEYS = frozenset({"texts", "vectors", "log", "count"})
_FEWEST = 2
_UPLOADED = 10_000


def put(collection: Collection, name: str, body: Mapping[str, Any], *, limits: Limits) -> Json:
    """The job that fits the reranker, with an ``estimate``; with ``dry_run`` the estimate alone."""
    check_object(body, at="body", known=_KEYS)
    dispatcher = collection.scorers.get(body.get("scorer"), at="scorer")
    field = collection.schema.field_of(body)
    anchors = None
    if body.get("anchors") is not None:
        anchors = _anchors(collection, body["anchors"], field, limits)
    if check_flag(body.get("dry_run", False), at="dry_run"):
        return {"estimate": _estimate(collection, name, dispatcher, field, anchors)}
    job = collection.rerankers.put(name, dispatcher.name, field, anchors, limits.rerankers)
    spec = collection.rerankers.get(name).current
    found = collection.rerankers.get(name)
    estimate = collection.rerankers.estimate(
        dispatcher.name, field, spec["anchors"], found.directory / spec["directory"]
    )
    return job.to_wire() | {"estimate": estimate}


def _anchors(collection: Collection, given: object, field: str, limits: Limits) -> AnchorSet:
    parts = check_object(given, at="anchors", known=_ANCHOR_KEYS)
    if "log" in parts:
        if len(parts) > 1:
            raise InvalidRequest("give 'log' alone, or 'texts' with 'vectors'", field="anchors")
        count = check_int(parts["log"], at="anchors.log", low=_FEWEST, high=limits.rerank_anchors)
        logged, vectors = collection.reranked.sample(field)
        if len(logged) < _FEWEST:
            raise InvalidRequest(
                f"the log holds {len(logged)} reranked queries by vector, {_FEWEST} are needed",
                code="log_too_short",
                field="anchors.log",
                hint="ask some queries with 'rerank' first, or upload anchors",
            )
        return _chosen(logged, vectors, count)
    texts = parts.get("texts")
    if not isinstance(texts, (list, tuple)) or "vectors" not in parts:
        raise InvalidRequest("needs 'texts' and their 'vectors', or 'log'", code="missing", field="anchors")
    if len(texts) > _UPLOADED:
        raise TooLarge(f"at most {_UPLOADED} anchor queries to choose from", field="anchors.texts")
    checked = [check_text(text, at=f"anchors.texts[{n}]", limits=limits) for n, text in enumerate(texts)]
    spec = collection.schema.field(field)
    matrix = as_matrix(parts["vectors"], dim=spec.dim, at="anchors.vectors", metric=spec.metric, max_rows=_UPLOADED)
    if len(matrix) != len(checked):
        raise InvalidRequest(f"{len(checked)} texts need {len(checked)} vectors", field="anchors.vectors")
    if len(checked) < _FEWEST:
        raise InvalidRequest(f"at least {_FEWEST} anchor queries are needed", field="anchors.texts")
    most = limits.rerank_anchors
    count = min(len(checked), most) if parts.get("count") is None else parts["count"]
    return _chosen(checked, matrix, check_int(count, at="anchors.count", low=_FEWEST, high=most))


def _chosen(texts: list[str], vectors: Any, count: int) -> AnchorSet:
    rows = medoids(vectors, count)
    return AnchorSet([texts[row] for row in rows.tolist()], vectors[rows])


def _estimate(collection: Collection, name: str, dispatcher: Dispatcher, field: str, anchors: AnchorSet | None) -> Json:
    """What the job will cost. A scorer that was never asked is asked for one batch, to learn its speed."""
    count, directory = 0, None
    if name in collection.rerankers.names():
        found = collection.rerankers.get(name)
        count = found.current["anchors"]
        if anchors is None or anchors.fingerprint == found.current["fingerprint"]:
            directory = found.directory / found.current["directory"]
            anchors = anchors or AnchorSet.open(directory / "anchors")
    if anchors is None:
        raise InvalidRequest("a new reranker needs anchors", code="missing", field="anchors")
    count = len(anchors.texts)
    if dispatcher.pairs_per_second is None:
        points = [p for p in collection.store.fetch(collection.store.keys(limit=64).tolist()) if p.text]
        pairs = [(anchors.texts[0], p.text or "") for p in points][: dispatcher.limits.max_batch]
        if pairs:
            ask = dispatcher.ask(pairs, allowance=len(pairs), background=True)
            if not ask.wait(dispatcher.limits.deadline_s) or ask.gone:
                dispatcher.abandon(ask)
                raise ScorerFailed(f"the scorer {dispatcher.name} does not answer")
    return {"anchors": count, **collection.rerankers.estimate(dispatcher.name, field, count, directory)}
