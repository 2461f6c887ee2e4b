"""``nearfield reranker``: fit, look at, drop, and export what was scored."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from nearfield_server.commands.outcome import USAGE, explained, fail
from nearfield_server.commands.target import Target

_ROWS = 50_000


def fit(
    target: Target,
    collection: str,
    name: str,
    scorer: str,
    *,
    log: int | None,
    anchors: Path | None,
    count: int | None,
    field: str | None,
    cost: bool,
) -> None:
    """Start (or join, or resume) the job and watch it; interrupting this leaves the job running."""
    if log is not None and anchors is not None:
        fail("give --log or --anchors, not both", USAGE)
    given: dict[str, Any] = {"log": log, "field": field}
    if anchors is not None:
        given = dict(zip(("texts", "anchors"), _read(anchors), strict=True)) | {"count": count, "field": field}
    with explained(), target.connect() as client:
        found = client.collection(collection)
        if cost:
            typer.echo(_price(found.reranker_cost(name, scorer, **given)))
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("scoring", total=1.0)
            found.fit_reranker(name, scorer, progress=lambda done, _: progress.update(task, completed=done), **given)
        typer.echo(_price(found.reranker(name)))


def show(target: Target, collection: str) -> None:
    """One line a reranker."""
    table = Table("name", "state", "scorer", "anchors", "scored", "calls left", "error")
    with explained(), target.connect() as client:
        for each in client.collection(collection).rerankers():
            scored = f"{each['scored']:,} of {each['points']:,}"
            cells = [each["name"], each["state"], each["scorer"], str(each["anchors"]), scored]
            table.add_row(*cells, f"{each['calls_left']:,}", each["error"] or "")
    Console().print(table)


def drop(target: Target, collection: str, name: str) -> None:
    with explained(), target.connect() as client:
        client.collection(collection).drop_reranker(name)
    typer.echo(f"dropped {name}")


def export(target: Target, collection: str, file: Path, reranker: str | None) -> None:
    """Write all pairs, a bounded number of rows at a time."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        fail('Parquet needs pyarrow: pip install "nearfield[arrow]"')
    fields = [("query", pa.string()), ("id", pa.string()), ("text", pa.string()), ("score", pa.float64())]
    schema = pa.schema([*fields, ("scorer", pa.string()), ("version", pa.string())])
    count = 0
    with explained(), target.connect() as client:
        pairs = client.collection(collection).pairs(reranker=reranker)
        with pq.ParquetWriter(file, schema) as writer:
            while rows := list(islice(pairs, _ROWS)):
                whole = [row | {"id": str(row["id"])} for row in rows]
                writer.write_table(pa.Table.from_pylist(whole, schema=schema))
                count += len(whole)
    typer.echo(f"{count:,} pairs in {file}")


def _read(path: Path) -> tuple[list[str], Any]:
    """Texts and vectors of a Parquet file of anchor queries."""
    try:
        import numpy as np
        import pyarrow.parquet as pq

        table = pq.read_table(path, columns=["text", "vector"])
    except ImportError:
        fail('Parquet needs pyarrow: pip install "nearfield[arrow]"')
    except (OSError, ValueError) as error:
        fail(f"cannot read {path}: {error}")
    vectors = np.asarray(table.column("vector").to_pylist(), np.float32)
    return table.column("text").to_pylist(), vectors


def _price(told: dict[str, Any]) -> str:
    seconds = told["seconds_left"]
    time = "" if seconds is None else f", about {seconds:,.0f} s"
    return f"{told['scored']:,} of {told['points']:,} points scored, {told['calls_left']:,} calls left{time}"
