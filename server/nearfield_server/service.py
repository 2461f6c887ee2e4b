"""The joined parts of one running service, as routes see them."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from nearfield_server.admission import Admission
from nearfield_server.auth import Gate
from nearfield_server.engine import Engine
from nearfield_server.metrics import Metrics
from nearfield_server.settings import Settings


@dataclass
class Service:
    """One per application, made by ``create_app``; only ``phase`` changes, and only forward."""

    settings: Settings
    engine: Engine
    admission: Admission
    gate: Gate
    metrics: Metrics
    phase: str = "starting"
    """``starting``, ``serving``, ``draining``, then ``closed`` once the engine is."""


def service_of(request: Request) -> Service:
    """The service that answers this request."""
    service: Service = request.app.state.service
    return service
