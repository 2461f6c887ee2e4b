"""The service as the demo starts it: ``nearfield serve`` in a process of its own, on a free loopback port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from nearfield_server.settings import ENVIRONMENT_PREFIX

USUAL_PORT = 7333
START_SECONDS = 60.0
STOP_SECONDS = 30.0
LOOPBACK = "127.0.0.1"


class ServiceFailed(RuntimeError):
    """The service did not come up; the text ends with the last lines it logged."""


@contextmanager
def running(data: Path, *, port: int | None, log: Path) -> Iterator[str]:
    """Serve ``data`` and yield the base URL once it is ready; the process is stopped on the way out.

    Without ``port`` the usual one is taken, or any free one when that is in use. Raises ServiceFailed.
    """
    chosen = port or (USUAL_PORT if _is_free(USUAL_PORT) else _any_free())
    url = f"http://{LOOPBACK}:{chosen}"
    command = [sys.executable, "-P", "-m", "nearfield_server", "serve"]
    command += ["--data", str(data), "--host", LOOPBACK, "--port", str(chosen)]
    # Settings of another installation (keys, a configuration file) must not leak into the demo.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            _wait_ready(process, url, log)
            yield url
        finally:
            _stop(process)


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServiceFailed(f"the service stopped with exit code {process.returncode}\n{_tail(log)}")
        try:
            if httpx2.get(f"{url}/readyz", timeout=2.0, trust_env=False).status_code == httpx2.codes.OK:
                return
        except httpx2.HTTPError:
            pass  # not listening yet
        time.sleep(0.05)
    raise ServiceFailed(f"the service was not ready after {START_SECONDS:.0f} s\n{_tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _any_free() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
