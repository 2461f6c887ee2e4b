"""What the SDK raises, and the one table that ties engine errors, HTTP statuses and these classes together.

Error
|-- InvalidRequest     422, 400   the request is wrong; sending it again will not help
|-- TooLarge           413        over a size limit; split it
|-- NotFound           404        no collection, point or job of that name
|-- Conflict           409        contradicts what is stored
|-- Locked             409        another process holds the data directory
|-- Unauthorized       401        no key, or an unknown one
|-- Forbidden          403        this key may not do that
|-- Busy               429        a bounded queue is full; ``retry_after`` says when to come back
|-- DeadlineExceeded   408        the call's own ``timeout_ms`` ran out
|-- ReadOnly           503        the store stopped taking writes
|-- StorageFailed      503        the disk refused an operation
|-- ScorerFailed       502        an expensive scorer failed and nothing was scored
|-- Unavailable        502, 503, 504   the server, or a proxy before it, cannot answer now
|-- OutOfSpace         507        the disk is full
|-- Corrupt            500        stored bytes do not match their checksum
|-- ServerFailed       500        any other failure of the server
|-- ConnectionFailed   no status  no answer arrived
`-- JobFailed          no status  a job ended as failed or cancelled
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar


class Error(Exception):
    """Base of everything the SDK raises on purpose.

    ``code`` is stable and meant for programs, ``field`` names the part of the request at fault, ``hint`` says
    what to do instead, ``status`` is the HTTP status (also set, from the table, when the engine is embedded).
    """

    default_code: ClassVar[str] = "error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        field: str | None = None,
        hint: str | None = None,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code
        self.field = field
        self.hint = hint
        self.status = status
        self.retry_after = retry_after

    def __str__(self) -> str:
        place = f" (at {self.field})" if self.field else ""
        return f"{self.detail}{place}" + (f"; {self.hint}" if self.hint else "")


class InvalidRequest(Error):
    """The request itself is wrong; sending it again will not help."""

    default_code = "invalid"


class TooLarge(Error):
    """The request is over a size limit; split it."""

    default_code = "too_large"


class NotFound(Error):
    """No collection, point or job of that name exists."""

    default_code = "not_found"


class Conflict(Error):
    """The request contradicts what is stored."""

    default_code = "conflict"


class Locked(Conflict):
    """Another process holds the data directory."""

    default_code = "locked"


class Unauthorized(Error):
    """The server wants an API key and got none, or one it does not know."""

    default_code = "unauthorized"


class Forbidden(Error):
    """The API key is known and may not do this."""

    default_code = "forbidden"


class Busy(Error):
    """A bounded queue is full; ``retry_after`` says in how many seconds to come back."""

    default_code = "busy"


class DeadlineExceeded(Error):
    """The call's own ``timeout_ms`` ran out before an answer was found."""

    default_code = "timeout"


class Unavailable(Error):
    """The server, or a proxy before it, cannot answer at the moment."""

    default_code = "unavailable"


class ReadOnly(Unavailable):
    """The store stopped taking writes after a storage fault; reads go on."""

    default_code = "read_only"


class StorageFailed(Unavailable):
    """The disk refused an operation; whether the write happened is known only after a restart."""

    default_code = "storage_failed"


class ScorerFailed(Unavailable):
    """An expensive scorer cannot be reached or answers nonsense, and nothing was scored."""

    default_code = "scorer_failed"


class OutOfSpace(Error):
    """The disk is full; the write did not happen. Reads and deletes go on."""

    default_code = "out_of_space"


class ServerFailed(Error):
    """The server failed in a way it did not foresee."""

    default_code = "internal"


class Corrupt(ServerFailed):
    """Stored bytes do not match their checksum and cannot be rebuilt."""

    default_code = "data_corrupt"


class ConnectionFailed(Error):
    """No answer arrived. ``sent`` is False when the request surely never left, so repeating is safe."""

    default_code = "connection_failed"

    def __init__(self, detail: str, *, sent: bool = True, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(detail, code=code, hint=hint)
        self.sent = sent


class JobFailed(Error):
    """A job that was waited for ended as ``failed`` or ``cancelled``."""

    default_code = "job_failed"


# Engine class name -> (HTTP status, SDK class). Names, not classes: the SDK must not need the engine.
TABLE: dict[str, tuple[int, type[Error]]] = {
    "InvalidRequest": (422, InvalidRequest),
    "TooLarge": (413, TooLarge),
    "NotFound": (404, NotFound),
    "Conflict": (409, Conflict),
    "Locked": (409, Locked),
    "Busy": (429, Busy),
    "DeadlineExceeded": (408, DeadlineExceeded),
    "ReadOnly": (503, ReadOnly),
    "StorageFailed": (503, StorageFailed),
    "OutOfSpace": (507, OutOfSpace),
    "ScorerFailed": (502, ScorerFailed),
    "Corrupt": (500, Corrupt),
}

# Codes that choose a class where several share one status.
_BY_CODE: dict[str, type[Error]] = {
    each.default_code: each for each in (Locked, Busy, ReadOnly, StorageFailed, ScorerFailed, Corrupt, DeadlineExceeded)
}

_BY_STATUS: dict[int, type[Error]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: InvalidRequest,
    408: DeadlineExceeded,
    409: Conflict,
    413: TooLarge,
    415: InvalidRequest,
    422: InvalidRequest,
    429: Busy,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
    507: OutOfSpace,
}


def status_of(name: str) -> int:
    """Return the HTTP status of the engine exception class called ``name``; 500 for one the table lacks."""
    return TABLE[name][0] if name in TABLE else 500


def from_problem(status: int, body: object, retry_after: float | None = None) -> Error:
    """Turn an error reply (a problem body, or anything a proxy may have sent instead) into its exception."""
    problem_body: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
    code = _text(problem_body.get("code"))
    fallback = ServerFailed if status >= 500 else InvalidRequest
    kind = _BY_CODE.get(code or "") or _BY_STATUS.get(status, fallback)
    detail = _text(problem_body.get("detail")) or _text(problem_body.get("title"))
    return kind(
        detail or f"the server answered {status} without a reason",
        code=code,
        field=_text(problem_body.get("field")),
        hint=_text(problem_body.get("hint")),
        status=status,
        retry_after=retry_after,
    )


def from_engine(exc: Exception) -> Error:
    """Turn an exception of the embedded engine into the SDK's, chosen by the names of its classes."""
    for ancestor in type(exc).__mro__:
        if ancestor.__name__ in TABLE:
            status, kind = TABLE[ancestor.__name__]
            break
    else:
        status, kind = 500, ServerFailed
    return kind(
        str(exc),
        code=_text(getattr(exc, "code", None)),
        field=_text(getattr(exc, "field", None)),
        hint=_text(getattr(exc, "hint", None)),
        status=status,
        retry_after=getattr(exc, "retry_after", None),
    )


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    title: str | None = None,
    field: str | None = None,
    hint: str | None = None,
) -> dict[str, Any]:
    """Build an RFC 9457 problem body. ``detail`` must already be free of what the client sent."""
    body: dict[str, Any] = {
        "type": f"urn:nearfield:error:{code}",
        "title": title or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    if field is not None:
        body["field"] = field
    if hint is not None:
        body["hint"] = hint
    return body


def closed() -> InvalidRequest:
    """What any call on a closed client raises."""
    return InvalidRequest("this client is closed", code="closed", hint="make a new one")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
