"""``nearfield import``: a file into a collection, batch by batch."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import nearfield
from nearfield.errors import Error, InvalidRequest, NotFound, TooLarge
from nearfield_server.commands.batches import Batch, Columns, Table, TableError
from nearfield_server.commands.outcome import counted, explained, fail
from nearfield_server.commands.tables import open_table
from nearfield_server.commands.target import Target


def run(target: Target, collection: str, file: Path, columns: Columns, *, vectors: Path | None, metric: str) -> None:
    """Write every row of ``file``; the collection is made with the first vector's dimension if it is missing.

    A run that ended early may simply be repeated: points are written under the same ids.
    """
    unindexed = 0
    try:
        with explained(), target.connect() as client:
            table = open_table(file, columns, vectors)
            for name in table.skipped:
                typer.echo(f"leaving out {name}: neither an attribute nor the chosen vector", err=True)
            writing = _Import(client, collection, metric, table, file.name)
            try:
                writing.run()
            except BaseException as error:
                writing.give_up(refused=isinstance(error, TableError))
                raise
            if writing.rows:
                described = client.collection(collection).describe()
                unindexed = described["points"] - described["indexed_points"]
    except TableError as error:
        fail(str(error))
    if not writing.rows:
        typer.echo(f"{file.name} holds no rows; nothing was written")
        return
    again = writing.rows - writing.points
    told = f" ({writing.rows:,} rows; of rows with the same id the last one counts)" if again else ""
    typer.echo(f"{counted(writing.points, 'point')} written to {collection}{told}")
    if unindexed:
        have = "has" if unindexed == 1 else "have"
        no_index = (
            f"{counted(unindexed, 'point')} {have} no index yet, queries scan {'it' if unindexed == 1 else 'them'}"
        )
        typer.echo(f"{no_index}; run: nearfield optimize {collection}")


class _Import:
    """One file on its way into a collection."""

    def __init__(self, client: nearfield.Client, name: str, metric: str, table: Table, file: str) -> None:
        self._client = client
        self._name = name
        self._metric = metric
        self._table = table
        self._file = file
        self._collection: nearfield.Collection | None = None
        self._made = False
        self._ids: list[NDArray[np.int64]] = []
        self.rows = 0

    @property
    def points(self) -> int:
        """How many distinct ids were written."""
        return len(np.unique(np.concatenate(self._ids))) if self._ids else 0

    def run(self) -> None:
        parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*parts, console=Console(stderr=True)) as progress:
            task = progress.add_task(self._name, total=self._table.rows)
            for batch in self._table.batches:
                if self._collection is None:
                    self._collection = self._open(batch)
                self._put(self._collection, batch)
                progress.update(task, completed=self.rows)
            progress.update(task, total=self.rows)

    def give_up(self, *, refused: bool) -> None:
        """Say what is written; a collection that was made for nothing goes. ``refused``: a row of the file was, and
        will be again."""
        if self.rows:
            written = f"{counted(self.points, 'point')} {'is' if self.points == 1 else 'are'} written to {self._name}"
            again = "mend the file and import it again" if refused else "running the import again continues"
            typer.echo(f"{written}; {again}", err=True)
        elif self._made and self._collection is not None:
            with suppress(Error):
                if not self._collection.describe()["points"]:
                    self._client.drop(self._name)

    def _put(self, collection: nearfield.Collection, batch: Batch) -> None:
        """Write a batch; where it is refused, all before the row at fault, which the error then names."""
        try:
            collection.upsert(**_arguments(batch))
        except (InvalidRequest, TooLarge) as error:
            rows = len(batch.ids)
            if rows == 1:
                raise TableError(f"{self._file}, {batch.place()}: {_about_one(error)}") from error
            self._put(collection, batch.part(0, rows // 2))
            self._put(collection, batch.part(rows // 2, rows))
            return
        self.rows += len(batch.ids)
        self._ids.append(np.array([hash(each) for each in batch.ids], np.int64))

    def _open(self, first: Batch) -> nearfield.Collection:
        collection = self._client.collection(self._name)
        try:
            collection.describe()
        except NotFound:
            if first.dim is None:
                rows = first.attributes if isinstance(first.attributes, list) else [first.attributes]
                names = list(dict.fromkeys(name for row in rows for name in row))[:20]
                there = f"; there are {', '.join(names)}" if names else ""
                raise TableError(
                    f"no row of the first batch has a vector, so the dimension is unknown{there}; "
                    "name the column with --vector"
                ) from None
            self._made = True
            return self._client.create(
                self._name, dim=first.dim, metric=self._metric, attributes=self._table.declared or None
            )
        return collection


def _about_one(error: Error) -> str:
    """The refusal of a request of one point, without the place of the point in it."""
    field = error.field
    for place in ("points[0].", " (row 0)", "[0]"):
        field = None if field is None else field.replace(place, "")
    detail = error.detail.replace("vector 0 ", "the vector ")
    return f"{detail}" + (f" (at {field})" if field else "") + (f"; {error.hint}" if error.hint else "")


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
