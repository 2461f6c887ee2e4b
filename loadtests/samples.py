"""Raw samples as JSON lines: the first record says what ran where, every further one what was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

Record = dict[str, Any]

FORMAT = 1
_PACKAGES = ("nearfield", "faiss-cpu", "faiss-gpu-cuvs", "numpy", "apsw", "uvicorn", "httpx2")


class Samples:
    """A file of samples, written as they come, so that a run cut short keeps what it measured. A context manager."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.kept: list[Record] = []
        """What was added, but for the header."""
        self._began = time.perf_counter()
        self._file = path.open("wb")
        self.add("run", format=FORMAT, machine=machine(), versions=versions(), **header)

    def add(self, kind: str, **values: Any) -> None:
        """Append one record of this kind; ``at_s`` is when, in seconds since the file was begun."""
        record = {"kind": kind, "at_s": round(time.perf_counter() - self._began, 6), **values}
        if kind != "run":
            self.kept.append(record)
        self._file.write(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
        self._file.flush()

    def __enter__(self) -> Samples:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.add("end", error=None if value is None else f"{type(value).__name__}: {value}")
        self._file.close()


@dataclass(frozen=True)
class Run:
    """One file of samples: its ``header`` and the ``records`` after it."""

    path: Path
    header: Record
    records: list[Record]

    @property
    def label(self) -> str:
        return f"{self.header['target']} on {self.header['dataset']}"

    @property
    def complete(self) -> bool:
        return bool(self.records) and self.records[-1]["kind"] == "end" and self.records[-1]["error"] is None

    def of(self, kind: str) -> list[Record]:
        """The records of one kind, in order."""
        return [record for record in self.records if record["kind"] == kind]


def read(path: Path) -> Run:
    """Read a file of samples. Raises ValueError where it is none, or of a later format."""
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines() if line]
    if not lines or lines[0].get("kind") != "run" or lines[0].get("format") != FORMAT:
        raise ValueError(f"{path} holds no samples of format {FORMAT}")
    return Run(path, lines[0], lines[1:])


def machine() -> Record:
    """What a figure depends on: processor, memory, system, and how busy the machine was."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "load": [round(each, 2) for each in os.getloadavg()],
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def versions() -> Record:
    """Versions of what was measured, with the commit where the source tree has one."""
    found: Record = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _git("rev-parse", "--short", "HEAD")
    if commit:
        found["commit"] = commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    return found


def command() -> str:
    """The command line of this process, as one would type it."""
    return " ".join(["python -m loadtests", *sys.argv[1:]])


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _git(*arguments: str) -> str:
    root = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
