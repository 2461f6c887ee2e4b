"""What a collection must answer, by brute force; the filter language evaluated on one point at a time, straight
from the JSON: slow, obvious, independent.

It shares no code with the engine and expects a valid filter. Filters are checked for validity elsewhere.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import numpy as np

# A value as the language sees it: ("keyword", "a"), ("number", Fraction(1)), ("bool", True), ..
Typed = tuple[str, Any]


def matches(
    filter_body: Mapping[str, Any],
    attributes: Mapping[str, Any] | None,
    id: int | str,
    declared: Mapping[str, str] | None = None,
) -> bool:
    """Whether the point with this id and these attributes passes the filter."""
    declared = declared or {}
    for name, operand in filter_body.items():
        if name == "$and":
            passed = all(matches(part, attributes, id, declared) for part in operand)
        elif name == "$or":
            passed = any(matches(part, attributes, id, declared) for part in operand)
        elif name == "$not":
            passed = not matches(operand, attributes, id, declared)
        elif name == "$id":
            passed = _id_passes(operand, id)
        else:
            passed = _attribute_passes(name, operand, attributes or {}, declared.get(name))
        if not passed:
            return False
    return True


def values_of(attributes: Mapping[str, Any], name: str, declared: str | None) -> tuple[bool, list[Typed]]:
    """Whether the point has the attribute, and its values."""
    present = False
    values: list[Typed] = []
    for found in _leaves(attributes, "", name):
        elements = found if isinstance(found, list) else [found]
        elements = [element for element in elements if element is not None]
        if not elements:
            continue
        present = True
        if not any(isinstance(element, list | dict) for element in elements):
            values += [typed(element, declared) for element in elements]
    return present, values


def typed(value: Any, declared: str | None) -> Typed:
    """The value with its kind; numbers exact, but for integers past 64 bits, which are floats."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, str):
        return ("datetime", _instant(value)) if declared == "datetime" else ("keyword", value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = float(value)
    return ("number", Fraction(value))


def _leaves(node: Mapping[str, Any], above: str, name: str) -> Iterator[Any]:
    for key, value in node.items():
        path = above + key
        if isinstance(value, dict):
            yield from _leaves(value, path + ".", name)
        elif path == name:
            yield value


def _instant(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _id_passes(operand: Any, id: int | str) -> bool:
    def same(other: Any) -> bool:
        return type(other) is type(id) and other == id

    if not isinstance(operand, dict):
        return same(operand)
    checks = {
        "eq": lambda wanted: same(wanted),
        "ne": lambda wanted: not same(wanted),
        "in": lambda wanted: any(same(one) for one in wanted),
        "nin": lambda wanted: not any(same(one) for one in wanted),
    }
    return all(checks[operator](wanted) for operator, wanted in operand.items())


def _attribute_passes(name: str, operand: Any, attributes: Mapping[str, Any], declared: str | None) -> bool:
    present, values = values_of(attributes, name, declared)
    if not isinstance(operand, dict):
        operand = {"eq": operand}
    bounds = {key: typed(bound, declared) for key, bound in operand.items() if key in ("lt", "lte", "gt", "gte")}
    if bounds and not any(_inside(value, bounds) for value in values):
        return False
    return all(
        _operator_passes(operator, wanted, present, values, declared)
        for operator, wanted in operand.items()
        if operator not in bounds
    )


def _inside(value: Typed, bounds: Mapping[str, Typed]) -> bool:
    for operator, bound in bounds.items():
        if value[0] != bound[0]:
            return False
        below, equal = value[1] < bound[1], value[1] == bound[1]
        allowed = {
            "lt": below,
            "lte": below or equal,
            "gt": not below and not equal,
            "gte": not below,
        }
        if not allowed[operator]:
            return False
    return True


def _operator_passes(operator: str, wanted: Any, present: bool, values: list[Typed], declared: str | None) -> bool:
    if operator == "exists":
        return present is wanted
    if operator == "null":
        return present is not wanted
    if wanted is None:
        return present is (operator == "ne")
    if not present:
        return False
    if operator == "prefix":
        return any(kind == "keyword" and value.startswith(wanted) for kind, value in values)
    operands = wanted if isinstance(wanted, list) else [wanted]
    hits = [typed(one, declared) in values for one in operands]
    if operator == "all":
        return all(hits)
    return any(hits) is (operator in ("eq", "in", "any"))


@dataclass
class OraclePoint:
    """One point as the model holds it: attributes as sent, vectors as float64 copies of their float32 values."""

    attributes: dict[str, Any]
    vectors: dict[str, np.ndarray[Any, Any]]
    text: str | None = None


class OracleCollection:
    """A dict of points and brute force in float64: what a collection must answer. Expects valid requests only."""

    def __init__(self, vectors: Mapping[str, tuple[int, str]], declared: Mapping[str, str] | None = None) -> None:
        """``vectors`` maps a field's name to its dimension and metric."""
        self.fields = dict(vectors)
        self.declared = dict(declared or {})
        self.points: dict[int | str, OraclePoint] = {}

    def write(self, rows: Sequence[Mapping[str, Any]], mode: str = "upsert") -> list[str]:
        """Upsert, insert or update rows as the wire has them; returns an outcome per row."""
        known = set(self.points)
        outcomes = []
        for row in rows:
            point_id = row["id"]
            if mode == "insert" and point_id in self.points:  # the first of several copies of a new id wins
                outcomes.append("exists")
                continue
            if mode == "update" and point_id not in known:
                outcomes.append("missing")
                continue
            outcomes.append({"upsert": "upserted", "insert": "inserted", "update": "updated"}[mode])
            vectors = dict(row.get("vectors") or {})
            if row.get("vector") is not None:
                vectors["vector"] = row["vector"]
            self.points[point_id] = OraclePoint(
                copy.deepcopy(dict(row.get("attributes") or {})),
                {n: np.asarray(v, dtype=np.float32).astype(np.float64) for n, v in vectors.items() if v is not None},
                row.get("text"),
            )
        return outcomes

    def select(self, filter_body: Mapping[str, Any] | None) -> list[int | str]:
        """Ids of the points that pass."""
        return [
            point_id
            for point_id, point in self.points.items()
            if filter_body is None or matches(filter_body, point.attributes, point_id, self.declared)
        ]

    def patch(self, ids: Iterable[int | str], assign: Mapping[str, Any], unset: Sequence[str]) -> int:
        """Set and unset top-level attributes of those ids that exist; returns how many there were."""
        found = [i for i in dict.fromkeys(ids) if i in self.points]
        for point_id in found:
            attributes = self.points[point_id].attributes
            for name in unset:
                attributes.pop(name, None)
            for name, value in assign.items():
                if value is None:
                    attributes.pop(name, None)
                else:
                    attributes[name] = copy.deepcopy(value)
        return len(found)

    def delete(self, ids: Iterable[int | str]) -> int:
        """Delete those ids that exist; returns how many there were."""
        return sum(self.points.pop(i, None) is not None for i in dict.fromkeys(ids))

    def facet(self, name: str, filter_body: Mapping[str, Any] | None) -> dict[Typed, int]:
        """Points per value."""
        counts: dict[Typed, int] = {}
        for point_id in self.select(filter_body):
            _, values = values_of(self.points[point_id].attributes, name, self.declared.get(name))
            for value in set(values):
                counts[value] = counts.get(value, 0) + 1
        return counts

    def score(self, field: str, query: Any, point_id: int | str) -> float:
        """The score of one point that has a vector in the field."""
        asked = np.asarray(query, dtype=np.float32).astype(np.float64)
        own = self.points[point_id].vectors[field]
        metric = self.fields[field][1]
        if metric == "l2":
            return -math.sqrt(float(((asked - own) ** 2).sum()))
        product = float(asked @ own)
        if metric == "dot":
            return product
        return product / math.sqrt(float(asked @ asked) * float(own @ own))

    def ranking(
        self, field: str, query: Any, filter_body: Mapping[str, Any] | None = None, *, without: int | str | None = None
    ) -> list[tuple[int | str, float]]:
        """Every point that passes and has a vector in the field, best first."""
        found = [
            (point_id, self.score(field, query, point_id))
            for point_id in self.select(filter_body)
            if field in self.points[point_id].vectors and not (type(point_id) is type(without) and point_id == without)
        ]
        return sorted(found, key=lambda pair: -pair[1])
