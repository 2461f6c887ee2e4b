"""The process as a whole: how it stops when asked, when asked twice and when killed; what it keeps."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

C = "/v1/collections/c"
SECONDS = 20.0


def call(server: Any, method: str, path: str, body: Any = None) -> httpx2.Response:
    return httpx2.request(method, server.url + path, json=body, trust_env=False, timeout=SECONDS)


def write(server: Any, point: int) -> httpx2.Response:
    return call(server, "POST", f"{C}/points", {"ids": [point], "vectors": {"vector": [[1, point, 0]]}})


def kept(server: Any) -> set[int]:
    page = call(server, "POST", f"{C}/points/scan", {"limit": 10_000, "select": False}).json()
    return {point["id"] for point in page["points"]}


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not reached():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.01)


@contextmanager
def half_sent(server: Any) -> Iterator[tuple[socket.socket, bytes]]:
    """A write of which the server has seen the headers and one byte, and the rest of it."""
    address = urlsplit(server.url)
    body = b'{"ids":[99],"vectors":{"vector":[[1,2,3]]}}'
    head = (
        f"POST {C}/points HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), timeout=SECONDS) as connection:
        connection.sendall(head.encode() + body[:1])
        gauge = 'nearfield_queue_depth{lane="write"} 1.0'
        until(lambda: gauge in call(server, "GET", "/metrics").text)
        yield connection, body[1:]


@pytest.fixture
def server(start_process: Callable[..., Any]) -> Any:
    started = start_process(NEARFIELD_DRAIN_DELAY="1")
    assert call(started, "PUT", C, {"dim": 3}).status_code == 201
    return started


def test_term_says_not_ready_finishes_and_exits_with_0(server: Any, start_process: Callable[..., Any]) -> None:
    with half_sent(server) as (connection, rest):
        server.process.send_signal(signal.SIGTERM)
        until(lambda: call(server, "GET", "/readyz").status_code == 503)
        refusal = call(server, "GET", "/readyz")
        assert refusal.json()["code"] == "draining"
        assert refusal.headers["retry-after"]
        assert call(server, "GET", "/livez").status_code == 200
        connection.sendall(rest)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert server.process.wait(SECONDS) == 0
    assert kept(start_process()) == {99}


def test_interrupt_stops_likewise(server: Any) -> None:
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(SECONDS) == 0


def test_second_signal_ends_at_once(server: Any) -> None:
    with half_sent(server):
        server.process.send_signal(signal.SIGTERM)
        until(lambda: call(server, "GET", "/readyz").status_code == 503)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(2) == 128 + signal.SIGTERM


@pytest.mark.parametrize("end", ["term", "kill"])
def test_acknowledged_points_are_there_after_the_end(
    server: Any, start_process: Callable[..., Any], end: str, tmp_path: Path
) -> None:
    """Four writers, stopped while they write: whatever was answered with 200 is found after a restart."""
    acknowledged: set[int] = set()
    tried: set[int] = set()

    def keep_writing(first: int) -> None:
        for point in range(first, first + 100_000):
            tried.add(point)
            try:
                reply = write(server, point)
            except httpx2.TransportError:
                return
            if reply.status_code == 200:
                acknowledged.add(point)

    writers = [threading.Thread(target=keep_writing, args=(number * 100_000,)) for number in range(4)]
    for writer in writers:
        writer.start()
    until(lambda: len(acknowledged) > 100)
    if end == "term":
        assert server.stop() == 0
    else:
        server.kill()
    for writer in writers:
        writer.join()
    if end == "term":
        logs = tmp_path.glob("data/collections/*/rows.db-wal")
        assert not any(log.stat().st_size for log in logs), "the next start would have to replay the log"
    found = kept(start_process())
    assert acknowledged <= found <= tried


def test_second_server_on_the_same_data_is_refused(server: Any, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "nearfield_server",
        "serve",
        "--data",
        str(tmp_path / "data"),
        "--port",
        "0",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 3
    assert str(server.process.pid) in ended.stderr
    assert "Traceback" not in ended.stderr


def test_port_in_use_is_one_line(server: Any, tmp_path: Path) -> None:
    port = str(urlsplit(server.url).port)
    command = [
        sys.executable,
        "-m",
        "nearfield_server",
        "serve",
        "--data",
        str(tmp_path / "other"),
        "--port",
        port,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 1
    assert len(ended.stderr.strip().splitlines()) == 1
