"""``nearfield query``: one search, as a table or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nearfield import Hits
from nearfield_server.commands.outcome import USAGE, explained, fail
from nearfield_server.commands.target import Target

FEW_COLUMNS = 4
WIDEST_CELL = 60


@dataclass(frozen=True)
class Question:
    """The options of one search, as typed."""

    vector: str | None
    point: str | None
    k: int
    where: str | None
    exact: bool
    recall: float | None
    rerank: str | None = None
    field: str | None = None


def run(target: Target, collection: str, question: Question, *, as_json: bool) -> None:
    """Search and print."""
    if (question.vector is None) == (question.point is None):
        fail("give either --vector or --id", USAGE)
    arguments: dict[str, Any] = {
        "k": question.k,
        "where": None if question.where is None else _json(question.where, "--filter", dict),
        "exact": question.exact,
        "recall": question.recall,
        "rerank": None if question.rerank is None else _json(question.rerank, "--rerank", dict),
        "field": question.field,
        "explain": True,
    }
    with explained(), target.connect() as client:
        found = client.collection(collection)
        if question.vector is not None:
            hits = found.query(_vector(question.vector), **arguments)
        else:
            hits = found.query(ids=_point_id(question.point or ""), **arguments)
    if as_json:
        _print_json(hits)
    else:
        _print_table(hits)


def _vector(given: str) -> np.ndarray[Any, Any]:
    """The vector (d,) float32 of a JSON list or of ``@file.npy``."""
    if given.startswith("@"):
        path = Path(given[1:])
        try:
            loaded = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            fail(f"cannot read {path}: {error}")
        return np.asarray(loaded, np.float32).reshape(-1)
    return np.asarray(_json(given, "--vector", list), np.float32)


def _point_id(given: str) -> int | str:
    """``12`` is the integer, ``"12"`` in JSON quotes the string, anything else itself."""
    if given.isascii() and given.isdigit():
        return int(given)
    if given.startswith('"'):
        text: str = _json(given, "--id", str)
        return text
    return given


def _json(text: str, option: str, kind: type) -> Any:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        fail(f"{option} is not JSON: {error}", USAGE)
    if not isinstance(value, kind):
        fail(f"{option} must be a JSON {kind.__name__}", USAGE)
    return value


def _print_json(hits: Hits) -> None:
    listed = [{"id": hit.id, "score": hit.score, "attributes": hit.attributes} for hit in hits]
    typer.echo(
        orjson.dumps({"hits": listed, "meta": hits.meta}, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)
    )


def _print_table(hits: Hits) -> None:
    """A column per attribute where few, else one line of ``name=value`` pairs cut to the terminal's width."""
    names = sorted({name for hit in hits for name in hit.attributes})
    few = len(names) <= FEW_COLUMNS
    console = Console()
    table = Table("#", "score", "id", *(map(escape, names) if few else ["attributes"]))
    used = 24 + max((len(str(hit.id)) for hit in hits), default=2)
    for rank, hit in enumerate(hits, start=1):
        if few:
            cells = [_cell(hit.attributes.get(name)) for name in names]
        else:
            pairs = " ".join(f"{n}={_text(v)}" for n, v in hit.attributes.items() if v is not None)
            cells = [escape(_cut(pairs, max(20, console.width - used)))]
        table.add_row(str(rank), f"{hit.score:.4f}", escape(str(hit.id)), *cells)
    console.print(table)
    console.print(f"[dim]{escape(_account(hits.meta))}[/dim]")


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _cell(value: Any) -> str:
    return escape(_cut(_text(value), WIDEST_CELL))


def _account(meta: dict[str, Any]) -> str:
    """Time, plans and warnings of a reply in one line."""
    plans: Sequence[dict[str, Any]] = meta.get("plans") or ()
    kinds = sorted({str(plan.get("plan")) for plan in plans})
    parts = [
        f"{meta.get('ms', 0):.1f} ms",
        *([f"plan {', '.join(kinds)}"] if kinds else []),
        *_scored(meta.get("rerank")),
        *meta.get("warnings", ()),
    ]
    return " · ".join(parts)


def _scored(rerank: dict[str, Any] | None) -> list[str]:
    """What the scorer was asked, where there was one."""
    if rerank is None:
        return []
    told = f"{rerank['method']}: {rerank['calls']} calls, {rerank['cached']} cached, {rerank['rounds']} rounds"
    return [told, *(["partial"] if rerank["partial"] else [])]
