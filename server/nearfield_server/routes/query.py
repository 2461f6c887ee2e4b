"""Search."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from nearfield import wire
from nearfield_server.auth import Scope
from nearfield_server.calls import call
from nearfield_server.contract import ScopedRoute, documented

router = APIRouter(route_class=ScopedRoute, tags=["query"])


@router.post(
    "/v1/collections/{name}/query",
    **documented(
        Scope.READ,
        request=wire.Query,
        reply=wire.Results,
        frames=True,
        example={
            "vector": [0.1, 0.2, 0.3],
            "k": 10,
            "filter": {"color": "red", "price": {"lt": 50}},
            "explain": True,
        },
    ),
)
async def query(request: Request, name: str) -> Response:
    """Find the nearest points of one or many vectors, or of stored points, among those that pass a filter."""
    return await call(
        request,
        search=lambda engine, body, results: engine.query(name, body, admit=results.admit, told=results.write),
        lane="search",
        frames=True,
    )
