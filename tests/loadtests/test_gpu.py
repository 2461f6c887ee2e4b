"""The table of CPU and GPU plans: without a GPU it says so; its arithmetic on a STAND-IN and on figures of our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests import __main__ as program
from loadtests import ceilings, report_gpu
from standin import in_place


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CPU_BYTES", "_GPU_BYTES"):
        monkeypatch.setattr(ceilings, name, 1 << 20)
    for name in ("_CPU_SIDE", "_GPU_SIDE"):
        monkeypatch.setattr(ceilings, name, 64)


def run(tmp_path: Path, *arguments: str) -> str:
    out = str(tmp_path / "out")
    assert program.main(["run", "gpu", "--quick", "--dataset", "clustered-3000x16", "--out", out, *arguments]) == 0
    assert program.main(["report", out]) == 0
    return (tmp_path / "out" / "report.md").read_text()


def test_without_a_gpu_its_plans_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_place(gpus=0):
        report = run(tmp_path, "--plans", "exact", "hnsw", "gpu-flat", "cagra")
    printed = capsys.readouterr().out
    for text in (report, printed):
        assert "| exact | none | 100 |  | 1.0000 |" in text
        assert "| hnsw | 10 % | 1 |" in text
        assert text.count("| gpu-flat | no GPU |") == text.count("| cagra | no GPU |") == 2
    assert "## Gpu" in report


def test_plans_of_a_device_stand_beside_those_of_the_cpu(tmp_path: Path) -> None:
    with in_place():
        report = run(tmp_path, "--plans", "exact", "gpu-flat", "gpu-flat16", "cagra", "cagra-hnsw")
    assert "cuda:0: " in report
    assert "no GPU" not in report
    for plan in ("gpu-flat", "gpu-flat16"):
        assert f"| {plan} | none | 10 |  | 1.0000 |" in report
        assert f"| {plan} | 10 % | 10 |  | 1.0000 |" in report
    assert "| cagra-hnsw | none | 100 |" in report


def test_a_roof_is_the_longer_of_reading_and_multiplying() -> None:
    ceiling = {"bandwidth": 1e12, "rates": {"fp16": 1e14}}
    # 1.536 GB once, against 1.536 GFLOP a query
    assert ceilings.roof_s(ceiling, "fp16", 1_000_000, 768, 1) == pytest.approx(1.536e-3)
    assert ceilings.roof_s(ceiling, "fp16", 1_000_000, 768, 1_000) == pytest.approx(15.36e-3)
    assert ceilings.roof_s(ceiling, "fp32", 1_000_000, 768, 1) is None
    assert ceilings.roof_s({"bandwidth": None, "rates": {}}, "fp16", 10, 10, 1) is None


def test_what_would_take_too_long_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    time = {"kind": "time", "plan": "exact", "share": 1.0, "rows": 10, "columns": 4, "effort": 0, "recall": 1.0}
    ceiling = {"kind": "ceiling", "where": "cpu", "bandwidth": 1e9, "rates": {"fp32": 1e9}}
    lines = report_gpu.lines([ceiling, time | {"batch": 1, "seconds": 1.0}, time | {"batch": 10, "seconds": None}])
    assert any("| 1 |  | 1.0000 | 1,000.000 | 1 | 1.00x |" in line for line in lines)
    assert any("| 10 |  | 1.0000 | too long |" in line for line in lines)
