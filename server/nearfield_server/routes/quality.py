"""Are the answers good?"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from nearfield import wire
from nearfield_server.auth import Scope
from nearfield_server.calls import call
from nearfield_server.contract import ScopedRoute, documented

router = APIRouter(route_class=ScopedRoute, tags=["quality"])


@router.get("/v1/collections/{name}/quality", **documented(Scope.READ, reply=wire.Quality))
async def quality(request: Request, name: str) -> Response:
    """Report the measured recall of a collection."""
    return await call(request, lambda engine, _: engine.quality(name), lane="search", body=False)
