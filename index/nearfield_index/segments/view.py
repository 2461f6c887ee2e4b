"""The frozen set of parts one query reads. A write or a merge makes a new view; nobody edits one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nearfield_index.bitmap import Bitmap
from nearfield_index.segments.part import LivePart, Part
from nearfield_index.segments.segment import Segment

Keys = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class View:
    """Segments and the tail with their tombstones as of ``sequence``; the tail is last."""

    sequence: int
    parts: tuple[LivePart, ...]

    @cached_property
    def count(self) -> int:
        """Live points."""
        return sum(part.count for part in self.parts)

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
        return View(sequence, (*self.parts[:-1], LivePart(tail, dead)))

    def without(self, pks: Iterable[int], sequence: int) -> View:
        """The same parts with more tombstones."""
        keys = np.sort(np.fromiter(pks, dtype=np.int64))
        if not len(keys):
            return View(sequence, self.parts)
        parts = []
        for live in self.parts:
            rows = live.part.rows_of(keys)
            if len(rows):
                dead = live.dead | Bitmap.from_rows(live.part.count, np.sort(rows))
                live = LivePart(live.part, dead)
            parts.append(live)
        return View(sequence, tuple(parts))
