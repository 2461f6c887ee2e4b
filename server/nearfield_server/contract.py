"""How a route states what it needs and what it answers: its scope, checked at start, and its OpenAPI part."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from nearfield import wire
from nearfield.frames import MEDIA_TYPE as FRAME_TYPE
from nearfield_server.auth import Scope
from nearfield_server.bodies import JSON_TYPE
from nearfield_server.errors import PROBLEM_TYPE
from nearfield_server.service import service_of

SCOPE_KEY = "x-nearfield-scope"
Handler = Callable[..., Awaitable[Response]]

_REFUSALS = {
    400: "The body cannot be read",
    401: "No API key, or an unknown one",
    403: "The API key may not do this",
    404: "No collection, point or job of that name",
    408: "The body stopped arriving, or the request's own timeout ran out",
    409: "Contradicts what is stored",
    413: "Over a size limit",
    415: "The body is of another media type",
    422: "The request is wrong",
    429: "Too many writes; see Retry-After",
    500: "Stored data is damaged, or the server failed",
    503: "Too busy or not ready; see Retry-After",
    507: "The disk is full",
}
_REFUSALS_WITHOUT_BODY = {status: text for status, text in _REFUSALS.items() if status not in (400, 413, 415)}
DONE: Mapping[int, str] = {200: "Done"}
NONE: Mapping[int, Any] = {}


class ScopedRoute(APIRoute):
    """A route whose handler takes the bare request and the parts of its path, reached only through the gate.

    FastAPI's reading and checking of bodies is left out (the engine checks, and vectors never pass through
    pydantic); its documentation is kept. A route that declares no scope cannot be made.
    """

    @property
    def scope(self) -> Scope:
        extra = self.openapi_extra or {}
        if SCOPE_KEY not in extra:
            raise TypeError(f"route {self.path} declares no scope")
        return Scope[extra[SCOPE_KEY].upper()]

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        needed = self.scope
        answer: Handler = self.endpoint

        async def handle(request: Request) -> Response:
            service_of(request).gate.check(request, needed)
            return await answer(request, **request.path_params)

        return handle


def require_scopes(routes: Iterable[BaseRoute]) -> None:
    """Raise TypeError if any route could be reached without having declared who may."""
    for route in routes:
        if not isinstance(route, ScopedRoute):
            raise TypeError(f"route {getattr(route, 'path', route)} is not a ScopedRoute")
        assert route.scope in Scope


def documented(
    scope: Scope,
    *,
    reply: type[BaseModel] | None,
    request: type[BaseModel] | None = None,
    statuses: Mapping[int, str] = DONE,
    also: Mapping[int, type[BaseModel]] = NONE,
    refusals: Mapping[int, str] = NONE,
    frames: bool = False,
    body_required: bool = True,
    media_type: str = JSON_TYPE,
    example: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments for a route decorator: what OpenAPI says of it, and the scope it demands.

    ``statuses`` maps each success status to its meaning; all answer with ``reply`` but those named in
    ``also``. ``refusals`` are failures beyond the usual ones. ``frames`` adds the binary body beside JSON.
    """
    responses: dict[int | str, dict[str, Any]] = {}
    for status, meaning in statuses.items():
        model = also.get(status, reply)
        shape = {"type": "string"} if model is None and media_type != JSON_TYPE else {"type": "object"}
        schema = shape if model is None else _reference(model)
        responses[status] = {"description": meaning, "content": {media_type: {"schema": schema}}}
    extra: dict[str, Any] = {SCOPE_KEY: scope.name.lower()}
    if scope is Scope.OPEN:
        extra["security"] = []
    else:
        responses |= _refused(_REFUSALS if request is not None else _REFUSALS_WITHOUT_BODY)
    responses |= _refused(refusals)
    if request is not None:
        extra["requestBody"] = _request_body(request, frames=frames, required=body_required, example=example)
    return {
        "responses": responses,
        "openapi_extra": extra,
        "response_class": Response,
        "response_model": None,
    }


def _request_body(
    model: type[BaseModel], *, frames: bool, required: bool, example: dict[str, Any] | None
) -> dict[str, Any]:
    as_json: dict[str, Any] = {"schema": _reference(model)}
    if example is not None:
        as_json["example"] = example
    content: dict[str, Any] = {JSON_TYPE: as_json}
    if frames:
        content[FRAME_TYPE] = {"schema": {"type": "string", "format": "binary"}}
    return {"required": required, "content": content}


def _refused(meanings: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"description": meaning, "content": {PROBLEM_TYPE: {"schema": _reference(wire.Problem)}}}
        for status, meaning in meanings.items()
    }


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
