"""What a write does inside its transaction. All arguments are checked already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from nearfield_index.errors import InvalidRequest
from nearfield_index.limits import Limits
from nearfield_index.points import Attributes, PointId, Points, add_names, check_attributes
from nearfield_index.schema import Schema
from nearfield_index.segments.live import stored_points
from nearfield_index.storage.commits import Write
from nearfield_index.storage.rows import Change, RowStore

_SMALL = 4_096

Targets = Sequence[PointId] | Callable[[], Sequence[int]]
"""Ids, or a function that gives the row keys a filter selects in the view of that moment."""


class PointWrite(Write, Protocol):
    """A write that is checked once more when its turn comes, against the schema and the names of that moment."""

    def check(self, schema: Schema, known: AbstractSet[str]) -> None: ...


@dataclass
class PutPoints:
    """Upsert, insert or update a batch. After it ran: ``count`` points written, an outcome per sent id."""

    points: Points
    mode: str
    schema: Schema
    """What the points were checked against."""
    limits: Limits
    count: int = 0
    outcomes: list[str] = field(default_factory=list)
    alone: bool = False

    @property
    def nbytes(self) -> int:
        return self.points.nbytes

    def check(self, schema: Schema, known: AbstractSet[str]) -> None:
        _check_names(self.points.attribute_names, known, self.limits)
        if schema is not self.schema:  # it was changed since this write was checked
            check_attributes(self.points.attributes, schema=schema, limits=self.limits, row_at="points[{}].attributes")

    def apply(self, store: RowStore, change: Change) -> None:
        ids = self.points.ids
        if self.mode == "upsert":
            keep = list({point_id: n for n, point_id in enumerate(ids)}.values())
        else:
            keep = self._choose(store, ids)
        self.count = len(keep)
        if keep:
            store.upsert(change, self.points.take(sorted(keep)))

    def _choose(self, store: RowStore, ids: Sequence[PointId]) -> list[int]:
        known = {row.id for row in store.doomed(ids)}
        if self.mode == "insert":
            first: dict[PointId, int] = {}
            for n, point_id in enumerate(ids):
                first.setdefault(point_id, n)
            keep = [n for point_id, n in first.items() if point_id not in known]
            done, left = "inserted", "exists"
        else:
            last = {point_id: n for n, point_id in enumerate(ids)}
            keep = [n for point_id, n in last.items() if point_id in known]
            done, left = "updated", "missing"
        chosen = set(keep)
        for n, point_id in enumerate(ids):
            superseded = self.mode == "update" and point_id in known
            self.outcomes.append(done if n in chosen or superseded else left)
        return keep


@dataclass
class DeletePoints:
    """Delete by ids or by filter; unknown ids are no error."""

    targets: Targets
    count: int = 0

    def check(self, schema: Schema, known: AbstractSet[str]) -> None:
        """Nothing can be wrong with a delete."""

    @property
    def alone(self) -> bool:
        return callable(self.targets)

    @property
    def nbytes(self) -> int:
        return _SMALL

    def apply(self, store: RowStore, change: Change) -> None:
        if callable(self.targets):
            found = store.doomed_keys(self.targets())
        else:
            found = store.doomed(dict.fromkeys(self.targets))
        self.count = len(found)
        store.kill(change, found)


@dataclass
class PatchPoints:
    """Set and unset attributes; vectors and text stay as they are, and no vector is written again."""

    targets: Targets
    assign: Mapping[str, Any]
    unset: Sequence[str]
    schema: Schema
    limits: Limits
    count: int = 0
    alone: bool = True

    def check(self, schema: Schema, known: AbstractSet[str]) -> None:
        names: set[str] = set()
        add_names(dict(self.assign), "", names)
        _check_names(names, known, self.limits)
        self.schema = schema

    @property
    def nbytes(self) -> int:
        return _SMALL

    def apply(self, store: RowStore, change: Change) -> None:
        if callable(self.targets):
            found = store.keys_for_write(self.targets())
        else:
            found = store.find_for_write(dict.fromkeys(self.targets))
        self.count = len(found)
        if not found:
            return
        _, old = stored_points(store, self.schema, found)
        attributes = [self._patched(orjson.loads(p.attributes)) for p in found]
        encoded = check_attributes(attributes, schema=self.schema, limits=self.limits, row_at="set")
        store.patch(change, found, Points(old.ids, attributes, encoded, old.text, old.vectors))

    def _patched(self, row: Attributes) -> Attributes:
        for name in self.unset:
            _remove(row, name)
        for name, value in self.assign.items():
            if value is None:
                _remove(row, name)
            else:
                _assign(row, name, value)
        return row


def _check_names(names: AbstractSet[str], known: AbstractSet[str], limits: Limits) -> None:
    """Every distinct name costs memory in every segment: their number is bounded."""
    new = len(names - known)
    if new and len(known) + new > limits.attribute_names:
        raise InvalidRequest(
            f"{new} new attribute names beside {len(known)}, the limit is {limits.attribute_names} in a collection",
            code="too_many_attribute_names",
            field="attributes",
            hint="keep values out of names: {'tag': 'x'}, not {'tag_x': true}",
        )


def _remove(row: Attributes, name: str) -> None:
    """Drop an attribute by name, or by the dotted name of a nested one."""
    if name in row:
        del row[name]
        return
    head, _, rest = name.partition(".")
    if rest and isinstance(row.get(head), dict):
        _remove(row[head], rest)


def _assign(row: Attributes, name: str, value: object) -> None:
    head, _, rest = name.partition(".")
    if name not in row and rest and isinstance(row.get(head), dict):
        _assign(row[head], rest, value)
    else:
        row[name] = value
