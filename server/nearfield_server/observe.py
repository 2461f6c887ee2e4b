"""What every request leaves behind: an id, a count, its time, and a log line where something is off."""

from __future__ import annotations

import asyncio
import re
import secrets
from time import perf_counter
from typing import TYPE_CHECKING

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nearfield_server.errors import Problem, overloaded

if TYPE_CHECKING:
    from nearfield_server.service import Service

SLOW_LINES_APART = 1.0
"""Seconds between two lines about slow requests; under load those in between are only counted."""
GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
CLIENT_LEFT = 499

log = structlog.get_logger("nearfield.http")


class Observe:
    """The layer around every answer (plain ASGI: it is on the path of every search).

    An exception nobody expected ends here: logged with its traceback and answered with a bare 500 problem.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._metrics = service.metrics
        self._slow = service.settings.slow_request
        self._slow_said = -SLOW_LINES_APART
        self._slow_unsaid = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        request_id = _request_id(scope)
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except ClientDisconnect:
            status = CLIENT_LEFT
        except asyncio.CancelledError:  # the grace at shutdown is over
            if not status:
                ended = overloaded(503, "The service stopped before the answer was found.", retry_after=1.0)
                await ended.response()(scope, receive, send_marked)
        except Exception:
            log.exception("request_failed", request_id=request_id.decode(), method=scope["method"], route=_route(scope))
            if not status:
                problem = Problem(500, "internal", "The server failed to answer; its log says why.")
                await problem.response()(scope, receive, send_marked)
            status = 500
        finally:
            self._account(scope, request_id, status, perf_counter() - started)

    def _account(self, scope: Scope, request_id: bytes, status: int, seconds: float) -> None:
        route = _route(scope)
        self._metrics.answered(route, scope["method"], status, seconds)
        details = {
            "request_id": request_id.decode(),
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 1),
        }
        if status >= 500 and status != 503:  # busy answers are counted, not listed
            log.warning("failed_request", **details)
        elif seconds >= self._slow:
            self._say_slow(details)

    def _say_slow(self, details: dict[str, object]) -> None:
        now = perf_counter()
        if now - self._slow_said < SLOW_LINES_APART:
            self._slow_unsaid += 1
            return
        log.info("slow_request", **details, unlisted=self._slow_unsaid)
        self._slow_said, self._slow_unsaid = now, 0


def _route(scope: Scope) -> str:
    """The pattern that matched, never the path: paths are the client's, and without bound."""
    path: str = getattr(scope.get("route"), "path", "unmatched")
    return path


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and GIVEN_ID.fullmatch(value):
            given: bytes = value
            return given
    return secrets.token_hex(8).encode()
