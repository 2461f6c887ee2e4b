"""The section of a report about the recall monitor: its estimates beside the truth, and its cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loadtests.samples import Run
from loadtests.tables import percent, table


def monitor(runs: Sequence[Run], directory: Path) -> list[str]:
    """Per run a row per bucket and a line about the cost."""
    lines: list[str] = []
    for run in runs:
        lines += [f"### {run.label}, {run.header['points']:,} x {run.header['dim']}", ""]
        rows = []
        for each in run.of("estimate"):
            low, high = each["interval"] or (None, None)
            known = each["estimate"] is not None
            rows.append(
                [
                    f"{each['plan']} {each['bucket']}",
                    f"{each['asked']:,}",
                    f"{each['true']:.4f}",
                    f"{each['samples']:,}",
                    f"{each['estimate']:.4f} ({low:.3f} to {high:.3f})" if known else "none",
                    f"{each['estimate'] - each['true']:+.4f}" if known else "",
                ]
            )
        heads = ["plan, selectivity", "queries", "true recall", "samples", "estimate (95 % interval)", "difference"]
        lines += table(heads, rows)
        for each in run.of("cost"):
            share = percent(each["replays_cpu_s"] / each["cpu_s"])
            lines += [
                f"At the default rate: {each['queries']:,} queries, {each['samples']:,} replayed, {share} of the "
                f"processor time ({each['replays_cpu_s']:.2f} of {each['cpu_s']:.1f} s).",
                "",
            ]
    return lines
