"""Is it alive, is it ready, what can it do; metrics and the page that documents the API."""

from __future__ import annotations

import asyncio

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from nearfield import wire
from nearfield_server import metrics
from nearfield_server.auth import Scope
from nearfield_server.bodies import JSON_TYPE
from nearfield_server.calls import call
from nearfield_server.console import docs_page
from nearfield_server.contract import ScopedRoute, documented
from nearfield_server.errors import overloaded
from nearfield_server.service import service_of

router = APIRouter(route_class=ScopedRoute, tags=["system"])

ALIVE = b'{"status":"ok"}'
READY = b'{"status":"ready"}'
DOCS_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/", **documented(Scope.OPEN, reply=None, media_type="text/html", statuses={307: "To /docs"}))
async def front(request: Request) -> Response:
    """Lead a browser to the page of the API."""
    return RedirectResponse("docs")


@router.get("/v1", **documented(Scope.READ, reply=wire.Info))
async def info(request: Request) -> Response:
    """Tell the version, the limits and the features."""
    return await call(request, lambda engine, _: engine.info(), lane="control", body=False)


@router.get("/livez", **documented(Scope.OPEN, reply=wire.Health))
async def livez(request: Request) -> Response:
    """Answer 200 while the process answers at all."""
    return Response(ALIVE, media_type=JSON_TYPE)


@router.get("/healthz", **documented(Scope.OPEN, reply=wire.Health))
async def healthz(request: Request) -> Response:
    """Answer as /livez does."""
    return Response(ALIVE, media_type=JSON_TYPE)


@router.get(
    "/readyz",
    **documented(Scope.OPEN, reply=wire.Health, statuses={200: "Ready"}, refusals={503: "Not ready"}),
)
async def readyz(request: Request) -> Response:
    """Answer 200 when requests will be served, 503 while starting, draining or not able to."""
    service = service_of(request)
    if service.phase != "serving":
        raise overloaded(503, f"The service is {service.phase}.", retry_after=1.0, code=service.phase)
    state = await asyncio.to_thread(service.engine.ready)
    if not state["ready"]:
        raise overloaded(503, f"The engine is not ready: {state['reason']}.", retry_after=1.0, code="not_ready")
    told = {"read_only": state["read_only"]} if state.get("read_only") else {}
    if state.get("device"):  # one that is down makes nothing unready: the CPU answers
        told["device"] = {key: state["device"][key] for key in ("name", "state", "reason")}
    return Response(orjson.dumps({"status": "ready", **told}) if told else READY, media_type=JSON_TYPE)


@router.get("/metrics", **documented(Scope.METRICS, reply=None, media_type="text/plain"))
async def prometheus(request: Request) -> Response:
    """Tell all counters as Prometheus text."""
    text = await asyncio.to_thread(service_of(request).metrics.render)
    return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})


@router.get("/openapi.json", **documented(Scope.OPEN, reply=None))
async def openapi(request: Request) -> Response:
    """Describe every address, as OpenAPI."""
    return Response(orjson.dumps(request.app.openapi()), media_type=JSON_TYPE)


@router.get("/docs", **documented(Scope.OPEN, reply=None, media_type="text/html"))
async def docs(request: Request) -> Response:
    """Show the API as a page, and try it."""
    return HTMLResponse(docs_page(), headers={"Content-Security-Policy": DOCS_POLICY})
