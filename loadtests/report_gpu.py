"""The section of a report about a GPU: what each plan takes to build, and one table of times, recall and roofs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtests.ceilings import roof_s
from loadtests.samples import Record, Run
from loadtests.tables import decimal, percent, table

_HALF = ("gpu-flat16", "gpu-gather")
_SCANS = ("exact", "gpu-flat", *_HALF)
_HEADS = "plan|filter|batch|effort|recall|ms|queries/s|against CPU exact|roof ms|share of roof"


def gpu(runs: Sequence[Run], directory: Path) -> list[str]:
    """Per run what was measured."""
    found: list[str] = []
    for run in runs:
        found += [f"### {run.header['dataset']}, {run.header['points']:,} x {run.header['dim']}", ""]
        found += lines(run.records)
    return found


def lines(records: Sequence[Record]) -> list[str]:
    """The tables of one run."""
    ceilings = {each["where"]: each for each in records if each["kind"] == "ceiling"}
    plans = [each for each in records if each["kind"] == "plan"]
    built = [[each["plan"], _built(each), "" if each["skipped"] else f"{each['bytes']:,}"] for each in plans]
    times = [each for each in records if each["kind"] == "time"]
    on_cpu = {(t["share"], t["batch"]): t["seconds"] for t in times if t["plan"] == "exact"}
    rows = [_row(each, ceilings, on_cpu.get((each["share"], each["batch"]))) for each in times]
    rows += [[each["plan"], each["skipped"], *[""] * (_HEADS.count("|") - 1)] for each in plans if each["skipped"]]
    return [
        *(_ceiling(each) for each in ceilings.values()),
        "",
        *table(["plan", "build s", "bytes beside the matrix"], built),
        *table(_HEADS.split("|"), rows),
    ]


def _built(plan: Record) -> str:
    return str(plan["skipped"] or decimal(plan["build_s"], 2))


def _row(time: Record, ceilings: dict[str, Record], on_cpu: float | None) -> list[Any]:
    plan, seconds = time["plan"], time["seconds"]
    name = "none" if time["share"] == 1.0 else percent(time["share"])
    shown = [plan, name, f"{time['batch']:,}", time["effort"] or "", f"{time['recall']:.4f}"]
    if seconds is None:
        return [*shown, "too long", *[""] * 4]
    factor = "" if not on_cpu else f"{on_cpu / seconds:,.2f}x"
    shown += [decimal(seconds * 1e3, 3), f"{time['batch'] / seconds:,.0f}", factor]
    where = "cpu" if plan == "exact" else next((each for each in ceilings if each != "cpu"), "cpu")
    roof = None
    if plan in _SCANS:
        precision = "fp16" if plan in _HALF else "fp32"
        roof = roof_s(ceilings[where], precision, time["rows"], time["columns"], time["batch"])
    return [*shown, "" if roof is None else decimal(roof * 1e3, 3), "" if roof is None else percent(roof / seconds)]


def _ceiling(found: Record) -> str:
    if not found["bandwidth"]:
        return f"{found['where']}: roofs are not known, for {found['why']}."
    rates = ", ".join(f"{name} {rate / 1e12:,.2f} TFLOP/s" for name, rate in found["rates"].items())
    return f"{found['where']}: {found['bandwidth'] / 1e9:,.0f} GB/s copied, {rates}."
