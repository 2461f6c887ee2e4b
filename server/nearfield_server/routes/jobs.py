"""Long work: look at it, cancel it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from nearfield import wire
from nearfield_server.auth import Scope
from nearfield_server.calls import call
from nearfield_server.contract import ScopedRoute, documented

router = APIRouter(route_class=ScopedRoute, tags=["jobs"])


@router.get("/v1/jobs", **documented(Scope.READ, reply=wire.Jobs))
async def list_jobs(request: Request) -> Response:
    """List the jobs of this process, newest first."""
    return await call(request, lambda engine, _: engine.list_jobs(), lane="control", body=False)


@router.get("/v1/jobs/{job}", **documented(Scope.READ, reply=wire.Job))
async def get_job(request: Request, job: str) -> Response:
    """Tell the state and progress of a job."""
    return await call(request, lambda engine, _: engine.get_job(job), lane="control", body=False)


@router.delete("/v1/jobs/{job}", **documented(Scope.WRITE, reply=wire.Job))
async def cancel_job(request: Request, job: str) -> Response:
    """Cancel a job."""
    return await call(request, lambda engine, _: engine.cancel_job(job), lane="control", body=False)
