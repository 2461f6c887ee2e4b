"""Workloads of expensive scorers, end to end on a tiny corpus: what is counted and written, never how long it took."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests import report, samples
from loadtests.__main__ import main
from loadtests.workloads.scorer import BUDGETS, DEPTHS, METHODS, POPULARITY


def run(workload: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> samples.Run:
    monkeypatch.setattr("loadtests.workloads.scorer.BUDGETS", BUDGETS[:2])
    tiny = ["--dataset", "clustered-1000x16", "--queries", "8", "--out", str(out), "--work", str(out)]
    assert main(["run", workload, *tiny]) == 0
    (path,) = out.glob("*.jsonl")
    done = samples.read(path)
    assert done.complete
    return done


def test_recall_at_equal_calls(tmp_path, monkeypatch):
    done = run("scorer", tmp_path, monkeypatch)
    cells = {(each["method"], each["budget"]): each for each in done.of("cell")}
    assert cells.keys() == {(m, b) for m in (*METHODS, POPULARITY) for b in BUDGETS[:2]}
    for (_, budget), cell in cells.items():
        assert cell["most_pairs"] == budget
        assert cell["recalls"].keys() == {str(k) for k in DEPTHS if k <= budget}
        assert all(0 <= share <= 1 for share in cell["recalls"].values())
    (fitted,) = done.of("fitted")
    assert fitted["pairs"] == 50 * 1000
    assert fitted["estimated"]["calls_left"] == 50 * 1000
    text = report.write(tmp_path).read_text()
    assert "never more than the budget" in text
    assert "| 10 | joint |" in text


def test_latency_and_shared_calls(tmp_path, monkeypatch):
    done = run("scorer-latency", tmp_path, monkeypatch)
    assert [each["method"] for each in done.of("latency")] == ["plain", "axn", "joint"]
    assert all(len(each["seconds"]) == 8 for each in done.of("latency"))
    alone, together = done.of("shared")
    assert alone["pairs"] == together["pairs"] == 800
    assert together["calls"] <= alone["calls"] == 40
    assert "calls of the scorer" in report.write(tmp_path).read_text()
