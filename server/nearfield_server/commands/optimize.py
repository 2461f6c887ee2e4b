"""``nearfield optimize``: run the job and watch it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from nearfield_server.commands.outcome import explained, fail
from nearfield_server.commands.target import Target


def run(target: Target, collection: str, workload: Path | None) -> None:
    """Start (or join) the job, show its progress until it ends; exit code 1 where it fails.

    ``workload`` is a file of filters, one a line, to lay rows out for.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with (
        explained(),
        target.connect() as client,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("optimize", total=1.0)
        job = client.collection(collection).optimize(
            workload=None if workload is None else {"filters": _filters(workload)},
            progress=lambda done, _: progress.update(task, completed=done),
        )
        progress.update(task, completed=1.0, description="done")
    for told in _outcome(job.result or {}):
        typer.echo(told)


def _filters(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as lines:
        try:
            return [json.loads(line) for line in lines if line.strip()]
        except ValueError as error:
            fail(f"{path} is not JSON lines of filters: {error}")


def _outcome(result: Mapping[str, Any]) -> list[str]:
    """What became of the layout, a line for each segment."""
    made = [
        f"segment {each['segment']}: rows laid out in {each['leaves']} leaves, {_gain(each['expected_gain'])}"
        for each in result.get("layouts", ())
    ]
    left = [
        f"segment {each['segment']}: left as it is, {_gain(each['expected_gain'])}"
        for each in result.get("layouts_not_worth_it", ())
    ]
    ignored = [f"workload ignored: {result['workload_ignored']}"] if "workload_ignored" in result else []
    return made + left + ignored


def _gain(expected: Mapping[str, Any] | None) -> str:
    if expected is None:
        return "a layout has nothing to gain"
    before, after = expected["before"], expected["after"]
    if before["us"] is None:
        return f"expected share of rows in long runs {before['long']:.0%} -> {after['long']:.0%}"
    return f"expected {before['us']:.0f} -> {after['us']:.0f} us a query"
