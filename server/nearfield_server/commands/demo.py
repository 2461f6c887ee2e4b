"""``nearfield demo``: the packaged data through the real service, five questions, answers checked."""

from __future__ import annotations

import signal
import tempfile
import threading
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from nearfield_server.demo.service import ServiceFailed, running
from nearfield_server.demo.tour import tour


def run(data: Path | None = None, port: int | None = None, check: bool = False) -> None:
    """Serve, load, ask and judge; exit code 1 when an answer was wrong or the service failed.

    Without ``data`` everything lives in a temporary directory that is removed at the end; without ``port``
    (None or 0) the usual port is taken, or a free one. With ``check`` the service stops after the last
    question, otherwise it goes on serving until Ctrl-C.
    """
    console = Console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the service is stopped as well
    try:
        wrong = _demo(console, data, port, check)
    except ServiceFailed as failure:
        wrong = [str(failure)]
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    for fault in wrong:
        console.print(f"[bold red]wrong:[/] {escape(fault)}", highlight=False)
    if wrong:
        raise typer.Exit(1)
    if check:
        console.print("[bold green]every answer was right[/]")


def _demo(console: Console, data: Path | None, port: int | None, check: bool) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="nearfield-demo-") as scratch:
        folder = Path(scratch)
        with running(data or folder / "data", port=port, log=folder / "service.log") as url:
            wrong = tour(console, url, folder)
            if not check:
                _serve_on(console, url)
    return wrong


def _serve_on(console: Console, url: str) -> None:
    """Keep the service up until Ctrl-C."""
    console.print(f"\nserving until Ctrl-C; try the API at [bold]{url}/docs[/]", highlight=False)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("stopping")
