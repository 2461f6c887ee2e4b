"""Operands of filter conditions: from JSON values to typed ones, or an InvalidRequest that says why not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nearfield_index.errors import InvalidRequest
from nearfield_index.filters.expr import Number, Values, canonical_number
from nearfield_index.timestamps import to_micros

_ID_END = 2**63
_INT64_MIN = -(2**63)
_PATH_NAME_LENGTH = 64


Path = str | tuple[Any, object]
"""Where a part of a filter stands: text, or a path with one more name, which becomes text only in an error."""


def refuse(
    message: str, path: Path, *, code: str = "filter_operand", hint: str, value: object = None
) -> InvalidRequest:
    """The error to raise for the part of the filter at ``path``; of ``value`` only the type is kept."""
    return InvalidRequest(message, code=code, field=told(path), value=type(value).__name__, hint=hint)


def told(path: Path) -> str:
    """The path as text; a long or unencodable name is cut to what an error may carry."""
    if isinstance(path, str):
        return path
    above, name = path
    text = name if isinstance(name, str) else type(name).__name__
    text = text.encode("utf-8", "replace").decode()
    return f"{told(above)}.{text if len(text) <= _PATH_NAME_LENGTH else text[:_PATH_NAME_LENGTH] + '..'}"


def places(path: Path, items: Sequence[object]) -> Iterator[tuple[str, object]]:
    """Each of a list with its own path."""
    text = told(path)
    return ((f"{text}[{number}]", item) for number, item in enumerate(items))


def is_text(value: object) -> bool:
    """Whether it is a string that UTF-8 can hold."""
    if not isinstance(value, str):
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def text(value: object, path: Path) -> str:
    """A string; raises InvalidRequest."""
    if not isinstance(value, str) or not is_text(value):
        raise refuse("the operand must be a string", path, hint="give valid Unicode text", value=value)
    return str(value)


def flag(value: object, path: Path) -> bool:
    """True or false; raises InvalidRequest."""
    if not isinstance(value, bool):
        raise refuse("the operand must be true or false", path, hint="give true or false", value=value)
    return value


def number(value: object, path: Path) -> Number:
    """A finite number in canonical form; raises InvalidRequest."""
    if type(value) is int and _INT64_MIN <= value < _ID_END:
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse("the operand must be a number", path, hint="give a number", value=value)
    try:
        plain = canonical_number(int(value) if isinstance(value, int) else float(value))
    except OverflowError:
        plain = math.inf
    if not math.isfinite(plain):
        raise refuse("the operand must be a finite number", path, hint="give a finite number", value=value)
    return plain


def scalar(value: object, path: Path) -> Values:
    """One string, number or bool as a set of one; raises InvalidRequest."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return Values(bools=(value,))
    if isinstance(value, str):
        return Values(keywords=(text(value, path),))
    if isinstance(value, int | float):
        return Values(numbers=(number(value, path),))
    hint = "give a string, a number, true or false"
    if isinstance(value, Sequence):
        hint = "use in (any of a list) or all (every one of a list)"
    raise refuse("the operand must be a single value", path, hint=hint, value=value)


def listed(value: object, path: Path, limit: int) -> Values:
    """A list of at most ``limit`` strings, numbers and bools as a set; raises InvalidRequest."""
    items: Sequence[Any] = sequence(value, path, limit)
    kinds = set(map(type, items))
    # the two common shapes of long lists, checked as a whole
    if kinds == {str} and is_text("".join(items)):
        return Values.of(keywords=items)
    if kinds == {int} and min(items) >= _INT64_MIN and max(items) < _ID_END:
        return Values(numbers=tuple(sorted(set(items))))
    keywords: list[str] = []
    numbers: list[Number] = []
    bools: list[bool] = []
    for place, item in places(path, items):
        one = scalar(item, place)
        keywords += one.keywords
        numbers += one.numbers
        bools += one.bools
    return Values.of(keywords=keywords, numbers=numbers, bools=bools)


def sequence(value: object, path: Path, limit: int) -> list[object] | tuple[object, ...]:
    """A list of at most ``limit`` items; raises InvalidRequest."""
    if not isinstance(value, list | tuple):
        raise refuse("the operand must be a list", path, hint="give a list, or use eq for one value", value=value)
    if len(value) > limit:
        raise refuse(
            f"a list of {len(value)} values is over the limit of {limit}",
            path,
            code="filter_too_large",
            hint="split the request",
        )
    return value


def point_id(value: object, path: Path) -> int | str:
    """A point's id, its type kept; raises InvalidRequest."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _ID_END:
        return int(value)
    if isinstance(value, str) and is_text(value) and 1 <= len(value.encode()) <= 256 and "\0" not in value:
        return str(value)
    hint = "an id is a string of 1..256 bytes or an integer 0..2^63-1"
    if isinstance(value, list | tuple):
        hint = 'use {"$id": {"in": [..]}} for several ids'
    raise refuse("the operand must be an id", path, hint=hint, value=value)


def conform(values: Values, declared: str | None, path: Path) -> Values:
    """The values as those of an attribute of type ``declared`` (None: inferred, anything goes).

    Strings become instants for a datetime. Raises InvalidRequest where a value is not of the type.
    """
    if declared is None:
        return values
    if declared == "datetime":
        if len(values.keywords) != len(values):
            raise _mistyped(declared, path)
        return Values.of(instants=(instant(word, path) for word in values.keywords))
    own: Mapping[str, Sequence[object]] = {
        "keyword": values.keywords,
        "integer": values.numbers,
        "float": values.numbers,
        "bool": values.bools,
    }
    if len(own.get(declared, ())) != len(values):
        raise _mistyped(declared, path)
    return values


def instant(value: object, path: Path) -> int:
    """ISO-8601 text as microseconds since 1970; raises InvalidRequest."""
    try:
        if isinstance(value, str):
            return to_micros(value)
    except ValueError:
        pass
    raise _mistyped("datetime", path)


def _is_instant(value: str) -> bool:
    try:
        to_micros(value)
    except ValueError:
        return False
    return True


def bound(value: object, declared: str | None, path: Path) -> Number:
    """One end of a range: a number, or an instant of a datetime; raises InvalidRequest."""
    if isinstance(value, str):
        text(value, path)
        if declared == "datetime":
            return instant(value, path)
        hint = "give a number"
        if declared is None and _is_instant(value):
            hint = "declare the attribute as datetime to range over ISO-8601 times"
        raise refuse("a range over this attribute needs numbers", path, hint=hint, value=value)
    plain = number(value, path)
    if declared == "datetime":
        raise _mistyped(declared, path)
    if declared in ("keyword", "bool"):
        raise refuse(f"a {declared} attribute has no ranges", path, hint="use eq, in or prefix", code="filter_operator")
    return plain


_EXPECTED = {
    "keyword": "strings",
    "integer": "numbers",
    "float": "numbers",
    "bool": "true or false",
    "datetime": 'ISO-8601 strings such as "2024-05-31T12:00:00Z"',
}


def _mistyped(declared: str, path: Path) -> InvalidRequest:
    expected = _EXPECTED.get(declared, declared)
    return refuse(f"the attribute is declared as {declared}", path, hint=f"compare it with {expected}")
