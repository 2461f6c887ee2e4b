"""A query under an expensive scorer: candidates from the view, rounds of scoring in step, the best by the scorer.

The queries of a batch go through their rounds together, so that they share the scorer's batches as concurrent requests
do. What is scored when the time is up is the answer, and says that it is partial.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearfield_index.backends.space import queried, scores
from nearfield_index.blas import one_thread
from nearfield_index.collection import Collection
from nearfield_index.errors import Busy, InvalidRequest, ScorerFailed
from nearfield_index.execution.batch import Report, Search
from nearfield_index.execution.query import Query
from nearfield_index.execution.run import run
from nearfield_index.execution.shortlist import Shortlist
from nearfield_index.filters.expr import Expr
from nearfield_index.ranking.dispatch import Ask, Dispatcher
from nearfield_index.ranking.latents import Latents
from nearfield_index.ranking.pool import Pool, Scales
from nearfield_index.ranking.request import WITH_LATENTS, Rerank
from nearfield_index.ranking.rounds import Rounds
from nearfield_index.reading import selected
from nearfield_index.segments.part import FindKeys
from nearfield_index.segments.view import View
from nearfield_index.storage.pairs import Scored
from nearfield_index.storage.rows import StoredPoint

Json = dict[str, Any]
Ints = np.ndarray[Any, np.dtype[np.int64]]

_TOGETHER = 16
"""Queries of a batch that go through their rounds in step: a shortlist of each is held in memory."""


@dataclass
class Hunt:
    """One query on its way."""

    text: str
    vector: Any
    view: View
    rounds: Rounds
    points: dict[int, StoredPoint] = field(default_factory=dict)
    textless: int = 0


@dataclass
class Account:
    """What a request cost, as ``meta.rerank`` tells."""

    calls: int = 0
    cached: int = 0
    rounds: int = 0
    scorer_s: float = 0.0
    partial: bool = False
    scored: int = 0
    error: str | None = None
    per_round: list[Json] = field(default_factory=list)


def rerank_query(collection: Collection, query: Query, rerank: Rerank) -> Json:
    """Answer a checked query with a ``rerank`` part, in the shape of the wire (``meta.ms`` is the caller's).

    Raises :class:`ScorerFailed` when calls failed and nothing at all was scored.
    """
    start = time.perf_counter()
    collection.wait_for(query)
    dispatcher, latents, warnings = _scorer(collection, query, rerank)
    patience = query.timeout_s if query.timeout_s is not None else dispatcher.limits.deadline_s
    deadline = time.monotonic() + patience
    vectors = collection.query_vectors(query)
    account, report = Account(), Report()
    results: list[list[Json]] = []
    view, find_keys = collection.view_for(query.filters, query.ids or ())
    with dispatcher.at_work():
        for first in range(0, len(vectors), _TOGETHER):
            group = range(first, min(len(vectors), first + _TOGETHER))
            with one_thread():
                hunts = [_begin(collection, query, rerank, vectors, n, view, find_keys, latents, report) for n in group]
            _hunt(collection, dispatcher, hunts, account, deadline)
            results += [_answer(collection, query, hunt) for hunt in hunts]
            for hunt in hunts:
                _log(collection, dispatcher, hunt)
            for hunt in hunts:
                if hunt.textless:
                    warnings.append(f"{hunt.textless} points without text were left out")
    if account.error is not None:
        if not account.scored:
            raise ScorerFailed(
                f"the scorer {dispatcher.name} failed and nothing was scored", hint="the server's log has the reason"
            )
        warnings.append(f"calls of the scorer {dispatcher.name} failed")
    elif account.partial:
        warnings.append("the scorer was too slow for the whole budget")
    collection.note_reranked(query, vectors, rerank)
    shown: Json = {
        "method": rerank.method,
        "scorer": dispatcher.name,
        "calls": account.calls,
        "cached": account.cached,
        "rounds": account.rounds,
        "ms": round((time.perf_counter() - start) * 1e3, 3),
        "scorer_ms": round(account.scorer_s * 1e3, 3),
        "partial": account.partial,
    }
    if query.explain:
        shown["per_round"] = account.per_round
    unnamed = collection.warnings(view, query.filters, query.selection)
    meta: Json = {
        "sequence": view.sequence,
        "warnings": [*unnamed, *dict.fromkeys(warnings)],
        "recall": {"target": query.recall, "estimate": None},
        "rerank": shown,
    }
    if query.explain:
        meta["plans"] = report.plans
    return {"results": results, "meta": meta}


def _scorer(collection: Collection, query: Query, rerank: Rerank) -> tuple[Dispatcher, Latents | None, list[str]]:
    if rerank.scorer is not None:
        return collection.scorers.get(rerank.scorer, at="rerank.scorer"), None, []
    spec, latents = collection.rerankers.serving(rerank.reranker or "")
    if spec["field"] != query.field:
        raise InvalidRequest(
            f"this reranker was fitted on the vector field {spec['field']}", field="field", value=query.field
        )
    dispatcher = collection.scorers.get(spec["scorer"], at="rerank.reranker")
    warnings = []
    if dispatcher.version != spec["version"]:
        warnings.append(f"the reranker was fitted on version {spec['version']} of its scorer")
    return dispatcher, latents if rerank.method in WITH_LATENTS else None, warnings


def _begin(
    collection: Collection,
    query: Query,
    rerank: Rerank,
    vectors: Any,
    number: int,
    view: View,
    find_keys: FindKeys,
    latents: Latents | None,
    report: Report,
) -> Hunt:
    """Candidates of one query, and the rounds over them."""
    vector = vectors[number]
    expr = query.filters[number if len(query.filters) > 1 else 0]
    own = find_keys([query.ids[number]]) if query.ids is not None else np.empty(0, np.int64)
    metric = collection.schema.vectors[query.field].metric
    shortlist = Shortlist(view, query.field, vector, expr, find_keys, metric, latents, own)
    scales = _scales(rerank, latents)
    if shortlist.whole:
        pool = Pool(shortlist.everything(), scales)
    else:
        pool = Pool(shortlist.first(_search(collection, query, rerank, vector, expr, view, find_keys, report)), scales)
    rounds, seeds = rerank.rounds, None
    if rerank.method == "rerank":
        rounds = 1
    elif rerank.method == "anncur" and latents is not None:
        rounds, seeds = 2, _places(pool, latents.anchors)
    probe = None if shortlist.whole or rounds == 1 else shortlist.probe
    made = Rounds(pool, budget=rerank.budget, rounds=rounds, prior=rerank.prior, seeds=seeds, probe=probe)
    return Hunt(rerank.texts[number], vector, view, made)


def _scales(rerank: Rerank, latents: Latents | None) -> Scales:
    if latents is None:
        return Scales(1.0, 0.0)
    return Scales(latents.vector_scale if rerank.method == "joint" else 0.0, latents.latent_scale)


def _search(
    collection: Collection,
    query: Query,
    rerank: Rerank,
    vector: Any,
    expr: Expr | None,
    view: View,
    find_keys: FindKeys,
    report: Report,
) -> Any:
    """The ordinary answer, as wide as the budget: never worse than rescoring it."""
    metric = collection.schema.vectors[query.field].metric
    extra = 0 if query.ids is None else 1
    search = Search(query.field, vector.reshape(1, -1), [expr], rerank.budget + extra, query.recall)
    found, ran = run(view, search, metric, collection.builder.calibrations, find_keys)
    report.ran += ran.ran
    return found


def _places(pool: Pool, pks: Ints) -> Ints:
    """Places in the pool of those row keys that are in it, in the order given."""
    held = pool.pks()
    order = np.argsort(held, kind="stable")
    if not len(held):
        return np.empty(0, np.int64)
    at = np.minimum(np.searchsorted(held[order], pks), len(held) - 1)
    return np.asarray(order[at[held[order][at] == pks]], np.int64)


def _hunt(
    collection: Collection, dispatcher: Dispatcher, hunts: Sequence[Hunt], account: Account, deadline: float
) -> None:
    """Go through the rounds of some queries in step until their budgets, their items or the time are used up."""
    while True:
        start = time.perf_counter()
        with one_thread():
            asked = [(hunt, places) for hunt in hunts if len(places := _choose(collection, hunt))]
        if not asked:
            break
        chosen = time.perf_counter()
        try:
            made = dispatcher.ask_all([(_pairs(hunt, places), hunt.rounds.unspent) for hunt, places in asked])
        except Busy:
            if not account.scored:
                raise
            account.partial = True  # what was paid for is an answer
            break
        asks: list[tuple[Hunt, Ints, Ask]] = [(*each, ask) for each, ask in zip(asked, made, strict=True)]
        late = False
        try:
            for ask in made:
                late = not ask.wait(deadline - time.monotonic()) or late
        finally:
            for ask in made:
                dispatcher.abandon(ask)
        waited = time.perf_counter() - chosen
        account.scorer_s += waited
        account.rounds += 1
        for hunt, places, ask in asks:
            hunt.rounds.tell(places, ask.scores, ask.sent + ask.cached)
            account.calls += ask.sent
            account.scored += int(np.isfinite(ask.scores).sum())
            account.cached += ask.cached
            account.error = ask.error if ask.gone else account.error
            account.partial = account.partial or late or bool(np.isnan(ask.scores).any())
        account.per_round.append(
            {
                "asked": sum(len(places) for _, places in asked),
                "calls": sum(ask.sent for *_, ask in asks),
                "cached": sum(ask.cached for *_, ask in asks),
                "candidates": max(hunt.rounds.pool.count for hunt, _ in asked),
                "ms": round((time.perf_counter() - start) * 1e3, 3),
                "scorer_ms": round(waited * 1e3, 3),
                "ridge": asked[0][0].rounds.ridges[-1] if asked[0][0].rounds.ridges else None,
            }
        )
        dead = all(ask.gone and not np.isfinite(ask.scores).any() for *_, ask in asks)
        if late or dead or time.monotonic() > deadline:
            account.partial = account.partial or any(hunt.rounds.share for hunt in hunts)
            break


def _pairs(hunt: Hunt, places: Ints) -> list[tuple[str, str]]:
    return [(hunt.text, hunt.points[pk].text or "") for pk in hunt.rounds.pool.where(places)[2].tolist()]


def _choose(collection: Collection, hunt: Hunt) -> Ints:
    """Places of the coming round's items; all of them are there and have text."""
    found: list[Ints] = []
    wanted = hunt.rounds.share
    while wanted > 0:
        places = hunt.rounds.choose(wanted)
        if not len(places):
            break
        pks = hunt.rounds.pool.where(places)[2]
        points = {p.pk: p for p in collection.store.fetch(pks.tolist())}
        hunt.textless += sum(not point.text for point in points.values())
        hunt.points |= points
        good = np.array([bool(pk in points and points[pk].text) for pk in pks.tolist()])
        found.append(places[good])
        wanted -= int(good.sum())
    return np.concatenate([np.empty(0, np.int64), *found])


def _answer(collection: Collection, query: Query, hunt: Hunt) -> list[Json]:
    """Hits of one query by the scorer's scores, best first."""
    pool = hunt.rounds.pool
    places, scored = hunt.rounds.scored
    parts, rows, pks = pool.where(places)
    ties = np.zeros(len(places), np.int64)
    for number in np.unique(parts).tolist():
        mine = parts == number
        ties[mine] = hunt.view.parts[number].part.ties[rows[mine]]
    order = np.lexsort((pks, ties, -scored))[query.offset : query.offset + query.k]
    if query.min_score is not None:
        order = order[scored[order] >= query.min_score]
    base = _base_scores(collection, query, hunt, places[order])
    points = [hunt.points[pk] for pk in pks[order].tolist()]
    vectors = collection.vectors_of(points) if query.selection.vectors else {}
    return [
        selected({"id": p.id, "score": float(s), "base_score": float(b)}, p, query.selection, vectors)
        for p, s, b in zip(points, scored[order], base, strict=True)
    ]


def _log(collection: Collection, dispatcher: Dispatcher, hunt: Hunt) -> None:
    places, scored = hunt.rounds.scored
    if len(places):
        pks = hunt.rounds.pool.where(places)[2].tolist()
        collection.note_scored(Scored(hunt.text, dispatcher.name, dispatcher.version, pks, scored.tolist()))


def _base_scores(collection: Collection, query: Query, hunt: Hunt, places: Ints) -> Any:
    """What an ordinary search gives these items, from their rows."""
    metric = collection.schema.vectors[query.field].metric
    found = np.empty(len(places))
    for block, at, local in hunt.rounds.pool.located(places):
        asked = queried(hunt.vector.reshape(1, -1), metric)
        matrix = block.vectors[local]
        if metric.value == "l2":  # the extra column of stored rows is not read
            matrix = np.c_[matrix, np.zeros(len(matrix), np.float32)]
        found[at] = scores(asked, matrix, np.arange(len(local))[None, :], metric, precise=True)[0]
    return found
