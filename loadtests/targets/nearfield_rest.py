"""``nearfield serve`` as a process of its own on a free port, asked through the SDK."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import nearfield
from loadtests.targets.nearfield_target import NearfieldTarget
from loadtests.targets.process import Usage, usage_of

_SCHEME = "http://"
_PREFIX = "NEARFIELD_"
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0


class NearfieldRest(NearfieldTarget):
    """The service with the settings it has by default. Its usage is that of the server process alone."""

    name: ClassVar[str] = "nearfield-rest"

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        """``settings`` by the names of their environment variables, without the prefix."""
        super().__init__()
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._log = Path()

    def connect(self, directory: Path) -> nearfield.Client:
        self._log = directory / "server.log"
        command = [sys.executable, "-P", "-m", "nearfield_server", "serve"]
        command += ["--data", str(directory / "data"), "--host", "127.0.0.1", "--port", "0"]
        # settings of another installation must not change what is measured
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}
        environment[f"{_PREFIX}DRAIN_DELAY"] = "0"  # nobody else need notice that it stops
        environment |= {f"{_PREFIX}{name}": value for name, value in self._settings.items()}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        return nearfield.connect(self._address(self._process), timeout=600.0)

    def usage(self) -> Usage:
        if self._process is None:
            raise RuntimeError("the target is not started")
        return usage_of(self._process.pid)

    def stop(self) -> None:
        super().stop()
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _address(self, process: subprocess.Popen[bytes]) -> str:
        """The address that the server prints once it listens; connections wait from then on."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            for line in self._log.read_text(errors="replace").splitlines(keepends=True):
                if line.endswith("\n") and _SCHEME in line:
                    return _SCHEME + line.partition(_SCHEME)[2].split()[0]
            time.sleep(0.02)
        raise RuntimeError(f"the server did not come up\n{self._log.read_text(errors='replace')[-2000:]}")
