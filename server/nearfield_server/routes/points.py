"""Write, read, count, page through and delete points."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from nearfield import wire
from nearfield_server.auth import Scope
from nearfield_server.calls import call
from nearfield_server.contract import ScopedRoute, documented

router = APIRouter(route_class=ScopedRoute, tags=["points"])

AT = "/v1/collections/{name}/points"
RED = {"filter": {"color": "red"}}


@router.post(
    AT,
    **documented(
        Scope.WRITE,
        request=wire.WritePoints,
        reply=wire.Written,
        statuses={200: "Durable and searchable"},
        frames=True,
        example={"points": [{"id": "a", "vector": [0.1, 0.2, 0.3], "attributes": {"color": "red", "price": 12}}]},
    ),
)
async def write_points(request: Request, name: str) -> Response:
    """Write points, as rows or as columns: upsert (default), insert or update."""
    return await call(request, lambda engine, body: engine.write_points(name, body), lane="write", frames=True)


@router.patch(
    AT,
    **documented(
        Scope.WRITE,
        request=wire.PatchPoints,
        reply=wire.Patched,
        example={"ids": ["a"], "set": {"price": 11}, "unset": ["color"]},
    ),
)
async def patch_points(request: Request, name: str) -> Response:
    """Change attributes of the points with these ids, or that pass a filter.

    They leave the index and are scanned until it takes them in: after a patch of many, optimize.
    """
    return await call(request, lambda engine, body: engine.patch_points(name, body), lane="write")


@router.post(AT + "/get", **documented(Scope.READ, request=wire.GetPoints, reply=wire.Points, example={"ids": ["a"]}))
async def get_points(request: Request, name: str) -> Response:
    """Read points by id; those that do not exist are left out."""
    return await call(request, lambda engine, body: engine.get_points(name, body), lane="search")


@router.post(AT + "/delete", **documented(Scope.WRITE, request=wire.DeletePoints, reply=wire.Deleted, example=RED))
async def delete_points(request: Request, name: str) -> Response:
    """Delete points by id or filter; unknown ids are no error."""
    return await call(request, lambda engine, body: engine.delete_points(name, body), lane="write")


@router.post(
    AT + "/count",
    **documented(Scope.READ, request=wire.CountPoints, reply=wire.Count, body_required=False, example=RED),
)
async def count_points(request: Request, name: str) -> Response:
    """Count the points that pass a filter, exactly."""
    return await call(request, lambda engine, body: engine.count_points(name, body), lane="search")


@router.post(
    AT + "/scan",
    **documented(Scope.READ, request=wire.ScanPoints, reply=wire.Page, body_required=False, example={"limit": 100}),
)
async def scan_points(request: Request, name: str) -> Response:
    """Page through the points that pass a filter."""
    return await call(request, lambda engine, body: engine.scan_points(name, body), lane="search")


@router.post(
    "/v1/collections/{name}/facet",
    **documented(Scope.READ, request=wire.Facet, reply=wire.FacetCounts, example={"field": "color"}),
)
async def facet(request: Request, name: str) -> Response:
    """Count points per value of an attribute."""
    return await call(request, lambda engine, body: engine.facet(name, body), lane="search")
