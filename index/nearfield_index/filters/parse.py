"""The filter language of the wire: JSON in, canonical tree out; mistakes are InvalidRequest with a path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from nearfield_index.errors import InvalidRequest
from nearfield_index.filters import operands
from nearfield_index.filters.expr import (
    Exists,
    Expr,
    Number,
    Prefix,
    all_of,
    any_of,
    between,
    has_ids,
    match_all,
    match_any,
    negate,
)
from nearfield_index.filters.operands import Path, refuse
from nearfield_index.limits import Limits

OPERATORS = (
    "eq", "ne", "in", "nin", "lt", "lte", "gt", "gte", "exists", "any", "all", "prefix", "null",
)  # fmt: skip
ID_OPERATORS = ("eq", "ne", "in", "nin")
BOUNDS = ("gt", "gte", "lt", "lte")
GROUPS = ("$and", "$or", "$not", "$id")
_GROUPS_ELSEWHERE = {
    "must": "$and", "should": "$or", "must_not": "$not", "filter": "$and",
    "and": "$and", "or": "$or", "not": "$not", "AND": "$and", "OR": "$or", "NOT": "$not",
}  # fmt: skip
"""What groups are called in other filter languages."""

# Far below Python's own recursion limit, whatever the setting says.
_DEEPEST = 100


def parse_filter(
    body: object,
    *,
    declared: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    where: str = "filter",
) -> Expr:
    """The tree of a filter object; ``declared`` maps attribute names to their declared types.

    ``where`` is what error paths start with. Raises InvalidRequest with code ``filter_type`` (not an object),
    ``filter_operator``, ``filter_operand``, ``filter_too_deep`` or ``filter_too_large``.
    """
    return _Parser(declared or {}, limits or Limits()).group(body, where, 1)


def _is_group(operand: object) -> bool:
    """Whether it looks like filters, and can be no condition on an attribute."""
    if isinstance(operand, Mapping):
        return any(key not in OPERATORS for key in operand)
    return isinstance(operand, list | tuple)


class _Parser:
    """One parse: what is declared, the limits, and how much of them is used up."""

    def __init__(self, declared: Mapping[str, str], limits: Limits) -> None:
        self.declared = declared
        self.limits = limits
        self.groups_seen = 0
        self.conditions_seen = 0

    def group(self, body: object, path: Path, depth: int) -> Expr:
        """A filter object: all of its keys must hold."""
        if type(body) is not dict and not isinstance(body, Mapping):
            raise refuse(
                "a filter must be an object",
                path,
                code="filter_type",
                hint='such as {"color": "red"}; {} matches every point',
                value=body,
            )
        if depth > self.limits.filter_depth or depth > _DEEPEST:
            raise refuse(
                f"the filter is nested deeper than {min(self.limits.filter_depth, _DEEPEST)}",
                path,
                code="filter_too_deep",
                hint="flatten $and and $or",
            )
        self.groups_seen += 1
        if self.groups_seen > self.limits.filter_conditions:
            raise self._too_large(path)
        parts = [self._entry(name, operand, (path, name), depth) for name, operand in body.items()]
        return parts[0] if len(parts) == 1 else all_of(parts)

    def _entry(self, name: object, operand: object, path: Path, depth: int) -> Expr:
        if not isinstance(name, str) or not operands.is_text(name):
            raise refuse(
                "an attribute's name must be a string",
                path,
                code="filter_operator",
                hint="give its name",
                value=name,
            )
        if not name.startswith("$"):
            if name in _GROUPS_ELSEWHERE and name not in self.declared and _is_group(operand):
                hint = f"write {_GROUPS_ELSEWHERE[name]}; groups are $and, $or, $not"
                raise refuse("there is no such group", path, code="filter_operator", hint=hint)
            return self._attribute(name, operand, path)
        match name:
            case "$and":
                return all_of(self._list(operand, path, depth))
            case "$or":
                return any_of(self._list(operand, path, depth))
            case "$not":
                return negate(self.group(operand, path, depth + 1))
            case "$id":
                return self._id(operand, path)
        raise refuse("there is no such group", path, code="filter_operator", hint=f"one of {', '.join(GROUPS)}")

    def _list(self, operand: object, path: Path, depth: int) -> Iterator[Expr]:
        if not isinstance(operand, list | tuple):
            raise refuse("the operand must be a list of filters", path, hint="[{..}, {..}]", value=operand)
        if self.groups_seen + len(operand) > self.limits.filter_conditions:
            raise self._too_large(path)
        return (self.group(item, place, depth + 1) for place, item in operands.places(path, operand))

    def _too_large(self, path: Path) -> InvalidRequest:
        return refuse(
            f"the filter has more than {self.limits.filter_conditions} conditions",
            path,
            code="filter_too_large",
            hint="use in for many values of one attribute",
        )

    def _count(self, conditions: int, path: Path) -> None:
        self.conditions_seen += conditions
        if self.conditions_seen > self.limits.filter_conditions:
            raise self._too_large(path)

    def _id(self, operand: object, path: Path) -> Expr:
        if not isinstance(operand, Mapping):
            self._count(1, path)
            return has_ids([operands.point_id(operand, path)])
        parts = []
        for operator, value in self._operators(operand, ID_OPERATORS, path):
            inner = (path, operator)
            if operator in ("eq", "ne"):
                wanted = has_ids([operands.point_id(value, inner)])
            else:
                items = operands.sequence(value, inner, self.limits.filter_values)
                wanted = has_ids([operands.point_id(item, place) for place, item in operands.places(inner, items)])
            parts.append(negate(wanted) if operator in ("ne", "nin") else wanted)
        return all_of(parts)

    def _attribute(self, name: str, operand: object, path: Path) -> Expr:
        if operand is None:
            self._count(1, path)
            return negate(Exists(name))
        if type(operand) is not dict and not isinstance(operand, Mapping):
            self._count(1, path)
            return match_any(name, operands.conform(operands.scalar(operand, path), self.declared.get(name), path))
        bounds: dict[str, object] = {}
        parts: list[Expr] = []
        for operator, value in self._operators(operand, OPERATORS, path):
            if operator in BOUNDS:
                bounds[operator] = value
            else:
                parts.append(_CONDITIONS[operator](self, name, value, (path, operator)))
        if bounds:
            parts.append(self._range(name, bounds, path))
        return parts[0] if len(parts) == 1 else all_of(parts)

    def _operators(
        self, operand: Mapping[Any, object], allowed: tuple[str, ...], path: Path
    ) -> Iterable[tuple[str, object]]:
        """The operators of one object, checked to be such and counted."""
        if not operand:
            hint = f"one of {', '.join(allowed)}"
            raise refuse("the object has no operator", path, code="filter_operator", hint=hint)
        for operator in operand:
            if operator not in allowed:
                hint = f"one of {', '.join(allowed)}"
                if allowed is OPERATORS:
                    hint += '; nested attributes are named with dots, as in "size.width"'
                raise refuse("there is no such operator", (path, operator), code="filter_operator", hint=hint)
        self._count(len(operand), path)
        return operand.items()

    def _range(self, name: str, given: Mapping[str, object], path: Path) -> Expr:
        """All bounds of one object make one range; of two lower or two upper bounds the tighter one holds."""
        declared = self.declared.get(name)
        ends: dict[str, Number] = {}
        for operator, value in given.items():
            ends[operator] = operands.bound(value, declared, (path, operator))
        lower, above, upper, below = map(ends.get, ("gte", "gt", "lte", "lt"))
        open_below = above is not None and (lower is None or above >= lower)
        open_above = below is not None and (upper is None or below <= upper)
        return between(
            name,
            "datetime" if declared == "datetime" else "number",
            above if open_below else lower,
            below if open_above else upper,
            lower_inclusive=not open_below,
            upper_inclusive=not open_above,
        )

    def equal(self, name: str, operand: object, path: Path) -> Expr:
        if operand is None:
            return negate(Exists(name))
        return match_any(name, operands.conform(operands.scalar(operand, path), self.declared.get(name), path))

    def unequal(self, name: str, operand: object, path: Path) -> Expr:
        if operand is None:
            return Exists(name)
        return all_of([Exists(name), negate(self.equal(name, operand, path))])

    def one_of(self, name: str, operand: object, path: Path) -> Expr:
        values = operands.listed(operand, path, self.limits.filter_values)
        return match_any(name, operands.conform(values, self.declared.get(name), path))

    def none_of(self, name: str, operand: object, path: Path) -> Expr:
        return all_of([Exists(name), negate(self.one_of(name, operand, path))])

    def every(self, name: str, operand: object, path: Path) -> Expr:
        values = operands.listed(operand, path, self.limits.filter_values)
        return match_all(name, operands.conform(values, self.declared.get(name), path))

    def exists(self, name: str, operand: object, path: Path) -> Expr:
        return Exists(name) if operands.flag(operand, path) else negate(Exists(name))

    def null(self, name: str, operand: object, path: Path) -> Expr:
        return negate(Exists(name)) if operands.flag(operand, path) else Exists(name)

    def prefix(self, name: str, operand: object, path: Path) -> Expr:
        start = operands.text(operand, path)
        if self.declared.get(name, "keyword") != "keyword":
            raise refuse("prefix needs a keyword attribute", path, code="filter_operator", hint="use a range or eq")
        return Prefix(name, start)


_CONDITIONS: Mapping[str, Callable[[_Parser, str, object, Path], Expr]] = {
    "eq": _Parser.equal,
    "ne": _Parser.unequal,
    "in": _Parser.one_of,
    "any": _Parser.one_of,
    "nin": _Parser.none_of,
    "all": _Parser.every,
    "exists": _Parser.exists,
    "null": _Parser.null,
    "prefix": _Parser.prefix,
}
