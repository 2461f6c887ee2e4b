"""``nearfield hubness``: files in, a fit, a table, JSON, a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

import nearfield
from nearfield_server.cli import app

RANDOM = np.random.default_rng(6)
X = RANDOM.standard_normal((120, 8)).astype(np.float32)
BANK = (RANDOM.standard_normal((80, 8)) + 0.8).astype(np.float32)


def run(*arguments: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with nearfield.open(tmp_path / "data") as client:
        client.create("c", dim=8).upsert(np.arange(120), X)
    np.save(tmp_path / "bank.npy", BANK)
    np.savez(tmp_path / "pairs.npz", vectors=X[:30] + 0.1, ids=np.arange(30))
    return tmp_path / "data"


def test_fit_report_release_and_drop(data: Path, tmp_path: Path) -> None:
    fitted = run(
        *("hubness", "fit", "c", "--bank", tmp_path / "bank.npy", "--pairs", tmp_path / "pairs.npz"),
        *("--method", "sinkhorn", "--strength", 0.05, "--data", data),
    )
    assert "sinkhorn 0.05 on 80 queries" in fitted.output
    assert "r@10" in fitted.output
    report = json.loads(run("hubness", "report", "c", "--json", "--data", data).output)
    assert (report["method"], report["bank"]["size"]) == ("sinkhorn", 80)
    assert "skewness" in run("hubness", "report", "c", "--data", data).output
    assert run("hubness", "release", "c", "5", "x", "--data", data).output == "0 points released\n"
    run("hubness", "drop", "c", "--data", data)
    assert "no hubness fit" in run("hubness", "report", "c", "--data", data, code=1).output


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture(data: Path, tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    run("hubness", "fit", "c", "--bank", tmp_path / "bank.npy", "--method", "csls", "--data", data)
    out = tmp_path / f"out.{ending}"
    assert run("hubness", "report", "c", "--plot", out, "--data", data).output == ""
    assert out.read_bytes()[:4] in (b"\x89PNG", b"<?xm")
    assert "cannot write" in run("hubness", "report", "c", "--plot", tmp_path / "x.nope", "--data", data, code=1).output


def test_wrong_use(data: Path, tmp_path: Path) -> None:
    assert "--bank or --log" in run("hubness", "fit", "c", "--data", data, code=2).output
    assert "one npy file" in run("hubness", "fit", "c", "--bank", tmp_path / "pairs.npz", "--data", data, code=2).output
    missing = run("hubness", "fit", "c", "--bank", tmp_path / "none.npy", "--data", data, code=1)
    assert "cannot read" in missing.output
    wrong = ("hubness", "fit", "c", "--bank", tmp_path / "bank.npy", "--pairs", tmp_path / "bank.npy", "--data", data)
    assert "npz file with the arrays" in run(*wrong, code=2).output
    unknown = run("hubness", "fit", "c", "--bank", tmp_path / "bank.npy", "--field", "no", "--data", data, code=1)
    assert "no such vector field" in unknown.output
