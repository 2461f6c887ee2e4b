"""Request bodies: received within bounds of size and pace, then parsed to one mapping."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import orjson
from starlette.requests import ClientDisconnect, Request

from nearfield.frames import MEDIA_TYPE as FRAME_TYPE
from nearfield.frames import decode as decode_frame
from nearfield_server.admission import Place
from nearfield_server.errors import Problem

JSON_TYPE = "application/json"

Kind = Literal["json", "frame"]


def kind_of(request: Request, *, frames: bool) -> Kind | None:
    """How the headers say the body is written, None where they say nothing. Raises Problem 415 otherwise."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("identity", ""):
        raise Problem(415, "content_encoding_unsupported", "Bodies are taken uncompressed only.")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not media_type:
        return None
    if media_type == JSON_TYPE:
        return "json"
    if media_type == FRAME_TYPE and frames:
        return "frame"
    raise unsupported_type(frames=frames)


def unsupported_type(*, frames: bool) -> Problem:
    taken = f"{JSON_TYPE} or {FRAME_TYPE}" if frames else JSON_TYPE
    return Problem(415, "media_type_unsupported", f"the body must be {taken}", hint="set Content-Type")


async def receive(request: Request, place: Place, *, limit: int, silence: float) -> bytes:
    """The whole body, at most ``limit`` bytes of it, accounted to ``place`` as it grows.

    Raises Problem 413 past the limit (by Content-Length before the first byte, by count after), 408 where
    the client says nothing for ``silence`` seconds, 400 where Content-Length is no number.
    """
    announced = _announced(request)
    if announced > limit:
        raise _too_large(limit)
    place.hold(announced)
    chunks: list[bytes] = []
    total = 0
    more = True
    while more:
        message = await _next_message(request, silence)
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        total += len(chunk)
        if total > limit:
            raise _too_large(limit)
        if total > announced:
            place.hold(total)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def parse(raw: bytes, kind: Kind) -> dict[str, Any]:
    """The mapping that ``raw`` spells; an empty body is the empty mapping.

    Raises Problem 400 where it cannot be read at all, 422 where it is not an object (the frame format has
    errors of its own, ``nearfield.errors``). Nothing of it is repeated.
    """
    if not raw:
        return {}
    if kind == "frame":
        return decode_frame(raw)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "json_invalid", f"The body is not valid JSON: stopped at character {error.pos}.") from None
    if not isinstance(body, dict):
        raise Problem(422, "body_not_object", "The body must be a JSON object.")
    return body


async def _next_message(request: Request, silence: float) -> Any:
    try:
        async with asyncio.timeout(silence):
            message = await request.receive()
    except TimeoutError:
        raise Problem(408, "body_timeout", "The body stopped arriving.", headers={"Connection": "close"}) from None
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


def _announced(request: Request) -> int:
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or len(length) > 19:
        raise Problem(400, "content_length_invalid", "Content-Length must be a number.")
    return int(length)


def _too_large(limit: int) -> Problem:
    return Problem(413, "body_too_large", f"the body is larger than {limit} bytes", hint="send it in parts")
