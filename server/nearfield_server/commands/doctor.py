"""``nearfield doctor``: is everything in this data directory as it was written?"""

from __future__ import annotations

from pathlib import Path

import typer

from nearfield_index.engine import Engine
from nearfield_server.commands.outcome import FAILED, counted, explained, fail


def run(path: Path, *, repair: bool) -> None:
    """Print one line per collection and its findings; exit code 1 where something is wrong."""
    if not path.is_dir():
        fail(f"there is no data directory at {path}")
    if not (path / "FORMAT").is_file():  # opening it would make one of it
        fail(f"{path} is not a data directory: it has no FORMAT file")
    with explained(), Engine.open(path) as engine:
        report = engine.check(repair=repair)
    for collection in report["collections"]:
        verdict = "ok" if collection["ok"] else "damaged"
        size = (
            f", {counted(collection['rows'], 'row')}, {counted(collection['segments'], 'segment')}"
            if collection["rows"] is not None
            else ""
        )
        typer.echo(f"{collection['name']}: {verdict}{size}")
        for finding in collection["findings"]:
            typer.echo(f"  {finding}")
    lost = [collection["name"] for collection in report["collections"] if not collection["repairable"]]
    if lost:
        fail(f"something is wrong that --repair cannot repair: {', '.join(lost)}; what to do stands above", FAILED)
    if not report["ok"]:
        fail("something is wrong" + ("" if repair else "; --repair rebuilds what can be rebuilt"), FAILED)
    typer.echo(f"{counted(len(report['collections']), 'collection')} checked, all in order")
