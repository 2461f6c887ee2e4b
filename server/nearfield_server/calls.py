"""One request through the service: let in, received, parsed, answered by the engine in a thread, written."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from nearfield_server.admission import LaneName
from nearfield_server.bodies import JSON_TYPE, Kind, kind_of, parse, receive, unsupported_type
from nearfield_server.engine import Body, Engine, Reply
from nearfield_server.metrics import Metrics
from nearfield_server.service import Service, service_of

Work = Callable[[Engine, Body], Reply]
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
    work: Work,
    *,
    lane: LaneName,
    body: bool = True,
    frames: bool = False,
    staged: bool = False,
    outcome: Outcome = ok,
) -> Response:
    """Answer ``request`` with what ``work(engine, body)`` returns.

    The request is let into its lane before any of its body is read, and parsed only once it holds a permit.
    ``body`` says whether there is one to read, ``frames`` whether it may be binary, ``staged`` whether
    the time of each stage is counted as a search. Raises Problem for what the service refuses, the engine's
    errors for what the engine refuses.
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
        turn = _Turn(service, work, raw, kind or "json", service.metrics if staged else None)
        reranked = staged and _RERANK in raw
        if not reranked:
            reply, payload = await entrance.run(turn, request.is_disconnected)
    if reranked:  # it waits for a scorer, and must not hold a permit that plain searches need
        entrance = service.admission.lane("rerank")
        async with entrance.place() as place:
            place.hold(len(raw))
            reply, payload = await entrance.run(turn, request.is_disconnected)
    status, headers = outcome(reply)
    return Response(payload, status, headers, JSON_TYPE)


class _Turn:
    """The part of a request that runs in a thread: parse, ask the engine, write the reply."""

    def __init__(self, service: Service, work: Work, raw: bytes, kind: Kind, metrics: Metrics | None) -> None:
        self._service = service
        self._work = work
        self._raw = raw
        self._kind = kind
        self._metrics = metrics
        self._received = perf_counter()

    def __call__(self) -> tuple[Reply, bytes]:
        started = perf_counter()
        body = parse(self._raw, self._kind)
        parsed = perf_counter()
        reply = self._work(self._service.engine, body)
        answered = perf_counter()
        payload = orjson.dumps(reply, default=_as_list, option=orjson.OPT_SERIALIZE_NUMPY)
        if self._metrics is not None:
            self._metrics.search_wait.observe(started - self._received)
            self._metrics.search_parse.observe(parsed - started)
            self._metrics.search_engine.observe(answered - parsed)
            self._metrics.search_encode.observe(perf_counter() - answered)
        return reply, payload


def _as_list(value: Any) -> Any:
    """What orjson cannot write by itself: arrays that are not contiguous, scalars of rarer types."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a reply holds a {type(value).__name__}")
