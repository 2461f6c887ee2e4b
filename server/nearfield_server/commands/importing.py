"""``nearfield import``: a file into a collection, batch by batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import nearfield
from nearfield.errors import NotFound
from nearfield_server.commands.batches import Batch, Columns, Table, TableError
from nearfield_server.commands.outcome import explained, fail
from nearfield_server.commands.tables import open_table
from nearfield_server.commands.target import Target


def run(target: Target, collection: str, file: Path, columns: Columns, *, vectors: Path | None, metric: str) -> None:
    """Write every row of ``file``; the collection is made with the first vector's dimension if it is missing.

    A run that ended early may simply be repeated: points are written under the same ids.
    """
    done = unindexed = 0
    try:
        with explained(), target.connect() as client:
            table = open_table(file, columns, vectors)
            for name in table.skipped:
                typer.echo(f"leaving out {name}: neither an attribute nor the chosen vector", err=True)
            done = _write(client, collection, table, metric)
            if done:
                described = client.collection(collection).describe()
                unindexed = described["points"] - described["indexed_points"]
    except TableError as error:
        fail(str(error))
    typer.echo(f"{done:,} points written to {collection}")
    if unindexed:
        typer.echo(f"{unindexed:,} points have no index yet, queries scan them; run: nearfield optimize {collection}")


def _write(client: nearfield.Client, name: str, table: Table, metric: str) -> int:
    parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done = 0
    collection = None
    with Progress(*parts, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=table.rows)
        for batch in table.batches:
            if collection is None:
                collection = _collection(client, name, batch, metric)
            collection.upsert(**_arguments(batch))
            done += len(batch.ids)
            progress.update(task, completed=done)
        progress.update(task, total=done)
    return done


def _collection(client: nearfield.Client, name: str, first: Batch, metric: str) -> nearfield.Collection:
    collection = client.collection(name)
    try:
        collection.describe()
    except NotFound:
        if first.dim is None:
            raise TableError("no row of the first batch has a vector, so the dimension is unknown") from None
        return client.create(name, dim=first.dim, metric=metric)
    return collection


def _arguments(batch: Batch) -> dict[str, Any]:
    """The batch as arguments of ``upsert``: columns, or rows where some points have no vector."""
    if not isinstance(batch.vectors, list):
        return {
            "ids": batch.ids,
            "vectors": batch.vectors,
            "attributes": batch.attributes,
            "text": batch.text,
        }
    rows = []
    for at, point_id in enumerate(batch.ids):
        attributes = (
            batch.attributes[at]
            if isinstance(batch.attributes, list)
            else {name: values[at] for name, values in batch.attributes.items()}
        )
        text = None if batch.text is None else batch.text[at]
        rows.append({"id": point_id, "vector": batch.vectors[at], "attributes": attributes, "text": text})
    return {"rows": rows}
