"""Filters written as Python expressions: ``(F.color == "red") & (F.price < 50)``.

An expression compiles to the wire's JSON with ``to_wire()``; ``where=`` takes both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from nearfield.errors import InvalidRequest
from nearfield.scalars import plain


class Expression:
    """A filter. Combine with ``&`` (and), ``|`` (or) and ``~`` (not); each side in parentheses."""

    __slots__ = ("_wire",)

    def __init__(self, wire: Mapping[str, Any]) -> None:
        self._wire = dict(wire)

    def to_wire(self) -> dict[str, Any]:
        """Return the filter as the wire's JSON object."""
        return dict(self._wire)

    def __and__(self, other: Expression) -> Expression:
        if not isinstance(other, Expression):
            return NotImplemented
        merged = _merge(self._wire, other._wire)
        return Expression(merged if merged is not None else {"$and": _parts("$and", self, other)})

    def __or__(self, other: Expression) -> Expression:
        if not isinstance(other, Expression):
            return NotImplemented
        return Expression({"$or": _parts("$or", self, other)})

    def __invert__(self) -> Expression:
        return Expression({"$not": self._wire})

    def __bool__(self) -> bool:
        raise TypeError("a filter has no truth value; combine with & | ~ and put each comparison in parentheses")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and self._wire == other._wire

    __hash__ = None  # type: ignore[assignment]  # compares by content that is a dict

    def __repr__(self) -> str:
        return f"Expression({self._wire!r})"


class Field:
    """One attribute; comparing it gives an Expression. Made by ``F.name`` or ``F["dotted.name"]``."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __eq__(self, value: object) -> Expression:  # type: ignore[override]  # builds a filter, as ORMs do
        return Expression({self._name: _scalar(value)})

    def __ne__(self, value: object) -> Expression:  # type: ignore[override]  # builds a filter, as ORMs do
        return self._op("ne", _scalar(value))

    def __lt__(self, value: object) -> Expression:
        return self._op("lt", _bound(value))

    def __le__(self, value: object) -> Expression:
        return self._op("lte", _bound(value))

    def __gt__(self, value: object) -> Expression:
        return self._op("gt", _bound(value))

    def __ge__(self, value: object) -> Expression:
        return self._op("gte", _bound(value))

    __hash__ = None  # type: ignore[assignment]  # == builds a filter, so a Field cannot be a key

    def between(self, low: object, high: object) -> Expression:
        """Match values from ``low`` to ``high``, both included."""
        return Expression({self._name: {"gte": _bound(low), "lte": _bound(high)}})

    def isin(self, values: Iterable[object]) -> Expression:
        """Match a value that is one of ``values``."""
        return self._op("in", _list(values))

    def not_in(self, values: Iterable[object]) -> Expression:
        """Match a value that is present and none of ``values``."""
        return self._op("nin", _list(values))

    def any_of(self, values: Iterable[object]) -> Expression:
        """Match a list attribute that holds at least one of ``values``."""
        return self._op("any", _list(values))

    def all_of(self, values: Iterable[object]) -> Expression:
        """Match a list attribute that holds every one of ``values``."""
        return self._op("all", _list(values))

    def prefix(self, text: str) -> Expression:
        """Match text that begins with ``text``."""
        return self._op("prefix", _scalar(text))

    def exists(self, present: bool = True) -> Expression:
        """Match points that have this attribute (or, with False, that lack it)."""
        return self._op("exists", bool(present))

    def is_null(self) -> Expression:
        """Match points that lack this attribute; null is the same as missing."""
        return Expression({self._name: None})

    def _op(self, operator: str, operand: object) -> Expression:
        return Expression({self._name: {operator: operand}})

    def __bool__(self) -> bool:
        raise TypeError("an attribute alone is no filter; compare it, for instance F.flag == True")

    def __repr__(self) -> str:
        return f"F[{self._name!r}]"


class _Fields:
    """``F``: attribute access or item access gives the Field of that name."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Field:
        if name.startswith("__"):  # copy, pickle and inspection ask for such names
            raise AttributeError(name)
        return Field(name)

    def __getitem__(self, name: str) -> Field:
        if not isinstance(name, str) or not name or name.startswith("$"):
            raise InvalidRequest("an attribute's name is text that does not begin with $", hint="use ids(..) for ids")
        return Field(name)

    def __repr__(self) -> str:
        return "F"


F = _Fields()


def ids(*values: str | int) -> Expression:
    """Match points by id: ``ids("a", "b")``."""
    return Expression({"$id": {"in": [plain(value) for value in values]}})


def compile_where(where: Expression | Mapping[str, Any] | None, field: str = "where") -> dict[str, Any] | None:
    """Return ``where`` as wire JSON, or None. Raises InvalidRequest for anything that is no filter."""
    if where is None:
        return None
    if isinstance(where, Expression):
        return where.to_wire()
    if type(where) is dict or isinstance(where, Mapping):
        return {key: _wire_value(value) for key, value in where.items()}
    raise InvalidRequest(
        f"{field} must be a filter, not {type(where).__name__}",
        field=field,
        hint='write F.color == "red" or {"color": "red"}; join several with & or |',
    )


def _wire_value(value: Any) -> Any:
    kind = type(value)
    if kind is int or kind is str or kind is bool:
        return value
    if isinstance(value, Expression):
        return value.to_wire()
    if kind is dict or isinstance(value, Mapping):
        return {key: _wire_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_wire_value(item) for item in value]
    return _operand(value)


def _operand(value: object) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest("a filter cannot compare with NaN or an infinity", hint="use .is_null() for missing")
    return plain(value)


def _scalar(value: object) -> Any:
    operand = _operand(value)
    if isinstance(operand, (list, dict)):
        raise InvalidRequest("== and != compare with one value", hint="use .isin, .any_of or .all_of for lists")
    return operand


def _bound(value: object) -> Any:
    operand = _scalar(value)
    if operand is None:
        raise InvalidRequest("a range needs a value, not None", hint="use .exists() or .is_null()")
    return operand


def _list(values: Iterable[object]) -> list[Any]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InvalidRequest("a list of values is needed", hint='write .isin(["a", "b"])')
    return [_operand(value) for value in values]


def _merge(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any] | None:
    """Join two filters into one object where no key would be lost; None where "$and" is needed."""
    merged = dict(left)
    for key, value in right.items():
        if key not in merged:
            merged[key] = value
            continue
        held = merged[key]
        if (
            key.startswith("$")
            or not (isinstance(held, dict) and isinstance(value, dict))
            or held.keys() & value.keys()
        ):
            return None
        merged[key] = {**held, **value}
    return merged


def _parts(operator: str, *sides: Expression) -> list[dict[str, Any]]:
    """Flatten ``a | b | c`` to one list."""
    parts: list[dict[str, Any]] = []
    for side in sides:
        wire = side.to_wire()
        parts.extend(wire[operator] if wire.keys() == {operator} else [wire])
    return parts
