"""kill -9 at any moment: every acknowledged write is there afterwards, and nothing but the one in flight.

NEARFIELD_CRASH_CYCLES asks for more than the few cycles of every change, NEARFIELD_CRASH_SEED for another course.
"""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from nearfield_index.engine import Engine
from oracle import OracleCollection

WRITER = Path(__file__).with_name("crash_writer.py")
DIM = 8
CYCLES = int(os.environ.get("NEARFIELD_CRASH_CYCLES", "12"))
SEED = int(os.environ.get("NEARFIELD_CRASH_SEED", "7"))


def test_every_acknowledged_write_survives_kill_9(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    model = OracleCollection({"vector": (DIM, "l2")})
    acknowledged = 0
    for cycle in range(1, CYCLES + 1):
        lines = _run_and_kill(tmp_path / "data", cycle + SEED * 1000, dice.uniform(0.02, 0.6))
        tried = {n: orjson.loads(rest) for word, n, rest in lines if word == "try"}
        acked = [n for word, n, _ in lines if word == "ack"]
        for number in acked:
            _apply(model, tried[number])
        acknowledged += len(acked)
        in_flight = [step for number, step in tried.items() if number not in set(acked)]
        assert len(in_flight) <= 1
        model = _settle(tmp_path / "data", model, in_flight, f"seed {SEED}, cycle {cycle}")
    assert acknowledged > 5 * CYCLES


def _run_and_kill(data: Path, seed: int, seconds: float) -> list[tuple[str, int, str]]:
    """Run the writer, kill it ``seconds`` after it is ready, return what it said."""
    words = data.with_name(f"words-{seed}")
    with subprocess.Popen(
        [sys.executable, str(WRITER), str(data), str(seed), str(words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=seconds)
        child.kill()
        _, errors = child.communicate(timeout=30)
    assert child.returncode == -signal.SIGKILL, errors
    whole = words.read_text().split("\n")[:-1]  # a line without its end was never said
    return [(p[0], int(p[1]), p[2] if len(p) > 2 else "") for p in (line.split(" ", 2) for line in whole)]


def _apply(model: OracleCollection, step: dict[str, Any]) -> None:
    body = step["body"]
    if step["kind"] == "write":
        model.write(body["points"])
    elif step["kind"] == "patch":
        model.patch(body["ids"], body["set"], [])
    else:
        model.delete(body["ids"] if "ids" in body else model.select(body["filter"]))


def _settle(data: Path, model: OracleCollection, in_flight: list[dict[str, Any]], where: str) -> OracleCollection:
    """Open what is left; it must be the acknowledged state, or that and all of the operation in flight."""
    with Engine.open(data) as engine:
        assert engine.ready()["ready"], where
        if not engine.list_collections()["collections"]:
            assert not model.points
            return model
        found = _content(engine)
        candidates = [model]
        for step in in_flight:
            after = copy.deepcopy(model)
            _apply(after, step)
            candidates.append(after)
        settled = [c for c in candidates if _expected(c) == found]
        assert settled, f"{where}: {_difference(candidates, found)}"
        _check_search(engine, settled[0], where)
        report = engine.check()
        assert report["ok"], f"{where}: {report}"
        segments = data.glob("collections/*/segments/*")
        known = {s["id"] for s in engine.describe_collection("c")["segments"]}
        assert {p.name for p in segments if not p.name.startswith(".")} >= known, where
        return settled[0]


def _content(engine: Engine) -> dict[tuple[str, str], tuple[Any, list[float]]]:
    points = engine.scan_points("c", {"limit": 1000, "with": ["vectors"]})["points"]
    content = {
        (type(p["id"]).__name__, str(p["id"])): (p["attributes"], np.asarray(p["vectors"]["vector"]).tolist())
        for p in points
    }
    assert len(content) == len(points) == engine.count_points("c", {})["count"]
    return content


def _expected(model: OracleCollection) -> dict[tuple[str, str], tuple[Any, list[float]]]:
    return {(type(i).__name__, str(i)): (p.attributes, p.vectors["vector"].tolist()) for i, p in model.points.items()}


def _difference(candidates: list[OracleCollection], found: dict[tuple[str, str], Any]) -> list[list[str]]:
    """Per state that was possible, what differs from it."""
    return [
        [f"{key}: {wanted.get(key)} is {found.get(key)}" for key in wanted | found if wanted.get(key) != found.get(key)]
        for wanted in map(_expected, candidates)
    ]


def _check_search(engine: Engine, model: OracleCollection, where: str) -> None:
    query = [0.5] * DIM
    for body in ({"exact": True}, {"recall": 0.9}, {"exact": True, "filter": {"g": {"lt": 4}}}):
        hits = engine.query("c", {"vector": query, "k": 200, **body})["results"][0]
        ranking = model.ranking("vector", query, body.get("filter"))
        assert len(hits) == len(ranking), where
        assert [h["score"] for h in hits] == pytest.approx([score for _, score in ranking], rel=1e-5), where
