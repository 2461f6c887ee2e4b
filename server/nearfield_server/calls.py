"""One request through the service: let in, received, parsed, answered by the engine in a thread, written."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from nearfield_server.admission import Lane, LaneName, NoRoom, Room
from nearfield_server.bodies import JSON_TYPE, Kind, kind_of, parse, receive, unsupported_type
from nearfield_server.engine import Body, Engine, Reply
from nearfield_server.errors import Problem
from nearfield_server.service import Service, service_of

Work = Callable[[Engine, Body], Reply]
Search = Callable[[Engine, Body, "Results"], Reply]
_RERANK = b'"rerank"'

Outcome = Callable[[Reply], tuple[int, dict[str, str]]]


def ok(reply: Reply) -> tuple[int, dict[str, str]]:
    return 200, {}


def created(reply: Reply) -> tuple[int, dict[str, str]]:
    """201 for what is new, 200 for the same thing again."""
    return (201 if reply["created"] else 200), {}


def job_or_ok(reply: Reply) -> tuple[int, dict[str, str]]:
    """202 and the job's address where the reply is a job, 200 otherwise."""
    if "progress" not in reply:
        return 200, {}
    return 202, {"Location": f"/v1/jobs/{reply['id']}"}


async def call(
    request: Request,
    work: Work | None = None,
    *,
    search: Search | None = None,
    lane: LaneName,
    body: bool = True,
    frames: bool = False,
    outcome: Outcome = ok,
) -> Response:
    """Answer ``request`` with what ``work(engine, body)`` returns, or ``search(engine, body, results)``, whose hits are
    bounded and whose stages are timed.

    The request is let into its lane before any of its body is read, and parsed only once it holds a permit.
    ``body`` says whether there is one to read, ``frames`` whether it may be binary. Raises Problem for what the service
    refuses, the engine's errors for what the engine refuses.
    """
    service = service_of(request)
    kind = kind_of(request, frames=frames) if body else None
    entrance = service.admission.lane(lane)
    async with entrance.place() as place:
        raw = b""
        if body:
            limits = service.settings.limits
            raw = await receive(
                request, place, limit=limits.max_body_bytes, silence=service.settings.admission.body_timeout
            )
            if raw and kind is None:
                raise unsupported_type(frames=frames)
        turn = _Turn(service, work, search, raw, kind or "json")
        reranked = search is not None and _RERANK in raw
        if not reranked:
            reply, payload = await _in_room(request, entrance, turn, service.admission.room)
    if reranked:  # it waits for a scorer, and must not hold a permit that plain searches need
        entrance = service.admission.lane("rerank")
        async with entrance.place() as place:
            place.hold(len(raw))
            reply, payload = await _in_room(request, entrance, turn, service.admission.room)
    status, headers = outcome(reply)
    return Response(payload, status, headers, JSON_TYPE)


async def _in_room(request: Request, entrance: Lane, turn: _Turn, room: Room) -> tuple[Reply, bytes]:
    """Run ``turn``; where its hits do not fit beside those of others, give the permit back and wait until they do."""
    until = room.patience()
    while True:
        try:
            return await entrance.run(turn, request.is_disconnected)
        except NoRoom as full:
            await room.wait(full.hits, until)
            turn.waited = True
        if await request.is_disconnected():
            raise ClientDisconnect


class _Turn:
    """The part of a request that runs in a thread: parse, ask the engine, write the reply."""

    def __init__(self, service: Service, work: Work | None, search: Search | None, raw: bytes, kind: Kind) -> None:
        self._service = service
        self._work = work
        self._search = search
        self._raw = raw
        self._kind = kind
        self._received = perf_counter()
        self._body: Any = None
        self.waited = False

    def __call__(self) -> tuple[Reply, bytes]:
        started = perf_counter()
        if not self.waited:  # who has waited for room was parsed before
            self._body = parse(self._raw, self._kind)
        if self._work is not None:
            reply = self._work(self._service.engine, self._body)
            return reply, _written(reply)
        assert self._search is not None
        parsed = perf_counter()
        room = self._service.admission.room
        results = Results(room, self._service.settings.limits.max_reply_bytes)
        try:
            reply = self._search(self._service.engine, self._body, results)
            answered = perf_counter() - results.seconds
            payload = _written(reply)
        finally:
            room.give(results.held)
        metrics = self._service.metrics
        metrics.search_wait.observe(started - self._received)
        metrics.search_parse.observe(parsed - started)
        metrics.search_engine.observe(answered - parsed)
        metrics.search_encode.observe(perf_counter() - answered)
        return reply, payload


class Results:
    """The hits of one request: let in, and written query by query, so that few of them are objects at a time."""

    def __init__(self, room: Room, most_bytes: int) -> None:
        self.held = 0
        self.seconds = 0.0
        self._room = room
        self._most_bytes = most_bytes
        self._bytes = 0

    def admit(self, hits: int) -> None:
        self._room.take(hits)
        self.held = hits

    def write(self, hits: list[Reply]) -> orjson.Fragment:
        started = perf_counter()
        text = _written(hits)
        self._bytes += len(text)
        if self._bytes > self._most_bytes:
            raise Problem(
                413,
                "reply_too_large",
                f"the hits are larger than {self._most_bytes} bytes",
                field="k",
                hint="split the batch, ask for a smaller k, or select less",
            )
        self.seconds += perf_counter() - started
        return orjson.Fragment(text)


def _written(value: Any) -> bytes:
    return orjson.dumps(value, default=_as_list, option=orjson.OPT_SERIALIZE_NUMPY)


def _as_list(value: Any) -> Any:
    """What orjson cannot write by itself: arrays that are not contiguous, scalars of rarer types."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a reply holds a {type(value).__name__}")
