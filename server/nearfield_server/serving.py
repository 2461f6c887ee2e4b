"""The process around the application: sockets, signals, the bounds of HTTP itself."""

from __future__ import annotations

import asyncio
import os
import socket
from time import monotonic
from types import FrameType
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from nearfield.errors import problem
from nearfield_server.service import Service
from nearfield_server.settings import Settings

HEADER_TIMEOUT = 10.0
"""Seconds in which the headers of a request must have arrived, from the connection or the first byte on."""
KEEP_ALIVE = 60


def listen(settings: Settings) -> socket.socket:
    """Return the bound, listening socket; port 0 takes a free one. Raises OSError where it cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family, backlog=2048)


def serve(app: FastAPI, settings: Settings, listener: socket.socket) -> None:
    """Serve until told to stop: SIGTERM or SIGINT drains, a second one ends the process at once."""
    protocol = type("Http", (BoundedHttp,), {"max_header_bytes": settings.limits.max_header_bytes})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace)),
        h11_max_incomplete_event_size=settings.limits.max_header_bytes,
    )
    service: Service = app.state.service
    DrainingServer(config, service, settings.drain_delay).run(sockets=[listener])
    if service.phase != "closed":
        os._exit(1)  # a call still runs; waiting for its thread could take for ever, and writes are durable


class DrainingServer(uvicorn.Server):
    """Uvicorn's server with our way of stopping.

    On the first signal the service says it drains and goes on answering for a moment, so that whatever sends
    it traffic can notice; then the port closes, what was admitted is finished, and the process exits with 0.
    """

    def __init__(self, config: uvicorn.Config, service: Service, delay: float) -> None:
        super().__init__(config)
        self._service = service
        self._delay = delay
        self._stop_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._stop_at is not None:
            os._exit(128 + sig)
        self._service.phase = "draining"
        self._stop_at = monotonic() + self._delay

    async def on_tick(self, counter: int) -> bool:
        if self._stop_at is not None and monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)


class BoundedHttp(HttpToolsProtocol):
    """Uvicorn's HTTP with bounds it lacks: bytes of headers, time for headers, and refusals as problems."""

    max_header_bytes = 16 * 1024
    _header_bytes = 0
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._unanswered: list[RequestResponseCycle] = []
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every unanswered request: of several that were sent ahead, uvicorn tells only the last."""
        self._headers_arrived()
        for cycle in self._unanswered:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._expect_headers()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name, value, b": \r\n")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._headers_arrived()
        super().on_headers_complete()
        self._unanswered = [cycle for cycle in self._unanswered if not cycle.response_complete]
        self._unanswered.append(self.cycle)

    def send_400_response(self, msg: str) -> None:
        if self._header_bytes > self.max_header_bytes:
            self._refuse(431, "headers_too_large", f"The headers are larger than {self.max_header_bytes} bytes.")
        else:
            self._refuse(400, "http_invalid", "This is not a valid HTTP request.")

    def _count(self, *parts: bytes) -> None:
        self._header_bytes += sum(map(len, parts))
        if self._header_bytes > self.max_header_bytes:
            raise ValueError("headers too large")

    def _expect_headers(self) -> None:
        self._headers_arrived()
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT, self._headers_late)

    def _headers_arrived(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_late(self) -> None:
        """A silent connection is closed, a slow one told why, one that still answers left alone for now."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._expect_headers()
        elif self._header_bytes:
            self._refuse(408, "headers_timeout", "The headers did not arrive in time.")
        else:
            self.transport.close()

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answer what never became a request, and hang up."""
        if self.transport.is_closing():
            return
        body = problem(status, code, detail)
        payload = orjson.dumps(body)
        head = (
            f"HTTP/1.1 {status} {body['title']}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(payload)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + payload)
        self.transport.close()
