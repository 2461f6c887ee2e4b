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


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Say ``message`` and end the process."""
    typer.echo(f"nearfield: {message}", err=True)
    raise typer.Exit(code)


@contextmanager
def explained() -> Iterator[None]:
    """Turn the errors of the SDK, the engine and the file system into one line; Locked is exit code 3."""
    try:
        yield
    except Error as error:
        fail(str(error), LOCKED if isinstance(error, Locked) else FAILED)
    except NearfieldError as error:
        known = from_engine(error)
        fail(str(known), LOCKED if isinstance(known, Locked) else FAILED)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror.lower()}" if error.filename and error.strerror else str(error))
    except KeyboardInterrupt:
        fail("interrupted", 130)
