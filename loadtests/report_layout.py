"""The section of a report about layouts: the same queries without and with one, per mix and selectivity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.predicates import BUCKETS
from loadtests.samples import Run
from loadtests.tables import table

_ARMS = ("planned", "exact", "batch")


def layout(runs: Sequence[Run], directory: Path) -> list[str]:
    """Per run and mix a row per bucket: microseconds of processor a query without and with, and their ratio."""
    lines: list[str] = []
    for run in runs:
        lines += [f"### {run.label}, {run.header['points']:,} x {run.header['dim']}", ""]
        for each in run.of("laid out"):
            lines += [f"Laid out in {each['seconds']:.0f} s: {each['result']}", ""]
        for mix in run.header["options"]["mixes"]:
            arms = [each for each in run.of("arm") if each["mix"] == mix]
            cold = [each for each in run.of("cold") if each["mix"] == mix]
            if arms:
                lines += [f"{mix}:", ""]
                heads = ["selectivity", "queries", *_ARMS, "cold, faults a query", "cold, ms a query"]
                lines += table(heads, _rows(arms, cold))
    return lines


def _rows(arms: Sequence[dict[str, Any]], cold: Sequence[dict[str, Any]]) -> list[list[str]]:
    buckets = np.array(arms[0]["bucket"])
    rows = []
    for bucket in (*np.unique(buckets).tolist(), None):
        chosen = np.ones(len(buckets), dtype=bool) if bucket is None else buckets == bucket
        row = ["all" if bucket is None else BUCKETS[bucket], f"{int(chosen.sum()):,}"]
        for arm in _ARMS:
            if arm == "batch" and bucket is not None:  # a call holds queries of all buckets
                row.append("")
                continue
            both = [
                1e6 * float(np.mean([np.array(e["seconds"])[chosen].mean() for e in arms if _is(e, arm, name)]))
                for name in ("without", "with")
            ]
            row.append(_compared(both, "{:,.0f}"))
        mine = [each for each in cold if bucket is None or each["bucket"] == bucket]
        for told, scale in (("faults", 1.0), ("seconds", 1e3)):
            both = []
            for name in ("without", "with"):
                some = [each for each in mine if each["layout"] == name]
                both.append(scale * sum(e[told] for e in some) / max(1, sum(e["queries"] for e in some)))
            row.append(_compared(both, "{:,.1f}"))
        rows.append(row)
    return rows


def _is(each: dict[str, Any], arm: str, name: str) -> bool:
    return bool(each["arm"] == arm and each["layout"] == name)


def _compared(both: Sequence[float], form: str) -> str:
    without, with_it = both
    gain = f" ({without / with_it:.2f}x)" if with_it > 0 else ""
    return f"{form.format(without)} -> {form.format(with_it)}{gain}"
