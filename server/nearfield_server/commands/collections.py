"""``nearfield collections``: what is there."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from nearfield_server.commands.outcome import explained
from nearfield_server.commands.target import Target


def run(target: Target) -> None:
    """Print a table of all collections."""
    with explained(), target.connect() as client:
        described = [collection.describe() for collection in client.collections()]
    table = Table("name", "vectors", "points", "indexed", "segments", "size", "state")
    for collection in described:
        table.add_row(*_row(collection))
    Console().print(table)


def _row(collection: dict[str, Any]) -> list[str]:
    fields = [f"{name} {field['dim']} {field['metric']}" for name, field in collection["vectors"].items()]
    size = sum(collection["bytes"].values())
    cells = [
        collection["name"],
        "\n".join(fields),
        f"{collection['points']:,}",
        f"{collection['indexed_points']:,}",
        str(len(collection["segments"])),
        decimal(size),
        collection["state"],
    ]
    return [escape(cell) for cell in cells]
