"""What of a request is valid and yet cannot be meant: names that no point has, values of a type that none has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from nearfield_index.filters.expr import All, Expr, Joined, Match, Not, OfAttribute, Prefix, Range, Values

Types = Mapping[str, Collection[str]]
"""By attribute the classes of values that points hold, in the words of the wire."""

_HELD = {
    "keyword": "strings",
    "integer": "integers",
    "float": "numbers",
    "bool": "true or false",
    "datetime": "datetimes",
}


def doubts(exprs: Iterable[Expr | None], types: Types, selected: Iterable[str] = ()) -> list[str]:
    """One line for each, sorted; ``selected`` are attributes to return."""
    found: set[str] = set()
    for expr in {id(each): each for each in exprs if each is not None}.values():
        for leaf in _leaves(expr):
            held = types.get(leaf.field)
            if held is None:
                found.add(_unknown(leaf.field))
            elif not all(any(kind in held for kind in kinds) for kinds in _wanted(leaf)):
                found.add(f"attribute {leaf.field!r} holds {_told(held)}: the filter asks for a value of another type")
    found.update(_unknown(name) for name in selected if name not in types and not _has_parts(name, types))
    return sorted(found)


def _unknown(name: str) -> str:
    return f"no point has an attribute {name!r}"


def _leaves(expr: Expr) -> Iterator[OfAttribute]:
    if isinstance(expr, OfAttribute):
        yield expr
    elif isinstance(expr, Not):
        yield from _leaves(expr.child)
    elif isinstance(expr, Joined):
        for child in expr.children:
            yield from _leaves(child)


def _wanted(leaf: OfAttribute) -> list[tuple[str, ...]]:
    """Classes of values of which the attribute must hold any; each of several."""
    match leaf:
        case Match():
            return [tuple(kind for kinds in _classes(leaf.values) for kind in kinds)]
        case All():
            return _classes(leaf.values)
        case Range():
            return [("integer", "float") if leaf.kind == "number" else ("datetime",)]
        case Prefix():
            return [("keyword",)]
    return []


def _classes(values: Values) -> list[tuple[str, ...]]:
    classes: list[tuple[bool, tuple[str, ...]]] = [
        (bool(values.keywords), ("keyword",)),
        (bool(values.numbers), ("integer", "float")),
        (bool(values.bools), ("bool",)),
        (bool(values.instants), ("datetime",)),
    ]
    return [kinds for some, kinds in classes if some]


def _told(held: Collection[str]) -> str:
    names = [_HELD[kind] for kind in sorted(held) if not (kind == "integer" and "float" in held)]
    return f"{' and '.join(names)} only" if names else "nothing that a filter can look at"


def _has_parts(name: str, types: Types) -> bool:
    """Whether it is a nested object, whose parts are attributes by their dotted names."""
    return any(each.startswith(f"{name}.") for each in types)
