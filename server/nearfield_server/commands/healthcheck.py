"""``nearfield healthcheck``: the probe a container runs; standard library only, so that it starts quickly."""

from __future__ import annotations

import urllib.error
import urllib.request

import typer

TIMEOUT = 3.0


def run(url: str) -> None:
    """Exit with 0 where ``/readyz`` answers 200, with 1 otherwise."""
    if not url.startswith(("http://", "https://")):
        typer.echo("nearfield: --url must start with http:// or https://", err=True)
        raise typer.Exit(2)
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/readyz", timeout=TIMEOUT):
            return
    except (urllib.error.URLError, OSError, ValueError) as error:
        typer.echo(f"not ready: {getattr(error, 'reason', error)}", err=True)
        raise typer.Exit(1) from None
