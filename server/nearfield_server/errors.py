"""Everything that goes wrong becomes one ``application/problem+json`` (RFC 9457), in this one place."""

from __future__ import annotations

import math
from collections.abc import Mapping

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from nearfield.errors import Error as SdkError
from nearfield.errors import problem, status_of
from nearfield_index.errors import Busy
from nearfield_index.errors import NearfieldError as EngineError

PROBLEM_TYPE = "application/problem+json"
READ_ONLY_WAIT = 5.0
"""Seconds a client is told to stay away where the engine cannot say: a store that needs a restart."""

_FRAMEWORK = {
    404: ("route_not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not answer that method."),
}


class Problem(Exception):
    """A refusal or failure with its HTTP status and stable code; ``detail`` never repeats what was sent."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        field: str | None = None,
        hint: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.field = field
        self.hint = hint
        self.headers = dict(headers or {})

    def response(self) -> Response:
        body = problem(self.status, self.code, self.detail, field=self.field, hint=self.hint)
        return Response(orjson.dumps(body), self.status, self.headers, PROBLEM_TYPE)


def overloaded(status: int, detail: str, *, retry_after: float, code: str = "busy") -> Problem:
    """A 429 or 503 that says when to come back, in whole seconds."""
    return Problem(status, code, detail, headers={"Retry-After": str(max(1, math.ceil(retry_after)))})


def from_engine(error: EngineError) -> Problem:
    """The problem an engine error becomes, by the table that the SDK reads the other way round."""
    status = next((status_of(kind.__name__) for kind in type(error).__mro__ if status_of(kind.__name__) != 500), 500)
    if status in (429, 503):
        wait = error.retry_after if isinstance(error, Busy) else READ_ONLY_WAIT
        return overloaded(status, error.message, retry_after=wait, code=error.code)
    return Problem(status, error.code, error.message, field=error.field, hint=error.hint)


def from_framework(error: HTTPException) -> Problem:
    """The problem for what the router itself refuses."""
    code, detail = _FRAMEWORK.get(error.status_code, ("http_error", "The request was refused."))
    return Problem(error.status_code, code, detail, headers=error.headers)


def install(app: FastAPI) -> None:
    """Make ``app`` answer every error of its routes as a problem."""
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(EngineError, _answer_engine)
    app.add_exception_handler(SdkError, _answer_sdk)
    app.add_exception_handler(HTTPException, _answer_framework)


async def _answer_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _answer_engine(request: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    return from_engine(error).response()


async def _answer_sdk(request: Request, error: Exception) -> Response:
    """A binary body that could not be read: the frame format is the SDK's, and so are its errors."""
    assert isinstance(error, SdkError)
    status = status_of(type(error).__name__)
    return Problem(status, error.code, error.detail, field=error.field, hint=error.hint).response()


async def _answer_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return from_framework(error).response()
