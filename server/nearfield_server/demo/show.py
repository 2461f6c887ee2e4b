"""How the demo prints: one small table a question, its plan, and the curl line that asks the same."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nearfield_server.demo.questions import Question

INLINE_BYTES = 200
"""A request body longer than this (one with a vector) goes to a file that the curl line names."""


def title(console: Console, question: Question) -> None:
    """The question's number and what it shows."""
    console.print(f"\n[bold cyan]{question.name[0]}[/]  [bold]{escape(question.title)}[/]", highlight=False)


def answer(console: Console, question: Question, reply: Mapping[str, Any]) -> None:
    """The hits of every list of ``reply`` and one line on how they were found."""
    for asked, hits in zip(question.asks, reply["results"], strict=True):
        console.print(f"   [yellow]{escape(asked)}[/]", highlight=False)
        console.print(_table(hits, console.width))
    console.print(f"   [dim]{escape(how(reply['meta']))}[/]", highlight=False)


def _table(hits: Sequence[Mapping[str, Any]], width: int) -> Table:
    """Columns of fixed width, so that the tables of a batch stand under each other."""
    widths = (8, 24, 11, 10)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(width=widths[0], justify="right")
    table.add_column(width=widths[1], style="green", no_wrap=True)
    table.add_column(width=widths[2], no_wrap=True)
    table.add_column(width=widths[3], justify="right", no_wrap=True)
    left_over = width - sum(widths) - 2 * len(widths)
    table.add_column(width=max(left_over, 10), no_wrap=True, overflow="ellipsis")
    for hit in hits:
        stored = hit["attributes"]
        size = f"{stored['installed_size']:,} KB"
        cells = (f"{hit['score']:.3f}", hit["id"], stored["section"], size, hit["text"])
        table.add_row(*(escape(cell) for cell in cells))
    return table


def how(meta: Mapping[str, Any]) -> str:
    """The plans of a reply, its recall estimate and its time, in one line."""
    shares: dict[str, list[str]] = {}
    for plan in meta.get("plans") or []:
        shares.setdefault(plan["plan"], []).append(f"{plan['selectivity']:.0%}")
    plans = [f"{name} ({', '.join(passing)} of the rows pass)" for name, passing in shares.items()]
    parts = [f"plan {' + '.join(plans)}"] if plans else []
    recall = meta.get("recall") or {}
    if recall.get("estimate") is not None:
        parts.append(f"recall estimate {recall['estimate']:.3f}, target {recall['target']:.2f}")
    parts.append(f"{meta['ms']:.1f} ms in the engine")
    return " · ".join(parts)


def curl(console: Console, url: str, body: Mapping[str, Any], folder: Path, name: str) -> None:
    """The line that sends ``body``; printed unwrapped so that it can be pasted as it stands."""
    written = orjson.dumps(body)
    if len(written) > INLINE_BYTES:
        path = folder / f"{name}.json"
        path.write_bytes(written)
        data = shlex.quote(f"@{path}")
    else:
        data = shlex.quote(written.decode())
    line = f"curl -s {shlex.quote(url)} -H 'content-type: application/json' -d {data}"
    console.print(f"   {line}", style="blue", markup=False, highlight=False, soft_wrap=True)
