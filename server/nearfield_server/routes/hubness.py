"""Hubness normalisation: fit, look, rotate the bank, drop; and let points out of quarantine."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from nearfield import wire
from nearfield_server.auth import Scope
from nearfield_server.calls import call, job_or_ok
from nearfield_server.contract import ScopedRoute, documented

router = APIRouter(route_class=ScopedRoute, tags=["hubness"])

AT = "/v1/collections/{name}/hubness"
QUERIES = [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]


@router.put(
    AT,
    **documented(
        Scope.WRITE,
        request=wire.FitHubness,
        reply=wire.Job,
        statuses={202: "The job; the fit is in force once it is done"},
        refusals={409: "The query log holds too few queries yet"},
        example={"bank": {"vectors": QUERIES}, "pairs": {"vectors": QUERIES, "ids": ["a", "b"]}},
    ),
)
async def fit_hubness(request: Request, name: str) -> Response:
    """Fit a hubness normalisation on a bank of queries, as a job."""
    return await call(request, lambda engine, body: engine.fit_hubness(name, body), lane="control", outcome=job_or_ok)


@router.get(AT, **documented(Scope.READ, reply=wire.Hubness))
async def hubness(request: Request, name: str) -> Response:
    """Report what was fitted, whether it helps, and the hubs."""
    return await call(request, lambda engine, _: engine.hubness(name), lane="control", body=False)


@router.delete(AT, **documented(Scope.WRITE, reply=wire.Dropped))
async def drop_hubness(request: Request, name: str) -> Response:
    """Drop the fits of a collection: searches are raw again."""
    return await call(request, lambda engine, _: engine.drop_hubness(name), lane="control", body=False)


@router.post(
    AT + "/rotate",
    **documented(
        Scope.WRITE,
        request=wire.RotateHubness,
        reply=wire.Job,
        statuses={202: "The job"},
        body_required=False,
        example={"vectors": QUERIES},
    ),
)
async def rotate_hubness(request: Request, name: str) -> Response:
    """Replace the oldest sixteenth of the bank by newer queries, as a job."""
    return await call(
        request, lambda engine, body: engine.rotate_hubness(name, body), lane="control", outcome=job_or_ok
    )


@router.post(
    AT + "/release",
    **documented(Scope.WRITE, request=wire.ReleasePoints, reply=wire.Released, example={"ids": ["a"]}),
)
async def release_points(request: Request, name: str) -> Response:
    """Let points out of the hub monitor's quarantine."""
    return await call(request, lambda engine, body: engine.release_points(name, body), lane="write")
