"""Rerankers: what a scorer thinks of all points, learned from a few queries; and what was scored, for training."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from nearfield import wire
from nearfield_server.auth import Scope
from nearfield_server.calls import call, job_or_ok
from nearfield_server.contract import ScopedRoute, documented

router = APIRouter(route_class=ScopedRoute, tags=["rerankers"])

ALL = "/v1/collections/{name}/rerankers"
AT = ALL + "/{reranker}"


@router.get(ALL, **documented(Scope.READ, reply=wire.Rerankers))
async def list_rerankers(request: Request, name: str) -> Response:
    """List the rerankers of a collection with their state."""
    return await call(request, lambda engine, _: engine.list_rerankers(name), lane="control", body=False)


@router.put(
    AT,
    **documented(
        Scope.WRITE,
        request=wire.PutReranker,
        reply=wire.Estimated,
        statuses={200: "What it would cost (`dry_run`)", 202: "The job, new, resumed or running"},
        also={202: wire.Job},
        example={"scorer": "relevance", "anchors": {"log": 200}},
    ),
)
async def put_reranker(request: Request, name: str, reranker: str) -> Response:
    """Score all points under anchor queries and learn from it, as a job that resumes where it stopped."""
    return await call(
        request, lambda engine, body: engine.put_reranker(name, reranker, body), lane="control", outcome=job_or_ok
    )


@router.get(AT, **documented(Scope.READ, reply=wire.Reranker))
async def get_reranker(request: Request, name: str, reranker: str) -> Response:
    """Tell the state, calls and cost of a reranker."""
    return await call(request, lambda engine, _: engine.get_reranker(name, reranker), lane="control", body=False)


@router.delete(AT, **documented(Scope.WRITE, reply=wire.Dropped))
async def drop_reranker(request: Request, name: str, reranker: str) -> Response:
    """Drop a reranker and everything scored for it."""
    return await call(request, lambda engine, _: engine.drop_reranker(name, reranker), lane="control", body=False)


@router.post(
    "/v1/collections/{name}/pairs",
    **documented(
        Scope.READ,
        request=wire.ReadPairs,
        reply=wire.ScoredPairs,
        body_required=False,
        example={"limit": 100},
    ),
)
async def scored_pairs(request: Request, name: str) -> Response:
    """Page through scored pairs of queries and points, to train a smaller model on."""
    return await call(request, lambda engine, body: engine.scored_pairs(name, body), lane="search")
