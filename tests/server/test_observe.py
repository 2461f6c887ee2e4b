"""What requests leave behind: metrics with bounded labels, ids, log lines, and no details for the client."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from nearfield_index.engine import Engine
from nearfield_server.logs import configure_logs
from nearfield_server.settings import load_settings

NAMES = (
    'nearfield_http_requests_total{method="GET",route="/v1",status="200"} 1.0',
    'nearfield_request_seconds_bucket{le="10.0",route="/v1"}',
    'nearfield_search_seconds_count{stage="engine"} 1.0',
    'nearfield_queue_depth{lane="search"} 0.0',
    'nearfield_build_info{version="',
    'nearfield_points{collection="c"} 2.0',
    'nearfield_segments{collection="c"}',
    'nearfield_index_bytes{collection="c",part="vectors"}',
    'nearfield_jobs{state="running"} 0.0',
    'nearfield_queries_total{collection="c"} 1.0',
    "process_resident_memory_bytes",
)


def test_metrics_tell_what_happened(api: TestClient) -> None:
    api.get("/v1")
    api.put("/v1/collections/c", json={"dim": 2})
    api.post("/v1/collections/c/points", json={"ids": [1, 2], "vectors": {"vector": [[1, 0], [0, 1]]}})
    api.post("/v1/collections/c/query", json={"vector": [1, 0]})
    text = api.get("/metrics").text
    assert [name for name in NAMES if name not in text] == []
    assert "_created" not in text


def test_labels_are_not_the_clients_to_choose(api: TestClient) -> None:
    for number in range(50):
        api.get(f"/made/up/{number}")
        api.get(f"/v1/collections/name{number}")
        api.request(f"VERB{number}", "/v1")
    text = api.get("/metrics").text
    assert "made" not in text
    assert "name4" not in text
    assert "VERB" not in text
    assert 'route="unmatched"' in text


def test_request_ids(api: TestClient) -> None:
    assert api.get("/livez", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = [api.get("/livez", headers={"x-request-id": "no good"}).headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == 2
    assert all(len(each) == 16 for each in made)


def test_a_long_search_holds_nobody_else_up(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    started, release = threading.Event(), threading.Event()

    def take_long(*_: object, **hooks: object) -> dict[str, object]:
        started.set()
        assert release.wait(10), "nobody else was answered meanwhile"
        return {"results": [], "meta": {}}

    monkeypatch.setattr(Engine, "query", take_long)
    with ThreadPoolExecutor(1) as pool:
        search = pool.submit(api.post, "/v1/collections/c/query", json={})
        assert started.wait(10)
        assert [api.get(path).status_code for path in ("/livez", "/readyz", "/metrics", "/v1")] == [200] * 4
        release.set()
        assert search.result().status_code == 200


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_unexpected_failure_is_logged_and_not_told(
    serve_here: Callable[..., TestClient],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    log_format: str,
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", root.handlers)
    monkeypatch.setattr(root, "level", root.level)
    settings = {"api_keys": ["a-secret-key"], "log_format": log_format}
    configure_logs(load_settings(None, **settings))

    def fail(*_: object, **hooks: object) -> None:
        raise ZeroDivisionError("inner detail")

    api = serve_here(**settings)
    monkeypatch.setattr(Engine, "query", fail)
    reply = api.post("/v1/collections/c/query", json={"filter": "what-was-sent"}, headers={"api-key": "a-secret-key"})
    assert (reply.status_code, reply.json()["code"]) == (500, "internal")
    assert "inner detail" not in reply.text
    logged = capsys.readouterr().err
    assert "ZeroDivisionError: inner detail" in logged
    assert reply.headers["x-request-id"] in logged
    assert "a-secret-key" not in logged
    assert "what-was-sent" not in logged


def test_a_call_of_a_scorer_leaves_no_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", root.handlers)
    monkeypatch.setattr(root, "level", root.level)
    configure_logs(load_settings(None))
    logging.getLogger("httpx2").info('HTTP Request: POST http://localhost/rerank "HTTP/1.1 200 OK"')
    logging.getLogger("httpcore2.connection").info("connect_tcp.started")
    assert capsys.readouterr().err == ""
    logging.getLogger("nearfield.app").info("heard")
    assert "heard" in capsys.readouterr().err
