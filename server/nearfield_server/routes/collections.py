"""Create, list, describe, change and drop collections."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from nearfield import wire
from nearfield_server.auth import Scope
from nearfield_server.calls import call, created, job_or_ok
from nearfield_server.contract import ScopedRoute, documented

router = APIRouter(route_class=ScopedRoute, tags=["collections"])

AT = "/v1/collections/{name}"


@router.get("/v1/collections", **documented(Scope.READ, reply=wire.Collections))
async def list_collections(request: Request) -> Response:
    """List all collections."""
    return await call(request, lambda engine, _: engine.list_collections(), lane="control", body=False)


@router.put(
    AT,
    **documented(
        Scope.WRITE,
        request=wire.CreateCollection,
        reply=wire.Collection,
        statuses={201: "Created", 200: "It exists already, as the request declares it"},
        example={"dim": 384, "metric": "cosine", "attributes": {"color": "keyword"}},
    ),
)
async def create_collection(request: Request, name: str) -> Response:
    """Create a collection."""
    return await call(
        request, lambda engine, body: engine.create_collection(name, body), lane="control", outcome=created
    )


@router.get(AT, **documented(Scope.READ, reply=wire.Collection))
async def describe_collection(request: Request, name: str) -> Response:
    """Describe a collection: schema, counts, segments, bytes, state."""
    return await call(request, lambda engine, _: engine.describe_collection(name), lane="control", body=False)


@router.patch(
    AT,
    **documented(
        Scope.WRITE,
        request=wire.AlterCollection,
        reply=wire.Collection,
        statuses={200: "Changed", 202: "The change is a job"},
        also={202: wire.Job},
        example={"attributes": {"price": "float"}},
    ),
)
async def alter_collection(request: Request, name: str) -> Response:
    """Add a vector field, declare an attribute or change the index.

    An attribute declared where there are points has all of them read again, while writes wait, and every index built
    anew by a job, until which searches scan. Another index is a job, too; the old one serves until it ends.
    """
    return await call(
        request, lambda engine, body: engine.alter_collection(name, body), lane="control", outcome=job_or_ok
    )


@router.delete(AT, **documented(Scope.WRITE, reply=wire.Dropped))
async def drop_collection(request: Request, name: str) -> Response:
    """Drop a collection and all its points."""
    return await call(request, lambda engine, _: engine.drop_collection(name), lane="control", body=False)


@router.post(
    AT + "/optimize",
    **documented(
        Scope.WRITE,
        request=wire.Optimize,
        reply=wire.Job,
        statuses={202: "The job, new or already running"},
        body_required=False,
        example={},
    ),
)
async def optimize(request: Request, name: str) -> Response:
    """Bring every point written so far into an indexed segment, as a job."""
    return await call(request, lambda engine, body: engine.optimize(name, body), lane="control", outcome=job_or_ok)
