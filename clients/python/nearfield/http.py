"""Operations over HTTP, blocking and awaited. httpx2 is imported when the first client is made."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np
import orjson

from nearfield import arguments, errors, frames, operations, retry, vectors
from nearfield.operations import Operation

if TYPE_CHECKING:
    import httpcore2

T = TypeVar("T")

_FRAMED = frozenset({"query", "write_points"})
_ADDRESSES = 1_000
_CONNECTIONS = 100
_KEPT_S = 5.0


@dataclass(frozen=True)
class HttpOptions:
    """How to reach a server. Timeouts are per attempt, in seconds."""

    url: str
    api_key: str | None = None
    timeout_s: float = 60.0
    connect_timeout_s: float = 5.0
    policy: retry.Policy = field(default_factory=retry.Policy)

    @classmethod
    def of(
        cls,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        connect_timeout: float = 5.0,
        retries: int = 4,
    ) -> HttpOptions:
        """Return options from the arguments of ``nearfield.connect``."""
        return cls(url, api_key, timeout, connect_timeout, retry.Policy(max_attempts=retries + 1))

    def timeouts(self, timeout_s: float | None) -> dict[str, float]:
        """Return the timeouts of one attempt as httpx2's transports take them."""
        read = self.timeout_s if timeout_s is None else timeout_s
        return {"connect": self.connect_timeout_s, "read": read, "write": read, "pool": read}


@dataclass(frozen=True)
class _Request:
    """What a connection pool is asked for."""

    method: str
    url: httpcore2.URL
    headers: list[tuple[bytes, bytes]]
    content: bytes | None
    extensions: dict[str, Any]


class _Requests:
    """Builds requests for one server; addresses are parsed once.

    Requests go to httpx2's connection pool (httpcore2) as they are: the client above it (cookies, redirects,
    proxies, models) costs as much as a whole query takes.
    """

    def __init__(self, options: HttpOptions) -> None:
        if urlsplit(options.url).scheme not in ("http", "https"):
            raise errors.InvalidRequest("a server's address begins with http:// or https://", field="url")
        self._options = options
        self._base = options.url.rstrip("/")
        self._addresses: dict[str, httpcore2.URL] = {}
        self._headers = [(b"accept", b"application/json"), (b"user-agent", b"nearfield-python")]
        if options.api_key:
            self._headers.append((b"authorization", f"Bearer {options.api_key}".encode()))

    def pool_arguments(self) -> dict[str, Any]:
        """Return keyword arguments of httpcore2's pools."""
        import httpx2

        secure = self._base.startswith("https:")
        return {
            "ssl_context": httpx2.create_ssl_context() if secure else None,
            "max_connections": _CONNECTIONS,
            "keepalive_expiry": _KEPT_S,
        }

    def build(self, operation: Operation[Any], *, framed: bool) -> _Request:
        """Return the request of an operation."""
        request = encode(operation, framed=framed)
        content: bytes | None = request.get("content")
        kind = [(name.encode(), value.encode()) for name, value in request.get("headers", {}).items()]
        timeouts = {"timeout": self._options.timeouts(operation.timeout_s)}
        return _Request(request["method"], self._address(request["url"]), self._headers + kind, content, timeouts)

    def _address(self, path: str) -> httpcore2.URL:
        found = self._addresses.get(path)
        if found is None:
            import httpcore2
            import httpx2

            url = httpx2.URL(self._base + path)
            found = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
            if len(self._addresses) >= _ADDRESSES:
                self._addresses.clear()
            self._addresses[path] = found
        return found


def _headers(reply: httpcore2.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in reply.headers}


def encode(operation: Operation[Any], *, framed: bool) -> dict[str, Any]:
    """Return an operation as ``method``, ``url`` (a path) and, with a body, ``content`` and ``headers``."""
    method, template = operations.ROUTES[operation.call]
    names = [each for each in (operation.target, operation.part) if each is not None]
    if not {"", ".", ".."}.isdisjoint(names):  # a URL would lose these, and lead to another call
        raise errors.InvalidRequest("that is no name", code="bad_name", field="name")
    request: dict[str, Any] = {
        "method": method,
        "url": template.format(*(quote(each, safe="") for each in names)),
    }
    if operation.body is not None:
        if framed and operation.call in _FRAMED:
            content, media_type = frames.encode(operation.body), frames.MEDIA_TYPE
        else:
            content, media_type = frames.dump(operation.body, _as_base64), "application/json"
        request |= {"content": content, "headers": {"content-type": media_type}}
    return request


def decode(status: int, headers: Any, content: bytes) -> dict[str, Any] | errors.Error:
    """Return the reply's JSON object, or the Error that the reply stands for."""
    try:
        body = orjson.loads(content) if content else None
    except orjson.JSONDecodeError:
        body = None
    if 200 <= status < 300 and isinstance(body, dict):
        return body
    if not isinstance(body, dict):
        detail, hint = f"the reply ({status}) is not Nearfield's", "is a Nearfield server at that address?"
        if status < 400:
            return errors.ServerFailed(detail, code="not_nearfield", hint=hint, status=status)
        body = {"detail": detail, "hint": hint}
    return errors.from_problem(status, body, retry.parse_retry_after(headers.get("retry-after")))


def carries_vectors(operation: Operation[Any]) -> bool:
    """Whether the body would profit from a frame."""
    body = operation.body or {}
    return operation.call in _FRAMED and ("vector" in body or "vectors" in body or "points" in body)


class HttpTransport:
    """Blocking; one pool of connections, shared by threads."""

    window = 2

    def __init__(self, options: HttpOptions) -> None:
        import httpcore2

        self.name = options.url
        self._options = options
        self._requests = _Requests(options)
        self._pool: httpcore2.ConnectionPool | None = httpcore2.ConnectionPool(**self._requests.pool_arguments())
        self._frames: bool | None = None

    def run(self, operation: Operation[T]) -> T:
        if self._frames is None and carries_vectors(operation):
            self._frames = "frame" in self.run(operations.info()).get("features", ())
        request = self._requests.build(operation, framed=bool(self._frames))
        steps = retry.steps(idempotent=operation.idempotent, policy=self._options.policy)
        outcome: retry.Reply | errors.Error | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as finished:
                reply: dict[str, Any] = finished.value
                return operation.parse(reply)
            outcome = None
            if isinstance(step, retry.Sleep):
                time.sleep(step.seconds)
            else:
                outcome = _told(self._send(request), operation)

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _send(self, request: _Request) -> dict[str, Any] | errors.Error:
        pool = self._pool
        if pool is None:
            return errors.closed()
        try:
            reply = pool.request(
                request.method,
                request.url,
                headers=request.headers,
                content=request.content,
                extensions=request.extensions,
            )
        except Exception as failure:
            return _connection_failed(failure, self.name)
        return decode(reply.status, _headers(reply), reply.content)


class AsyncHttpTransport:
    """Awaited; belongs to the event loop that first used it."""

    window = 2

    def __init__(self, options: HttpOptions) -> None:
        import httpcore2

        self.name = options.url
        self._options = options
        self._requests = _Requests(options)
        arguments = self._requests.pool_arguments()
        self._pool: httpcore2.AsyncConnectionPool | None = httpcore2.AsyncConnectionPool(**arguments)
        self._frames: bool | None = None

    async def run(self, operation: Operation[T]) -> T:
        if self._frames is None and carries_vectors(operation):
            self._frames = "frame" in (await self.run(operations.info())).get("features", ())
        request = self._requests.build(operation, framed=bool(self._frames))
        steps = retry.steps(idempotent=operation.idempotent, policy=self._options.policy)
        outcome: retry.Reply | errors.Error | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as finished:
                reply: dict[str, Any] = finished.value
                return operation.parse(reply)
            outcome = None
            if isinstance(step, retry.Sleep):
                await asyncio.sleep(step.seconds)
            else:
                outcome = _told(await self._send(request), operation)

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()

    async def _send(self, request: _Request) -> dict[str, Any] | errors.Error:
        pool = self._pool
        if pool is None:
            return errors.closed()
        try:
            reply = await pool.request(
                request.method,
                request.url,
                headers=request.headers,
                content=request.content,
                extensions=request.extensions,
            )
        except Exception as failure:
            return _connection_failed(failure, self.name)
        return decode(reply.status, _headers(reply), reply.content)


def _told(outcome: dict[str, Any] | errors.Error, operation: Operation[Any]) -> dict[str, Any] | errors.Error:
    return arguments.named(outcome, operation.call) if isinstance(outcome, errors.Error) else outcome


def _connection_failed(failure: Exception, address: str) -> errors.ConnectionFailed:
    """Return the error for what the pool raised; raises ``failure`` itself when the network is not at fault."""
    import httpcore2

    reason = str(failure) or type(failure).__name__
    if isinstance(failure, (httpcore2.ConnectError, httpcore2.ConnectTimeout, httpcore2.PoolTimeout)):
        return errors.ConnectionFailed(
            f"no connection to {address}: {reason}", sent=False, hint="is the server running there?"
        )
    if isinstance(failure, httpcore2.TimeoutException):
        return errors.ConnectionFailed(
            f"{address} did not answer in time",
            code="timeout",
            hint="raise timeout= of connect() for long calls",
        )
    if isinstance(failure, (httpcore2.NetworkError, httpcore2.ProtocolError)):
        return errors.ConnectionFailed(f"the connection to {address} broke: {reason}")
    raise failure


def _as_base64(value: object) -> Any:
    if isinstance(value, np.ndarray) and vectors.dtype_name(value) is not None:
        return vectors.encode(value)
    return frames.plain_numpy(value)
