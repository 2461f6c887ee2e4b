"""A connection that closes after a refusal takes the rest of the request first, within bounds.

Closed with bytes unread, it is reset, and a client that reads no answer before it has sent everything never sees why.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 128 * 1024 * 1024
MOST_SECONDS = 10.0


class Linger:
    """Plain ASGI. The answer itself is sent at once; only the end of it waits, for clients that asked to close."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _closes(scope):
            await self._app(scope, receive, send)
            return
        arriving = True

        async def receive_watched() -> Message:
            nonlocal arriving
            message = await receive()
            arriving = arriving and message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def send_lingering(message: Message) -> None:
            if not arriving or message["type"] != "http.response.body" or message.get("more_body", False):
                await send(message)
                return
            await send({**message, "more_body": True})
            try:
                await _discard(receive)
            finally:
                await send({"type": "http.response.body"})

        await self._app(scope, receive_watched, send_lingering)


async def _discard(receive: Receive) -> None:
    left = MOST_BYTES
    try:
        async with asyncio.timeout(MOST_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        pass


def _closes(scope: Scope) -> bool:
    """Whether the client has the connection closed, and sends its body without being told to go on."""
    headers = dict(scope["headers"])
    asked = scope.get("http_version") == "1.0" or b"close" in headers.get(b"connection", b"").lower()
    return asked and b"expect" not in headers
