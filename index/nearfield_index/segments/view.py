"""The frozen set of parts one query reads. A write or a merge makes a new view; nobody edits one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from nearfield_index.backends.space import Biaser
from nearfield_index.bitmap import Bitmap
from nearfield_index.segments.part import LivePart, Part
from nearfield_index.segments.segment import Segment

Keys = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class View:
    """Segments and the tail with their tombstones as of ``sequence``; the tail is last.

    ``fits`` are the hubness fits by vector field whose biases all its parts hold; ``hidden`` the row keys, ascending,
    of points in quarantine: stored and counted, but no answer to a query.
    """

    sequence: int
    parts: tuple[LivePart, ...]
    fits: Mapping[str, Biaser] = field(default_factory=dict)
    hidden: Keys = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @cached_property
    def count(self) -> int:
        """Live points."""
        return sum(part.count for part in self.parts)

    @property
    def indexed(self) -> int:
        """Live points in indexed segments; the others are scanned."""
        return sum(s.count - dead.count for s, dead in self.segments if s.head.state == "indexed")

    @cached_property
    def filled(self) -> tuple[Part, ...]:
        """The parts that have rows, dead ones included."""
        return tuple(live.part for live in self.parts if live.part.count)

    @cached_property
    def searched(self) -> tuple[LivePart, ...]:
        """The parts as queries see them: without what is in quarantine."""
        if not len(self.hidden):
            return self.parts
        found = []
        for live in self.parts:
            rows = np.sort(live.part.rows_of(self.hidden))
            hidden = Bitmap.from_rows(live.part.count, rows)
            found.append(LivePart(live.part, live.dead | hidden) if len(rows) else live)
        return tuple(found)

    @property
    def segments(self) -> list[tuple[Segment, Bitmap]]:
        """The segments with their tombstones, without the tail."""
        return [(p.part, p.dead) for p in self.parts if isinstance(p.part, Segment)]

    @cached_property
    def types(self) -> dict[str, set[str]]:
        """Per attribute the classes of values that any point (dead ones included) was given."""
        found: dict[str, set[str]] = {}
        for live in self.parts:
            for name, kinds in live.part.types().items():
                found.setdefault(name, set()).update(kinds)
        return found

    def with_tail(self, tail: Part, sequence: int) -> View:
        """The same segments with a newer snapshot of the tail; its known tombstones stay."""
        old = self.parts[-1].dead
        dead = Bitmap.from_rows(tail.count, old.rows())
        return replace(self, sequence=sequence, parts=(*self.parts[:-1], LivePart(tail, dead)))

    def without(self, pks: Iterable[int], sequence: int) -> View:
        """The same parts with more tombstones."""
        keys = np.sort(np.fromiter(pks, dtype=np.int64))
        if not len(keys):
            return replace(self, sequence=sequence)
        parts = []
        for live in self.parts:
            rows = live.part.rows_of(keys)
            if len(rows):
                dead = live.dead | Bitmap.from_rows(live.part.count, np.sort(rows))
                live = LivePart(live.part, dead)
            parts.append(live)
        return replace(self, sequence=sequence, parts=tuple(parts))
