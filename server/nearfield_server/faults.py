"""What is wrong with the settings, in words: the setting, and what it may be. Values are never repeated, they may be
keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

# Set for a service of this name by container platforms, not by people.
_PLATFORM = re.compile(r"(SERVICE|PORT)_")


def faults(settings: type[BaseModel], error: ValidationError) -> list[str]:
    """One line per fault."""
    return [_fault(settings, fault["loc"], fault["type"], fault["msg"]) for fault in error.errors()]


def unheeded(settings: type[BaseModel], environment: Iterable[str], *, prefix: str, others: set[str]) -> list[str]:
    """A line for each variable that looks like a setting and is none; ``others`` are read elsewhere."""
    lines = []
    for variable in sorted(environment):
        name = variable.removeprefix(prefix)
        setting = name.partition("__")[0].lower()
        if name == variable or variable in others or setting in settings.model_fields or _PLATFORM.match(name):
            continue
        close = get_close_matches(setting, settings.model_fields, 1)
        hint = f"; did you mean {prefix}{close[0].upper()}?" if close else ""
        lines.append(f"{variable} is no setting and is ignored{hint}")
    return lines


def _fault(settings: type[BaseModel], place: Sequence[str | int], kind: str, message: str) -> str:
    where = ".".join(map(str, place))
    if kind != "extra_forbidden":
        return f"{where}: {message.removeprefix('Value error, ')}"
    known = _fields(settings, place[:-1])
    close = get_close_matches(str(place[-1]), known, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{where}: no such setting; {hint}known are {', '.join(known)}"


def _fields(settings: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """The settings that stand at a place: those of a part, or of each value of a mapping by name."""
    found: Any = settings
    for part in place:
        if get_origin(found) is dict:
            found = get_args(found)[1]
        else:
            fields: Mapping[str, Any] = found.model_fields
            found = fields[str(part)].annotation
    return list(found.model_fields)
