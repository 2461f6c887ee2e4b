"""One Markdown report of all samples below a directory: machine, tables per workload, a figure; runs side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from loadtests import metrics, report_filtered, report_gpu, report_layout, report_monitor, report_scorer
from loadtests.samples import Record, Run, read
from loadtests.tables import decimal, table

REPORT = "report.md"


def write(directory: Path) -> Path:
    """Write ``report.md`` and its figures into the directory; the report's path.

    Raises FileNotFoundError where no samples are, ValueError where a file holds something else.
    """
    runs = [read(path) for path in sorted(directory.rglob("*.jsonl"))]
    if not runs:
        raise FileNotFoundError(f"there are no samples (*.jsonl) below {directory}")
    lines = ["# Load tests", "", *_runs(runs)]
    for workload, section in _SECTIONS.items():
        chosen = [run for run in runs if run.header["workload"] == workload]
        if chosen:
            lines += [f"## {workload.capitalize()}", "", *section(chosen, directory)]
    path = directory / REPORT
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


def _runs(runs: Sequence[Run]) -> list[str]:
    """What ran, where, at what state of the code."""
    machines = {_machine(run): None for run in runs}
    lines = [*(f"{number}. {machine}" for number, machine in enumerate(machines, 1)), ""]
    rows = []
    for run in runs:
        header = run.header
        rows.append(
            [
                f"`{header['command']}`",
                f"{header['points']:,} x {header['dim']} {header['metric']}, {header['queries']:,} queries",
                header["machine"]["at"],
                header["machine"]["load"][0],
                list(machines).index(_machine(run)) + 1 if len(machines) > 1 else "",
                "yes" if run.complete else "**no**",
            ]
        )
    return lines + table(["command", "data", "at", "load before", "machine", "complete"], rows)


def _machine(run: Run) -> str:
    machine, versions = run.header["machine"], run.header["versions"]
    parts = [machine["cpu"], f"{machine['cores']} cores", f"{machine['memory_gib']} GiB", machine["system"]]
    return ", ".join([*parts, *(f"{name} {version}" for name, version in versions.items())])


def _recall(runs: Sequence[Run], directory: Path) -> list[str]:
    lines: list[str] = []
    for dataset, mine in _by(runs, "dataset").items():
        lines += [f"### {dataset}", ""]
        rows = [_recall_row(run, record) for run in mine for record in settings(run)]
        heads = "target|points|mode|setting|recall|worst 5 %|queries/s|p50 ms|p99 ms|CPU ms/query|client CPU ms/query"
        lines += table([*heads.split("|"), "engine p50 ms", "wrong"], rows)
        lines += _filled(mine)
        loops = [(run, record) for run in mine for record in run.of("open_loop")]
        lines += ["At a fixed rate, latency from when a query was due:", ""]
        lines += table(_LATENCY_HEADS, [[run.header["target"], *_latency(record)] for run, record in loops])
        figure = _figure(mine, directory / f"recall-{re.sub(r'[^a-z0-9_-]+', '-', dataset.lower())}.png")
        if figure is None:
            lines += ["(No figure: matplotlib is not installed.)", ""]
        else:
            lines += [f"![recall against queries per second on {dataset}]({figure.name})", ""]
    return lines


def settings(run: Run) -> list[Record]:
    """One record per mode and setting: of repetitions the one of median speed."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in run.of("setting"):
        groups.setdefault((record["mode"], record["name"]), []).append(record)
    return [metrics.middle(records) for _, records in sorted(groups.items(), key=lambda each: each[0][0] != "single")]


def _recall_row(run: Run, record: Record) -> list[Any]:
    return [
        run.header["target"],
        f"{run.header['points']:,}",
        record["mode"] if record["mode"] == "single" else f"batch of {record['batch']}",
        record["name"],
        f"{metrics.recall(record):.4f}",
        f"{metrics.recall_low(record):.1f}",
        f"{metrics.qps(record):,.0f}",
        *(f"{metrics.percentile_ms(record, percent):.2f}" for percent in (50, 99)),
        decimal(metrics.cpu_ms(record), 2),
        decimal(metrics.client_cpu_ms(record), 2),
        decimal(metrics.engine_ms(record), 2),
        metrics.wrong(record),
    ]


def _filled(runs: Sequence[Run]) -> list[str]:
    rows = []
    for run in runs:
        for record in run.of("filled"):
            segments = record["facts"].get("segments", [])
            rows.append(
                [
                    record.get("target", run.header["target"]),
                    f"{record['load_s']:.1f}",
                    f"{record['optimize_s']:.1f}",
                    _mebibytes(record["rss_bytes"]),
                    ", ".join(f"{each['state']} {each['kind']} {each['points']:,}" for each in segments),
                ]
            )
    return table(["target", "load s", "optimise s", "memory MiB", "segments"], rows)


def _churn(runs: Sequence[Run], directory: Path) -> list[str]:
    lines: list[str] = []
    for run in runs:
        lines += [f"### {run.label}, {run.header['points']:,} points, at {run.header['usual']}", ""]
        background = run.of("background")
        latencies = background[0]["latencies"] if background else []
        rows = [_step(record, latencies) for record in run.of("step")]
        heads = "step|points touched|took s|living|recall|worst 5 %|wrong|p50 ms|p99 ms|meanwhile p50 ms"
        lines += table([*heads.split("|"), "meanwhile p99 ms", "meanwhile failed", "memory MiB"], rows)
    return lines


def _step(record: Record, latencies: Sequence[Any]) -> list[Any]:
    span = (record["begun"], record["ended"])
    meanwhile = metrics.answered(latencies, *span)
    measured = "right" in record
    return [
        " ".join(str(value) for value in record["step"].values()),
        f"{record['touched']:,}",
        "" if measured else f"{record['took_s']:.2f}",
        f"{record['living']:,}",
        f"{metrics.recall(record):.4f}" if measured else "",
        f"{metrics.recall_low(record):.1f}" if measured else "",
        metrics.wrong(record) if measured else "",
        *(f"{metrics.percentile_ms(record, percent):.2f}" if measured else "" for percent in (50, 99)),
        *(decimal(metrics.percentile(meanwhile, percent) * 1e3, 2) for percent in (50, 99)),
        metrics.failures(latencies, *span),
        _mebibytes(record["rss_bytes"]),
    ]


def _ingest(runs: Sequence[Run], directory: Path) -> list[str]:
    rows, loops = [], []
    for run in runs:
        optimized = {record["phase"]: record for record in run.of("optimized")}
        for record in run.of("ingest"):
            found, checked = metrics.found_at_once(record)
            done = optimized.get(record["phase"])
            rows.append(
                [
                    run.label,
                    record["phase"],
                    "yes" if record["durable"] else "no",
                    f"{metrics.points_per_second(record):,.0f}",
                    *(f"{metrics.batch_percentile_ms(record, percent):,.0f}" for percent in (50, 99)),
                    f"{metrics.slowest_batch_ms(record):,.0f}",
                    f"{found} of {checked}",
                    "" if done is None else f"{done['seconds']:.1f}",
                    decimal(math.nan if record["cpu_s"] is None else record["cpu_s"], 1),
                    _mebibytes(record["rss_bytes"]),
                ]
            )
        loops += [[run.label, *_latency(record)] for record in run.of("background")]
    heads = "run|how|durable|points/s|batch p50 ms|batch p99 ms|slowest batch ms|found at once|then optimise s|CPU s"
    lines = table([*heads.split("|"), "memory MiB"], rows)
    lines += ["Queries meanwhile (from the first batch until optimised), latency from when a query was due:", ""]
    return lines + table(_LATENCY_HEADS, loops)


def _overhead(runs: Sequence[Run], directory: Path) -> list[str]:
    lines: list[str] = []
    for run in runs:
        pairs = run.of("pair")
        if pairs:
            lines += [f"### {run.header['dataset']}, {run.header['points']:,} points, at {run.header['usual']}", ""]
            lines += [*(f"- {line}" for line in metrics.overhead_summary(pairs)), ""]
    return lines


_SECTIONS: dict[str, Callable[[Sequence[Run], Path], list[str]]] = {
    "recall": _recall,
    "churn": _churn,
    "ingest": _ingest,
    "overhead": _overhead,
    "hybrid": report_filtered.hybrid,
    "batch": report_filtered.batch,
    "scorer": report_scorer.recall,
    "scorer-latency": report_scorer.latency,
    "monitor": report_monitor.monitor,
    "layout": report_layout.layout,
    "gpu": report_gpu.gpu,
}
_LATENCY_HEADS = ["run", "asked/s", "answered", "failed", "p50 ms", "p95 ms", "p99 ms", "worst ms"]


def _latency(record: Record) -> list[Any]:
    seconds = metrics.answered(record["latencies"])
    return [
        f"{record['rate']:g}",
        f"{len(seconds):,}",
        metrics.failures(record["latencies"]),
        *(decimal(metrics.percentile(seconds, percent) * 1e3, 2) for percent in (50, 95, 99, 100)),
    ]


def _figure(runs: Sequence[Run], path: Path) -> Path | None:
    """Recall against queries a second, a line per target and mode; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, run in enumerate(runs):
        for mode, style in (("single", "o-"), ("batch", "s--")):
            records = sorted((each for each in settings(run) if each["mode"] == mode), key=metrics.recall)
            points = [(metrics.recall(record), metrics.qps(record)) for record in records]
            if points:
                label = f"{run.header['target']}, {run.header['points']:,} points, {mode}"
                axes.plot(*zip(*points, strict=True), style, color=f"C{number % 10}", label=label, markersize=4)
    axes.set_yscale("log")
    axes.set_xlabel(f"recall@{runs[0].header['options']['k']}")
    axes.set_ylabel("queries a second, one client")
    axes.set_title(runs[0].header["dataset"])
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path


def _by(runs: Iterable[Run], key: str) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.header[key], []).append(run)
    return groups


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.0f}"
