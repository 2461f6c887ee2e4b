"""The sections of a report about filtered queries: every selectivity against FAISS, and batches of many predicates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from loadtests import metrics
from loadtests.predicates import BUCKETS
from loadtests.samples import Record, Run
from loadtests.tables import decimal, percent, table

_ARMS = {
    ("faiss", ""): "FAISS HNSW16 per query, ef tuned per bucket, bitmaps free",
    ("grouped", ""): "FAISS by hand: group by predicate, gather, one exact knn",
    ("single", "first"): "ours per query, fresh engine",
    ("single", "again"): "ours per query, asked again",
    ("batch", "first"): "ours in one batch, fresh engine",
    ("batch", "again"): "ours in one batch, asked again",
    ("rest", "first"): "REST per query, fresh engine",
    ("rest", "again"): "REST per query, asked again",
    ("rest batch", "first"): "REST in one batch, fresh engine",
    ("rest batch", "again"): "REST in one batch, asked again",
}


def hybrid(runs: Sequence[Run], directory: Path) -> list[str]:
    """Per run a table with a row per cell, and a figure."""
    lines: list[str] = []
    for run in runs:
        target, k = run.header["options"]["recall"], run.header["options"]["k"]
        repeats = run.header["options"]["repeat"]
        lines += [
            f"### {run.label}, {run.header['points']:,} x {run.header['dim']}, every query with a range of its own, "
            "one thread",
            "",
            f"recall@{k} and queries/s (median of {repeats}) at target {target}. `ratio`: ours, asked "
            f"{run.header['options']['batch']} queries a call (`ours`), over the faster of FAISS HNSW16 and IVF "
            "(4 sqrt(n) lists), each under a bitmap at the effort that reached our recall on other ranges of the cell; "
            "`> max` where none did, then at its largest. `ratio, single`: ours one query a call, against the same. "
            "`ratio at target`: as `ratio` with FAISS tuned to the target only, which ours often exceeds. Making the "
            "rows of a filter counts on both sides. "
            "`flat`: FAISS exact over a list of ids, outside of the ratio.",
            "",
        ]
        cells = _cells(run)
        heads = "filter|passing|recall|HNSW recall (ef)|IVF recall (nprobe)|ours|ours, single|HNSW|IVF|flat"
        ratios = ("ratio", "ratio, single", "ratio at target")
        lines += table([*heads.split("|"), *ratios, "plans"], [_cell_row(cell) for cell in cells])
        wrong = sum(metrics.wrong(record) for record in run.of("cell"))
        lines += [f"Wrong ids, of anybody: {wrong}.", "", *_lost(cells, target)]
        path = directory / f"{run.path.stem}.png"
        if _hybrid_figure(cells, path, run.label):
            lines += [f"![queries a second against selectivity]({path.name})", ""]
    return lines


def batch(runs: Sequence[Run], directory: Path) -> list[str]:
    """Per run and workload: the arms by bucket, the ratios, the sizes of batches."""
    lines: list[str] = []
    for run in runs:
        header = run.header
        lines += [f"### {header['dataset']}, {header['points']:,} x {header['dim']}", ""]
        for workload in run.of("workload"):
            lines += _workload(run, workload)
        path = directory / f"{run.path.stem}.png"
        if _batch_figure(run, path):
            lines += [f"![microseconds a query against the size of a batch]({path.name})", ""]
    return lines


def _cells(run: Run) -> list[Record]:
    """One record per cell: by arm the median repetition with its mean recall, FAISS once per goal."""
    cells: dict[tuple[str, float], Record] = {}
    unreached = {
        (each["shape"], each["selectivity"], each["arm"], each["goal"])
        for each in run.of("tuned")
        if each["effort"] is None
    }
    groups: dict[tuple[str, float, str], list[Record]] = {}
    for record in run.of("cell"):
        for goal in record["goals"] or [""]:
            groups.setdefault((record["shape"], record["selectivity"], f"{record['arm']} {goal}".strip()), []).append(
                record
            )
    for (shape, selectivity, name), records in groups.items():
        cell = cells.setdefault((shape, selectivity), {"shape": shape, "selectivity": selectivity})
        arm, _, goal = name.partition(" ")
        middle = metrics.middle(records)
        cell[name] = {
            "qps": metrics.qps(middle),
            "cpu_us": metrics.cpu_us(middle),
            "recall": mean(metrics.recall(record) for record in records),
            "effort": middle["effort"],
            "reached": (shape, selectivity, arm, goal) not in unreached,
            "plans": middle.get("plans", {}),
        }
    for cell in cells.values():
        for ours, goal, name in (
            ("together", "ours", "ratio"),
            ("nearfield", "ours", "ratio, single"),
            ("together", "target", "ratio at target"),
        ):
            cell[name] = cell[ours]["qps"] / max(cell[f"{arm} {goal}"]["qps"] for arm in ("hnsw", "ivf"))
    return list(cells.values())


def _cell_row(cell: Record) -> list[Any]:
    ours, single, hnsw, ivf = cell["together"], cell["nearfield"], cell["hnsw ours"], cell["ivf ours"]

    def tuned(arm: Record) -> str:
        return f"{arm['recall']:.3f} ({'' if arm['reached'] else '> max '}{arm['effort']})"

    return [
        cell["shape"],
        percent(cell["selectivity"]),
        f"{min(ours['recall'], single['recall']):.3f}",
        tuned(hnsw),
        tuned(ivf),
        *(f"{arm['qps']:,.0f}" for arm in (ours, single, hnsw, ivf, cell["flat"])),
        f"**{cell['ratio']:.2f}**",
        f"{cell['ratio, single']:.2f}",
        f"{cell['ratio at target']:.2f}",
        ", ".join(f"{plan} x{count}" for plan, count in single["plans"].items()),
    ]


def _lost(cells: Iterable[Record], target: float) -> list[str]:
    """The cells where ours falls short of the other side, or of its own target."""
    lines = []
    for cell in cells:
        name = f"{cell['shape']} {percent(cell['selectivity'])}"
        for ratio, how in (("ratio", "many a call"), ("ratio, single", "one a call")):
            if cell[ratio] < 1:
                lines.append(f"- {name}: {cell[ratio]:.2f}x of the best of FAISS, {how}")
        for arm, how in (("together", "many a call"), ("nearfield", "one a call")):
            if cell[arm]["recall"] < target - 0.01:
                lines.append(f"- {name}: recall {cell[arm]['recall']:.3f}, {how}")
    return ["Where ours is slower, or more than 0.01 below the target:", "", *(lines or ["- nowhere"]), ""]


def _workload(run: Run, workload: Record) -> list[str]:
    buckets = workload["buckets"]
    shares = [f"{name} ({buckets.count(number) / len(buckets):.0%})" for number, name in enumerate(BUCKETS)]
    lines = [f"#### {workload['name']}: {workload['queries']:,} queries, {workload['predicates']:,} predicates", ""]
    lines += ["Microseconds a query (recall). A bucket of a batch is that bucket asked as one batch.", ""]
    figures = {key: _by_bucket(run, workload, *key) for key in _ARMS}
    rows = []
    for key, name in _ARMS.items():
        if figures[key]:
            cells = [_figure_of(figures[key].get(place)) for place in (None, *range(len(BUCKETS)))]
            rows.append([name, *cells, decimal(figures[key][None]["cpu_us"], 0)])
    lines += table(["arm", "all", *shares, "CPU us, all"], rows)
    lines += _efforts(run, workload)
    lines += [*(f"- {line}" for line in _claims(figures)), ""]
    lines += _sizes(run, workload)
    return lines


def _by_bucket(run: Run, workload: Record, arm: str, which: str) -> dict[int | None, dict[str, float]]:
    """Microseconds and recall of an arm, for all queries (None) and by bucket; the median repetition each."""
    mine = [
        record
        for record in run.of("arm")
        if (record["workload"], record["arm"], record["pass"]) == (workload["name"], arm, which)
    ]
    whole = [record for record in mine if record.get("bucket") is None]
    if not whole:
        return {}
    largest = max(record["size"] for record in whole)
    middle = metrics.middle([record for record in whole if record["size"] == largest])
    found: dict[int | None, dict[str, float]] = {None: _told(middle) | {"cpu_us": metrics.cpu_us(middle)}}
    for number in range(len(BUCKETS)):
        if len(middle["seconds"]) == middle["queries"]:  # every query has its own time
            places = [at for at, query in enumerate(middle["chosen"]) if workload["buckets"][query] == number]
            apart = [metrics.of_queries(middle, places)] if places else []
        else:
            apart = [record for record in mine if record.get("bucket") == number]
        if apart:
            found[number] = _told(metrics.middle(apart))
    return found


def _told(record: Record) -> dict[str, float]:
    return {"us": metrics.us(record), "recall": metrics.recall(record), "wrong": metrics.wrong(record)}


def _figure_of(told: dict[str, float] | None) -> str:
    if told is None:
        return ""
    wrong = f", {told['wrong']} wrong" if told["wrong"] else ""
    return f"{told['us']:,.0f} ({told['recall']:.3f}{wrong})"


def _efforts(run: Run, workload: Record) -> list[str]:
    tuned = [record for record in run.of("tuned") if record["workload"] == workload["name"]]
    told = [
        f"{BUCKETS[each['bucket']]}: {each['effort'] or 'recall never reached, at ' + str(each['most'])}"
        for each in tuned
    ]
    return [f"FAISS HNSW16's ef: {'; '.join(told)}.", ""]


def _claims(figures: dict[tuple[str, str], dict[int | None, dict[str, float]]]) -> list[str]:
    """Ratios, each with what it is measured against."""
    lines = []
    for which in ("first", "again"):
        ours = figures["batch", which]
        for key in (("faiss", ""), ("single", which), ("grouped", "")):
            theirs = figures[key]
            if not ours or not theirs:
                continue
            parts = [
                f"{name} {theirs[place]['us'] / ours[place]['us']:.1f}x"
                for place, name in ((None, "all"), *enumerate(BUCKETS))
                if place in ours and place in theirs
            ]
            lines.append(f"ours in one batch ({which}) over {_ARMS[key]}: {', '.join(parts)}")
    for key in (("rest batch", "first"), ("rest batch", "again"), ("rest", "first"), ("rest", "again")):
        if figures[key]:
            lines.append(f"{_ARMS[key]}: {figures[key][None]['us']:,.0f} us a query")
    return lines


def _sizes(run: Run, workload: Record) -> list[str]:
    """What a query costs by the size of its batch, and from which size on batches pay."""
    groups: dict[tuple[str, int, str], list[Record]] = {}
    for record in run.of("arm"):
        if record["workload"] == workload["name"] and "batch" in record["arm"] and record.get("bucket") is None:
            groups.setdefault((record["arm"], record["size"], record["pass"]), []).append(record)
    if len({size for _, size, _ in groups}) < 2:
        return []
    rows = []
    for (arm, size, which), records in groups.items():
        middle = metrics.middle(records)
        engine = sum(middle["engine_ms"]) * 1e3 / middle["queries"]
        rows.append([arm, f"{size:,}", which, *(f"{us:,.0f}" for us in (metrics.us(middle), engine))])
    lines = table(["arm", "queries a call", "pass", "us a query", "of which the engine says"], rows)
    for which in ("first", "again"):
        single = _by_bucket(run, workload, "single", which)
        sizes = {
            size: metrics.us(metrics.middle(records))
            for (arm, size, each), records in groups.items()
            if (arm, each) == ("batch", which)
        }
        if not single or 1 not in sizes:
            continue
        even = metrics.break_even(sizes, single[None]["us"])
        told = "no size measured" if even is None else f"{even:,} queries a call"
        lines.append(f"- In process a batch costs less a query than single queries from ({which} pass): {told}.")
    return [*lines, ""]


def _hybrid_figure(cells: Sequence[Record], path: Path, title: str) -> bool:
    """Queries a second against selectivity, a panel per kind of filter; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    shapes = list(dict.fromkeys(cell["shape"] for cell in cells))
    figure = Figure(figsize=(5 * max(1, len(shapes)), 4.5), layout="constrained")
    panels = figure.subplots(1, max(1, len(shapes)), sharey=True, squeeze=False)[0]
    names = {
        "together": "ours, many a call",
        "nearfield": "ours, one a call",
        "hnsw ours": "FAISS HNSW16",
        "ivf ours": "FAISS IVF",
        "flat": "FAISS flat over ids",
    }
    for axes, shape in zip(panels, shapes, strict=False):
        mine = sorted((cell for cell in cells if cell["shape"] == shape), key=lambda cell: float(cell["selectivity"]))
        for name, label in names.items():
            style = ":" if name == "flat" else "o-"
            x, y = [cell["selectivity"] for cell in mine], [cell[name]["qps"] for cell in mine]
            axes.plot(x, y, style, label=label, markersize=4)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"{shape}")
        axes.set_xlabel("share of rows that pass")
        axes.grid(visible=True, which="both", alpha=0.3)
    panels[0].set_ylabel("queries a second at our recall")
    panels[0].legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    return True


def _batch_figure(run: Run, path: Path) -> bool:
    """Microseconds a query against the size of a batch, with the per-query arms as lines; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    mine = [record for record in run.of("arm") if record["workload"] == "given" and record.get("bucket") is None]
    groups: dict[tuple[str, str], dict[int, list[Record]]] = {}
    for record in mine:
        groups.setdefault((record["arm"], record["pass"]), {}).setdefault(record["size"], []).append(record)
    for number, ((arm, which), sizes) in enumerate(groups.items()):
        points = sorted((size, metrics.us(metrics.middle(records))) for size, records in sizes.items())
        label = f"{arm} {which}".strip()
        if len(points) == 1:
            axes.axhline(points[0][1], linestyle="--", color=f"C{number % 10}", label=label)
        else:
            axes.plot(*zip(*points, strict=True), "o-", color=f"C{number % 10}", label=label, markersize=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("queries a call")
    axes.set_ylabel("microseconds a query")
    axes.set_title(run.header["dataset"])
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return True
