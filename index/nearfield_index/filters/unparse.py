"""A filter tree back in the language of the wire, and its template: the same without its constants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nearfield_index.filters.expr import (
    All,
    And,
    Everything,
    Exists,
    Expr,
    Ids,
    Match,
    Not,
    Nothing,
    Or,
    Prefix,
    Range,
    Values,
)
from nearfield_index.timestamps import to_text


def to_wire(expr: Expr) -> dict[str, Any]:
    """A filter object that parses to this tree, under the declared types that it was parsed under."""
    match expr:
        case Everything():
            return {}
        case Nothing():
            return {"$or": []}
        case Ids(ids):
            return {"$id": {"in": list(ids)}}
        case And(children):
            return {"$and": [to_wire(child) for child in children]}
        case Or(children):
            return {"$or": [to_wire(child) for child in children]}
        case Not(child):
            return {"$not": to_wire(child)}
        case _:
            return _condition(expr)


def _condition(expr: Expr) -> dict[str, Any]:
    match expr:
        case Match(name, values):
            return {name: {"in": _plain(values)}}
        case All(name, values):
            return {name: {"all": _plain(values)}}
        case Prefix(name, value):
            return {name: {"prefix": value}}
        case Exists(name):
            return {name: {"exists": True}}
        case Range(name):
            return {name: _bounds(expr)}
        case _:
            raise AssertionError(expr)


def template(expr: Expr) -> str:
    """Structure and attribute names, no values: ``and(in section, range size)``."""
    match expr:
        case And(children) | Or(children):
            parts = sorted(template(child) for child in children)
            return f"{type(expr).__name__.lower()}({', '.join(parts)})"
        case Not(child):
            return f"not({template(child)})"
        case Match(name, values):
            return f"{'eq' if len(values) == 1 else 'in'} {name}"
        case All(name) | Prefix(name) | Exists(name) | Range(name):
            return f"{type(expr).__name__.lower()} {name}"
        case _:
            return type(expr).__name__.lower()


def conditions(expr: Expr) -> Iterator[Expr]:
    """The conditions on single attributes that the tree is made of."""
    match expr:
        case And(children) | Or(children):
            for child in children:
                yield from conditions(child)
        case Not(child):
            yield from conditions(child)
        case Match() | All() | Range() | Prefix() | Exists():
            yield expr


def _plain(values: Values) -> list[Any]:
    return [*values.keywords, *values.numbers, *values.bools, *(to_text(instant) for instant in values.instants)]


def _bounds(expr: Range) -> dict[str, Any]:
    ends = (
        ("gte" if expr.lower_inclusive else "gt", expr.lower),
        ("lte" if expr.upper_inclusive else "lt", expr.upper),
    )
    dated = expr.kind == "datetime"
    return {name: to_text(int(end)) if dated else end for name, end in ends if end is not None}
