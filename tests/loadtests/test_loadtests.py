"""Every workload on every target, end to end on a tiny corpus. What comes out is checked, never how long it took."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import orjson
import pytest

from loadtests import report, samples, targets
from loadtests.__main__ import main
from loadtests.metrics import recall, wrong
from loadtests.workloads.bench import Options
from loadtests.workloads.churn import runbook

DATASET = "clustered-2000x16"
TINY = ["--dataset", DATASET, "--queries", "20", "--rounds", "1", "--rate", "100", "--batch", "7"]


def run(workload: str, target: str, out: Path, *more: str) -> samples.Run:
    """Run a workload; its one file of samples."""
    assert main(["run", workload, "--target", target, "--out", str(out), "--work", str(out), *TINY, *more]) == 0
    (path,) = out.glob("*.jsonl")
    done = samples.read(path)
    assert done.complete
    assert [each.name for each in out.iterdir()] == [path.name]  # the target's data are gone
    return done


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for the samples of the runs that several tests look at."""
    return tmp_path_factory.mktemp("samples")


@pytest.fixture(scope="module")
def measured(everything: Path) -> Callable[[str, str], samples.Run]:
    """``measured(workload, target)``: such a run, made when it is first asked for."""

    @cache
    def once(workload: str, target: str) -> samples.Run:
        return run(workload, target, everything / f"{workload}-{target}")

    return once


Measured = Callable[[str, str], samples.Run]


@pytest.mark.parametrize("target", targets.names())
def test_recall(target: str, measured: Measured) -> None:
    done = measured("recall", target)
    found = done.of("setting")
    assert len(found) == 2 * len(targets.make(target).settings)
    assert recall(found[-1]) > 0.999
    assert all(recall(record) > 0.9 and wrong(record) == 0 for record in found)
    assert all(error is None for _, _, error in done.of("open_loop")[0]["latencies"])


@pytest.mark.parametrize("target", ["faiss", "nearfield-embedded"])
def test_filtered_recall(target: str, tmp_path: Path) -> None:
    found = run("recall", target, tmp_path, "--where", "bucket=3").of("setting")
    assert recall(found[-1]) > 0.9


@pytest.mark.parametrize("target", targets.names())
def test_churn(target: str, measured: Measured) -> None:
    done = measured("churn", target)
    steps = done.of("step")
    assert [record["step"] for record in steps] == runbook(Options(rounds=1))
    assert [record["living"] for record in steps[:2]] == [2000, 1800]
    judged = [record for record in steps if record["step"]["do"] == "measure"]
    assert all(recall(record) > 0.9 and wrong(record) == 0 for record in judged)
    assert all(error is None for _, _, error in done.of("background")[0]["latencies"])


@pytest.mark.parametrize("target", targets.names())
def test_ingest(target: str, measured: Measured) -> None:
    done = measured("ingest", target)
    assert [sum(count for count, _ in record["batches"]) for record in done.of("ingest")] == [2000] * 3
    assert all(found for record in done.of("ingest") for _, found in record["found"])
    assert all(error is None for _, _, error in done.of("background")[0]["latencies"])


def test_overhead(measured: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(measured("overhead", "nearfield-rest").of("pair")) == 20
    assert "REST minus embedded" in capsys.readouterr().out


def test_a_report_of_several_runs(measured: Measured, everything: Path) -> None:
    measured("overhead", "nearfield-rest")
    for target in ("faiss", "nearfield-embedded"):
        for workload in ("recall", "churn", "ingest"):
            measured(workload, target)
    assert main(["report", str(everything)]) == 0
    text = (everything / report.REPORT).read_text()
    for head in ("## Recall", "## Churn", "## Ingest", "## Overhead"):
        assert text.count(head) == 1
    assert "| faiss | 2,000 | single | ef 64 |" in text
    assert "| nearfield-embedded | 2,000 | batch of 7 | exact |" in text
    figure = everything / f"recall-{DATASET}.png"
    try:
        import matplotlib
    except ImportError:
        assert "No figure" in text
    else:
        assert matplotlib.__version__
        assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_runbook_of_ones_own(tmp_path: Path) -> None:
    steps = [{"do": "delete", "share": 0.5}, {"do": "optimize"}, {"do": "measure"}]
    script = tmp_path / "steps.json"
    script.write_bytes(orjson.dumps(steps))
    done = run("churn", "faiss", tmp_path / "out", "--runbook", str(script))
    assert [record["step"] for record in done.of("step")] == steps
    assert done.of("step")[-1]["living"] == 1000


def test_a_run_that_fails_says_so_in_its_samples(tmp_path: Path) -> None:
    script = tmp_path / "steps.json"
    script.write_bytes(orjson.dumps([{"do": "explode"}]))
    out = tmp_path / "out"
    common = ["--target", "faiss", "--out", str(out), "--work", str(tmp_path), "--runbook", str(script), *TINY]
    assert main(["run", "churn", *common]) == 2
    (path,) = out.glob("*.jsonl")
    assert not samples.read(path).complete
    assert main(["report", str(out)]) == 0
    assert "**no**" in (out / report.REPORT).read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "recall", "--dataset", "nothing"],
        ["run", "recall", "--dataset", DATASET, "--where", "colour=red"],
        ["run", "recall", "--dataset", DATASET, "--where", "bucket=11"],
        ["run", "recall", "--dataset", DATASET, "--where", "bucket"],
        ["run", "recall", "--dataset", "glove_50_angular", "--data", "nowhere"],
        ["report", "nowhere"],
    ],
)
def test_faults_of_the_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err


def test_samples_of_another_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(orjson.dumps({"kind": "run", "format": 99}))
    with pytest.raises(ValueError, match="format"):
        samples.read(path)


def test_samples_keep_arrays_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"

    def measure() -> None:
        with samples.Samples(path, {"target": "t", "dataset": "d"}) as kept:
            kept.add("some", values=np.arange(3))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        measure()
    done = samples.read(path)
    assert done.of("some")[0]["values"] == [0, 1, 2]
    assert done.records[-1]["error"] == "RuntimeError: stop"
    assert done.header["machine"]["cores"] >= 1
