"""A service on a real engine in a temporary directory: in this process, or as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from nearfield_index.engine import Engine
from nearfield_server.app import create_app
from nearfield_server.commands.serve import engine_options
from nearfield_server.settings import Settings, load_settings

START_SECONDS = 30.0


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("NEARFIELD_"):
            monkeypatch.delenv(name)


@pytest.fixture
def serve_here(tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """A function that makes a client of the service in this process; its arguments are settings."""
    with ExitStack() as stack:

        def make(**settings: Any) -> TestClient:
            loaded: Settings = load_settings(None, data=tmp_path / "data", **settings)
            return stack.enter_context(
                TestClient(create_app(loaded, Engine.open(loaded.data, options=engine_options(loaded))))
            )

        yield make


@pytest.fixture
def api(serve_here: Callable[..., TestClient]) -> TestClient:
    """The service with its usual settings and no keys."""
    return serve_here()


@dataclass
class ServerProcess:
    """``nearfield serve`` as a process, with its address and the file of its log."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 20.0) -> int:
        """Ask it to stop; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """A function that starts a server on ``data`` (default: the test's own) and waits until it is ready."""
    started: list[ServerProcess] = []

    def start(data: Path = tmp_path / "data", **environment: str) -> ServerProcess:
        log = tmp_path / f"server{len(started)}.log"
        command = [sys.executable, "-m", "nearfield_server", "serve", "--data", str(data), "--port", "0"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
            )
        server = ServerProcess(process, "", log)
        started.append(server)
        server.url = _address(server)
        _wait_ready(server)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.kill()


def _address(server: ServerProcess) -> str:
    """The address from the line the server prints once it listens."""
    for _ in _attempts(server):
        for word in server.log.read_text().split():
            if word.startswith("http://"):
                return word
    raise AssertionError(f"the server printed no address\n{server.log.read_text()}")


def _wait_ready(server: ServerProcess) -> None:
    for _ in _attempts(server):
        try:
            if httpx2.get(f"{server.url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            pass
    raise AssertionError(f"the server did not get ready\n{server.log.read_text()}")


def _attempts(server: ServerProcess) -> Iterator[None]:
    """Try again every few milliseconds until the deadline, or until the process has ended."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        yield
        time.sleep(0.02)
