"""``nearfield optimize``: run the job and watch it."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from nearfield_server.commands.outcome import explained
from nearfield_server.commands.target import Target


def run(target: Target, collection: str) -> None:
    """Start (or join) the job, show its progress until it ends; exit code 1 where it fails."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with (
        explained(),
        target.connect() as client,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("optimize", total=1.0)
        client.collection(collection).optimize(progress=lambda done, _: progress.update(task, completed=done))
        progress.update(task, completed=1.0, description="done")
