"""``nearfield hubness``: fit a normalisation, report what it does, drop it, release points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from nearfield_server.commands.outcome import USAGE, counted, explained, fail
from nearfield_server.commands.target import Target

MEASURES = ("skewness", "robin_hood", "antihubs", "hub_share", "max")


@dataclass(frozen=True)
class Asked:
    """The options of one fit, as typed."""

    bank: Path | None
    log: int | None
    pairs: Path | None
    method: str
    strength: float | None
    gate: bool
    quarantine: bool
    field: str | None


def fit(target: Target, collection: str, asked: Asked) -> None:
    """Start the job and watch it; then print what it found."""
    if (asked.bank is None) == (asked.log is None):
        fail("give either --bank or --log", USAGE)
    bank = None if asked.bank is None else _load(asked.bank)
    if isinstance(bank, dict):
        fail(f"{asked.bank} holds several arrays; a bank is one npy file", USAGE)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with explained(), target.connect() as client:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("fit", total=1.0)
            client.collection(collection).fit_hubness(
                bank,
                log=asked.log,
                pairs=None if asked.pairs is None else _pairs(asked.pairs),
                method=asked.method,
                strength=asked.strength,
                gate=asked.gate,
                quarantine=asked.quarantine,
                field=asked.field,
                progress=lambda done, _: progress.update(task, completed=done),
            )
            progress.update(task, completed=1.0, description="done")
        report = client.collection(collection).hubness()
    _print(report if asked.field is None else report["fields"][asked.field])


def report(target: Target, collection: str, *, field: str | None, as_json: bool, plot: Path | None) -> None:
    """Print the report as a table or as JSON; ``plot`` draws it into a file."""
    with explained(), target.connect() as client:
        found = client.collection(collection).hubness()
    if field is not None:
        if field not in found["fields"]:
            fail(f"field {field} has no hubness fit; fit one: nearfield hubness fit")
        found = found["fields"][field]
    if plot is not None:
        draw(found, plot)
    if as_json:
        typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    elif plot is None:
        _print(found)


def drop(target: Target, collection: str) -> None:
    """Search raw again."""
    with explained(), target.connect() as client:
        client.collection(collection).drop_hubness()
    typer.echo(f"{collection} is searched without normalisation")


def release(target: Target, collection: str, ids: list[str]) -> None:
    """Let points out of quarantine."""
    parsed = [int(each) if each.isascii() and each.isdigit() else each for each in ids]
    with explained(), target.connect() as client:
        count = client.collection(collection).release(parsed)
    typer.echo(f"{counted(count, 'point')} released")


def draw(report: dict[str, Any], path: Path) -> None:
    """The top hubs and the measures of hubness, before and after, as one picture."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        fail('a plot needs matplotlib: pip install "nearfield[bench]"')
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    hubs = report["hubs"]
    places = np.arange(len(hubs))
    left.bar(places - 0.2, [hub["count"] for hub in hubs], 0.4, label="raw")
    left.bar(places + 0.2, [hub["after"] for hub in hubs], 0.4, label="normalised")
    left.set_xticks(places, [str(hub["id"])[:16] for hub in hubs], rotation=60, ha="right", fontsize=7)
    left.set_ylabel(f"top-10 lists of {report['hubs_of']} bank queries with the point")
    left.set_title("Top hubs")
    left.legend()
    before, after = report["occurrence"]["before"], report["occurrence"]["after"]
    shares = ("robin_hood", "antihubs", "hub_share")
    places = np.arange(len(shares))
    right.bar(places - 0.2, [before[name] for name in shares], 0.4)
    right.bar(places + 0.2, [after[name] for name in shares], 0.4)
    right.set_xticks(places, ["Robin Hood index", "antihub rate", "share of hubs"])
    right.set_ylim(0, 1)
    right.set_title(
        f"{report['method']} {report['strength']:g}: skewness {before['skewness']:.1f} to {after['skewness']:.1f}"
    )
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        fail(f"cannot write {path}: {error}")


def _print(report: dict[str, Any]) -> None:
    console = Console()
    chosen = "used by auto" if report["recommended"] else "not recommended"
    console.print(f"{report['method']} {report['strength']:g} on {report['bank']['size']} queries, {chosen}:")
    console.print(escape(report["reason"]))
    table = Table("", "before", "after")
    for name in MEASURES:
        table.add_row(name, *(f"{report['occurrence'][when][name]:.4g}" for when in ("before", "after")))
    for name in ("r@1", "r@5", "r@10"):
        if report.get("pairs"):
            table.add_row(name, *(f"{report['pairs'][when][name]:.4f}" for when in ("before", "after")))
    console.print(table)
    hubs = Table("hub", "count", "share", "after")
    for hub in report["hubs"][:10]:
        hubs.add_row(escape(str(hub["id"])), str(hub["count"]), f"{hub['share']:.4f}", str(hub["after"]))
    console.print(hubs)


def _load(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except (OSError, ValueError) as error:
        fail(f"cannot read {path}: {error}")


def _pairs(path: Path) -> tuple[Any, Any]:
    held = _load(path)
    if not isinstance(held, dict) or not {"vectors", "ids"} <= held.keys():
        fail(f"{path} must be an npz file with the arrays vectors and ids", USAGE)
    return held["vectors"], held["ids"].tolist()
