"""How a command ends: one line on standard error and an exit code, no traceback for what was foreseen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from nearfield.errors import Error, Locked, from_engine
from nearfield_index.errors import NearfieldError

FAILED = 1
USAGE = 2
LOCKED = 3

_HINTS = {
    "unauthenticated": "give it as --api-key KEY or in NEARFIELD_API_KEY",
    "no_hubness_fit": "fit one: nearfield hubness fit",
}


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Say ``message`` and end the process."""
    typer.echo(f"nearfield: {message}", err=True)
    raise typer.Exit(code)


def counted(count: int, thing: str) -> str:
    """``1 point``, ``2 points``."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _said(error: Error) -> str:
    """The error with what to do at the command line, where its own hint is meant for programs."""
    hint = _HINTS.get(error.code, error.hint)
    place = f" (at {error.field})" if error.field else ""
    return f"{error.detail.removesuffix('.')}{place}" + (f"; {hint}" if hint else "")


@contextmanager
def explained() -> Iterator[None]:
    """Turn the errors of the SDK, the engine and the file system into one line; Locked is exit code 3."""
    try:
        yield
    except Error as error:
        fail(_said(error), LOCKED if isinstance(error, Locked) else FAILED)
    except NearfieldError as error:
        known = from_engine(error)
        fail(_said(known), LOCKED if isinstance(known, Locked) else FAILED)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror.lower()}" if error.filename and error.strerror else str(error))
    except KeyboardInterrupt:
        fail("interrupted", 130)
