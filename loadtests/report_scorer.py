"""The part of a report about searches under an expensive scorer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtests.metrics import percentile
from loadtests.samples import Run
from loadtests.tables import table


def recall(runs: Sequence[Run], directory: Path) -> list[str]:
    """Top-k recall by method and number of calls, as a table and a figure, and where a method loses to ``rerank``."""
    lines: list[str] = []
    for run in runs:
        cells = {(each["method"], each["budget"]): each for each in run.of("cell")}
        if not cells:
            lines += [f"### {run.header['dataset']}: cut short before anything was measured", ""]
            continue
        methods = list(dict.fromkeys(method for method, _ in cells))
        budgets = sorted({budget for _, budget in cells})
        depths = sorted({int(k) for each in cells.values() for k in each["recalls"]})
        rows: list[list[Any]] = []
        for k in depths:
            for method in methods:
                shown = [_share(cells.get((method, budget)), k) for budget in budgets]
                rows.append([k, method, *("" if s is None else f"{s:.3f}" for s in shown)])
        lines += [f"### {run.header['dataset']}, {run.header['points']:,} points", ""]
        lines += table(["k", "method", *(f"{budget} calls" for budget in budgets)], rows)
        lines += _verdict(cells, budgets, depths)
        for each in run.of("fitted"):
            told = each["estimated"]["seconds_left"]
            lines += [f"Anchor job: {each['pairs']:,} pairs in {each['seconds']:.1f} s (estimated: {told} s).", ""]
        figure = _figure(run, cells, directory / f"scorer-{run.header['dataset']}.png", budgets, depths)
        lines += [f"![recall against calls]({figure.name})" if figure else "(No figure: matplotlib is missing.)", ""]
    return lines


def _share(cell: Any, k: int) -> float | None:
    return None if cell is None else cell["recalls"].get(str(k))


def _verdict(cells: dict[Any, Any], budgets: Sequence[int], depths: Sequence[int]) -> list[str]:
    """The most pairs the scorer counted for a query, and by how much each method beats rerank at its worst."""
    over = [each for each in cells.values() if each["most_pairs"] > each["budget"]]
    lines = ["Pairs counted by the scorer: " + ("**over the budget**." if over else "never more than the budget."), ""]
    rows = []
    for method in ("axn", "anncur", "adacur", "joint"):
        gains = [
            (mine - base, k, budget)
            for budget in budgets
            for k in depths
            if (mine := _share(cells.get((method, budget)), k)) is not None
            and (base := _share(cells.get(("rerank", budget)), k)) is not None
        ]
        if gains:
            worst = min(gains)
            rows.append([method, f"{worst[0]:+.3f}", f"k = {worst[1]}, {worst[2]} calls"])
    return lines + table(["method", "against rerank, at its worst", "where"], rows)


def _figure(run: Run, cells: dict[Any, Any], path: Path, budgets: Sequence[int], depths: Sequence[int]) -> Path | None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(4 * len(depths), 4), layout="constrained")
    for axes, k in zip(figure.subplots(1, len(depths), sharey=True, squeeze=False)[0], depths, strict=True):
        for method in dict.fromkeys(method for method, _ in cells):
            points = [(b, s) for b in budgets if (s := _share(cells.get((method, b)), k)) is not None]
            axes.plot(*zip(*points, strict=True), "o-", label=method, markersize=4)
        axes.set_xscale("log")
        axes.set_xticks(budgets, [str(budget) for budget in budgets])
        axes.minorticks_off()
        axes.set_xlabel("scorer calls a query")
        axes.set_title(f"k = {k}")
        axes.grid(visible=True, alpha=0.3)
    figure.axes[0].set_ylabel("top-k recall under the scorer")
    figure.axes[0].legend(fontsize="small")
    figure.suptitle(f"{run.header['dataset']}, {run.header['points']:,} points")
    figure.savefig(path, dpi=120)
    return path


def latency(runs: Sequence[Run], directory: Path) -> list[str]:
    """Time beside the scorer, and calls when many ask at once."""
    lines: list[str] = []
    for run in runs:
        lines += [f"### {run.header['dataset']}, {run.header['points']:,} x {run.header['dim']}", ""]
        rows = [
            [
                each["method"],
                each["budget"] if each["method"] != "plain" else "",
                *(f"{percentile(each['beside_scorer_s'], p) * 1e3:.2f}" for p in (50, 95)),
                f"{percentile(each['seconds'], 50) * 1e3:.2f}",
            ]
            for each in run.of("latency")
        ]
        lines += table(["query", "budget", "beside the scorer p50 ms", "p95 ms", "whole p50 ms"], rows)
        rows = [
            [each["threads"], each["queries"], each["calls"], each["pairs"], f"{each['seconds']:.2f}"]
            for each in run.of("shared")
        ]
        lines += table(["at a time", "queries", "calls of the scorer", "pairs", "seconds"], rows)
    return lines
