"""The application: the only place where the parts of the service are joined."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI

from nearfield_server import errors
from nearfield_server.admission import Admission
from nearfield_server.auth import gate
from nearfield_server.contract import require_scopes
from nearfield_server.engine import Engine
from nearfield_server.lingering import Linger
from nearfield_server.metrics import Metrics
from nearfield_server.observe import Observe
from nearfield_server.openapi import document
from nearfield_server.routes import ALL
from nearfield_server.service import Service
from nearfield_server.settings import Settings

LAST_CALLS = 2.0
"""Seconds that calls still get at the end, when their requests are gone; the engine closes after them."""

log = structlog.get_logger("nearfield.app")


def create_app(settings: Settings, engine: Engine) -> FastAPI:
    """Return the service that answers for ``engine``, which it owns from now on: shutdown closes it.

    Raises TypeError if a route declares no scope.
    """
    version = str(engine.info()["version"])
    admission = Admission(settings.admission)
    service = Service(
        settings=settings,
        engine=engine,
        admission=admission,
        gate=gate(settings),
        metrics=Metrics(engine, version, admission.lanes),
    )
    app = FastAPI(title="Nearfield", version=version, lifespan=_lifespan, openapi_url=None, redirect_slashes=False)
    app.state.service = service
    app.router.routes = [route for router in ALL for route in router.routes]
    require_scopes(app.router.routes)
    app.add_middleware(Observe, service=service)
    app.add_middleware(Linger)
    errors.install(app)
    _document(app, settings)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    service.phase = "serving"
    try:
        yield
    finally:
        service.phase = "draining"
        if await service.admission.close(LAST_CALLS):
            await asyncio.to_thread(service.engine.close)
            service.phase = "closed"
        else:
            log.error("calls_outlived_the_grace", seconds=service.settings.shutdown_grace)


def _document(app: FastAPI, settings: Settings) -> None:
    """Give ``app.openapi`` our document, made when first asked for."""
    made: list[dict[str, Any]] = []

    def openapi() -> dict[str, Any]:
        if not made:
            made.append(document(app.routes, app.version, secured=settings.has_keys))
        return made[0]

    app.openapi = openapi  # type: ignore[method-assign]
