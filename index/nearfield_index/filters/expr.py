"""The filter tree: immutable, typed, and in one canonical form, so that equal predicates are equal trees.

Build trees with the functions at the end, never with the classes: the functions keep the form (nested
conjunctions flattened, children sorted and distinct, equalities on one attribute merged, trivial parts gone).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar, dataclass_transform

import orjson

Number = int | float
_Class = TypeVar("_Class")

_KEY_LENGTH = 512
_INT64_MIN = -(2**63)
_INT64_END = 2**63


@dataclass_transform(frozen_default=True)
def _node(cls: type[_Class]) -> type[_Class]:
    """A dataclass whose fields only the type checker guards: one that is frozen takes five times as long to make."""
    return dataclass(unsafe_hash=True)(cls)


def canonical_number(value: Number) -> Number:
    """The number in the class it is indexed under: int when whole and of 64 bits, else float.

    Raises OverflowError for an integer past every float.
    """
    if isinstance(value, int):
        return value if _INT64_MIN <= value < _INT64_END else float(value)
    if value.is_integer() and _INT64_MIN <= value < _INT64_END:
        return int(value)
    return value


@_node
class Values:
    """A set of typed values, each kind sorted and distinct: True, 1 and "1" are three, 1 and 1.0 are one."""

    keywords: tuple[str, ...] = ()
    numbers: tuple[Number, ...] = ()
    bools: tuple[bool, ...] = ()
    instants: tuple[int, ...] = ()
    """Microseconds since 1970 in UTC."""

    @classmethod
    def of(
        cls,
        *,
        keywords: Iterable[str] = (),
        numbers: Iterable[Number] = (),
        bools: Iterable[bool] = (),
        instants: Iterable[int] = (),
    ) -> Values:
        """The set of these values, in canonical form."""
        return cls(
            keywords=tuple(sorted(set(keywords))),
            numbers=tuple(sorted({canonical_number(number) for number in numbers})),
            bools=tuple(sorted(set(bools))),
            instants=tuple(sorted(set(instants))),
        )

    def __len__(self) -> int:
        return len(self.keywords) + len(self.numbers) + len(self.bools) + len(self.instants)

    def each(self) -> list[Values]:
        """Every value as a set of its own."""
        return [
            *(Values(keywords=(value,)) for value in self.keywords),
            *(Values(numbers=(value,)) for value in self.numbers),
            *(Values(bools=(value,)) for value in self.bools),
            *(Values(instants=(value,)) for value in self.instants),
        ]

    def __or__(self, other: Values) -> Values:
        return Values.of(
            keywords=self.keywords + other.keywords,
            numbers=self.numbers + other.numbers,
            bools=self.bools + other.bools,
            instants=self.instants + other.instants,
        )


_NONE: frozenset[Any] = frozenset()


@_node
class Expr:
    """A predicate over points."""

    def names(self) -> frozenset[str]:
        """Names of every attribute the tree looks at."""
        return _NONE

    def point_ids(self) -> frozenset[int | str]:
        """Every id the tree asks for."""
        return _NONE

    @cached_property
    def key(self) -> str:
        """A string equal for equal trees and for no others: the cache key. Long ones are digests."""
        fields: tuple[str, ...] = self.__match_args__
        parts = [type(self).__name__, *(_key_part(getattr(self, name)) for name in fields)]
        text = orjson.dumps(parts).decode()
        if len(text) <= _KEY_LENGTH:
            return text
        return f"{type(self).__name__}:{hashlib.sha256(text.encode()).hexdigest()}"


@_node
class Everything(Expr):
    """Every point."""


@_node
class Nothing(Expr):
    """No point."""


@_node
class OfAttribute(Expr):
    """Points by what they hold in the attribute ``field``."""

    field: str

    def names(self) -> frozenset[str]:
        return frozenset((self.field,))


@_node
class Match(OfAttribute):
    """Points with at least one of ``values`` in the attribute."""

    values: Values


@_node
class All(OfAttribute):
    """Points with every one of ``values`` (two or more) in the attribute."""

    values: Values


@_node
class Range(OfAttribute):
    """Points with one value of the attribute between both bounds; None leaves that side open."""

    kind: Literal["number", "datetime"]
    lower: Number | None
    lower_inclusive: bool
    upper: Number | None
    upper_inclusive: bool


@_node
class Prefix(OfAttribute):
    """Points with a string in the attribute that begins with ``value``."""

    value: str


@_node
class Exists(OfAttribute):
    """Points that have the attribute: not missing, not null, not an empty list."""


@_node
class Ids(Expr):
    """Points with one of these ids; integers first, then strings, each sorted."""

    ids: tuple[int | str, ...]

    def point_ids(self) -> frozenset[int | str]:
        return frozenset(self.ids)


@_node
class Joined(Expr):
    """Of two or more children, sorted by key."""

    children: tuple[Expr, ...]

    def names(self) -> frozenset[str]:
        return _NONE.union(*[child.names() for child in self.children])

    def point_ids(self) -> frozenset[int | str]:
        return _NONE.union(*[child.point_ids() for child in self.children])


@_node
class And(Joined):
    """Points that pass every child."""


@_node
class Or(Joined):
    """Points that pass any child."""


@_node
class Not(Expr):
    """Points that do not pass the child: the plain complement."""

    child: Expr

    def names(self) -> frozenset[str]:
        return self.child.names()

    def point_ids(self) -> frozenset[int | str]:
        return self.child.point_ids()


def key(expr: Expr) -> str:
    """The canonical string of the tree, for caches: equal exactly where the trees are."""
    return expr.key


def match_any(name: str, values: Values) -> Expr:
    """At least one of ``values``; with none there is nothing to match."""
    return Match(name, values) if len(values) else Nothing()


def match_all(name: str, values: Values) -> Expr:
    """Every one of ``values``; without any it is enough to have the attribute."""
    if not len(values):
        return Exists(name)
    return Match(name, values) if len(values) == 1 else All(name, values)


def has_ids(ids: Iterable[int | str]) -> Expr:
    """The points of these ids."""
    distinct = set(ids)
    if not distinct:
        return Nothing()
    integers = sorted(id_ for id_ in distinct if isinstance(id_, int))
    return Ids((*integers, *sorted(id_ for id_ in distinct if isinstance(id_, str))))


def between(
    name: str,
    kind: Literal["number", "datetime"],
    lower: Number | None = None,
    upper: Number | None = None,
    *,
    lower_inclusive: bool = True,
    upper_inclusive: bool = True,
) -> Expr:
    """A range with one or two canonical bounds; an impossible one is Nothing, one pinned to a value is that match."""
    if lower is not None and upper is not None:
        if lower > upper or (lower == upper and not (lower_inclusive and upper_inclusive)):
            return Nothing()
        if lower == upper:
            return Match(name, Values(numbers=(lower,)) if kind == "number" else Values(instants=(int(lower),)))
    return Range(name, kind, lower, lower is not None and lower_inclusive, upper, upper is not None and upper_inclusive)


def negate(expr: Expr) -> Expr:
    """The complement."""
    match expr:
        case Not(child):
            return child
        case Everything():
            return Nothing()
        case Nothing():
            return Everything()
        case _:
            return Not(expr)


def all_of(parts: Iterable[Expr]) -> Expr:
    """The conjunction; Everything when there are no parts."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    gathered = _Gathered()
    for part in parts:
        for child in part.children if isinstance(part, And) else (part,):
            if isinstance(child, Nothing):
                return child
            single = isinstance(child, Match) and len(child.values) == 1
            if isinstance(child, All) or (single and isinstance(child, Match)):
                gathered.merge(child.field, child.values)
            elif isinstance(child, Ids):
                gathered.ids = set(child.ids) if gathered.ids is None else gathered.ids & set(child.ids)
            elif not isinstance(child, Everything):
                gathered.others.add(child)
    children = gathered.others | {match_all(name, values) for name, values in gathered.values.items()}
    if gathered.ids is not None:
        children.add(has_ids(gathered.ids))
    if Nothing() in children or any(isinstance(child, Not) and child.child in children for child in children):
        return Nothing()
    return _joined(And, children, Everything())


def any_of(parts: Iterable[Expr]) -> Expr:
    """The disjunction; Nothing when there are no parts."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    gathered = _Gathered()
    for part in parts:
        for child in part.children if isinstance(part, Or) else (part,):
            if isinstance(child, Everything):
                return child
            if isinstance(child, Match):
                gathered.merge(child.field, child.values)
            elif isinstance(child, Ids):
                gathered.ids = set(child.ids) | (gathered.ids or set())
            elif not isinstance(child, Nothing):
                gathered.others.add(child)
    children = gathered.others | {match_any(name, values) for name, values in gathered.values.items()}
    if gathered.ids is not None:
        children.add(has_ids(gathered.ids))
    if any(isinstance(child, Not) and child.child in children for child in children):
        return Everything()
    return _joined(Or, children, Nothing())


@dataclass
class _Gathered:
    """Children on their way into one node, with what can be merged merged."""

    values: dict[str, Values] = dataclasses.field(default_factory=dict)
    ids: set[int | str] | None = None
    others: set[Expr] = dataclasses.field(default_factory=set)

    def merge(self, name: str, values: Values) -> None:
        have = self.values.get(name)
        self.values[name] = values if have is None else have | values


def _joined(node: type[And] | type[Or], children: set[Expr], empty: Expr) -> Expr:
    if len(children) < 2:
        return next(iter(children), empty)
    return node(tuple(sorted(children, key=key)))


def _key_part(part: object) -> object:
    if isinstance(part, Expr):
        return part.key
    if isinstance(part, Values):
        return [part.keywords, part.numbers, part.bools, part.instants]
    if isinstance(part, tuple):
        return [_key_part(item) for item in part]
    return part
