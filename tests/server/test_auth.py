"""Every route of the application against every kind of caller; the matrix is made from the route table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from nearfield_server.auth import Scope
from nearfield_server.contract import ScopedRoute, require_scopes
from nearfield_server.routes import ALL

WRITE_KEY = "key-that-writes"
READ_KEY = "key-that-reads"

ROUTES = [
    pytest.param(method, route.path, route.scope, id=f"{method} {route.path}")
    for router in ALL
    for route in router.routes
    if isinstance(route, ScopedRoute)
    for method in sorted(route.methods or ())
]

CALLERS: dict[str, tuple[dict[str, str], Scope]] = {
    "none": ({}, Scope.OPEN),
    "wrong": ({"authorization": "Bearer key-that-is-wrong"}, Scope.OPEN),
    "prefix of a key": ({"api-key": WRITE_KEY[:-1]}, Scope.OPEN),
    "basic": ({"authorization": f"Basic {WRITE_KEY}"}, Scope.OPEN),
    "empty": ({"authorization": "Bearer ", "api-key": ""}, Scope.OPEN),
    "internal headers": (
        {"sourceId": "1", "x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1"},
        Scope.OPEN,
    ),
    "read, bearer": ({"authorization": f"Bearer {READ_KEY}"}, Scope.READ),
    "read, api-key": ({"api-key": READ_KEY}, Scope.READ),
    "write, bearer": ({"authorization": f"bearer {WRITE_KEY}"}, Scope.WRITE),
    "write, api-key": ({"api-key": WRITE_KEY}, Scope.WRITE),
    "write, x-api-key": ({"x-api-key": WRITE_KEY}, Scope.WRITE),
}


READING_POSTS = ("/points/get", "/points/count", "/points/scan", "/facet", "/query", "/pairs")
OPEN_TO_ALL = ("/", "/livez", "/healthz", "/readyz", "/openapi.json", "/docs")


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_declared_scopes(method: str, path: str, scope: Scope) -> None:
    """The policy, said a second time: what changes data needs a key that writes."""
    if path in OPEN_TO_ALL:
        assert scope is Scope.OPEN
    elif path == "/metrics":
        assert scope is Scope.METRICS
    elif method == "GET" or (method == "POST" and path.endswith(READING_POSTS)):
        assert scope is Scope.READ
    else:
        assert scope is Scope.WRITE


@pytest.fixture
def guarded(serve_here: Callable[..., TestClient]) -> TestClient:
    return serve_here(api_keys=[WRITE_KEY], read_api_keys=[READ_KEY])


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_matrix(guarded: TestClient, method: str, path: str, scope: Scope) -> None:
    address = path.format(name="nowhere", job="nothing", reranker="none")
    for caller, (headers, granted) in CALLERS.items():
        # A body that cannot be parsed: whoever may not pass must not get as far as an answer about it.
        reply = guarded.request(method, address, headers=headers | {"content-type": "application/json"}, content=b"{")
        if granted >= scope:
            assert reply.status_code not in (401, 403), caller
        elif granted is Scope.OPEN:
            assert (reply.status_code, reply.json()["code"]) == (401, "unauthenticated"), caller
            assert reply.headers["www-authenticate"].startswith("Bearer"), caller
        else:
            assert (reply.status_code, reply.json()["code"]) == (403, "forbidden"), caller


def test_key_in_the_query_string_is_not_looked_at(guarded: TestClient) -> None:
    for name in ("api-key", "api_key", "key", "token"):
        assert guarded.get("/v1", params={name: WRITE_KEY}).status_code == 401


def test_nothing_is_read_of_a_refused_request(guarded: TestClient) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was asked for")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/collections/a/points",
        "raw_path": b"/v1/collections/a/points",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"2")],
    }
    app: Any = guarded.app
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 401


def test_metrics_may_be_public(serve_here: Callable[..., TestClient]) -> None:
    api = serve_here(api_keys=[WRITE_KEY], metrics_public=True)
    assert api.get("/metrics").status_code == 200
    assert api.get("/v1").status_code == 401


def test_no_keys_no_questions(api: TestClient) -> None:
    assert api.get("/v1").status_code == 200


def test_route_without_scope_cannot_be_made() -> None:
    async def answer() -> Response:
        return Response()

    with pytest.raises(TypeError, match="declares no scope"):
        ScopedRoute("/somewhere", answer)
    with pytest.raises(TypeError, match="not a ScopedRoute"):
        require_scopes([Route("/elsewhere", answer)])
