"""A field's live vectors as a fit sees them: matrices in stored form, row keys beside, and bounded samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearfield_index.backends.biased import scan_biased
from nearfield_index.backends.exact import nothing
from nearfield_index.backends.space import Biaser, ItemBiases
from nearfield_index.segments.normal import NormalField
from nearfield_index.segments.part import FieldPart, LivePart
from nearfield_index.segments.view import View

Floats = np.ndarray[Any, np.dtype[np.float32]]
Keys = np.ndarray[Any, np.dtype[np.int64]]

_SEED = 20_261_125


@dataclass(frozen=True)
class Gallery:
    """``parts``: matrices in stored form; ``keys``: the row keys of all their rows, back to back."""

    parts: Sequence[Floats]
    keys: Keys

    @classmethod
    def of(cls, view: View, field: str) -> Gallery:
        """The live vectors of a field; copied only where some are dead."""
        parts, keys = [], [np.empty(0, dtype=np.int64)]
        for live in view.parts:
            here = live.part.fields.get(field)
            if here is None or not len(here):
                continue
            rows = _alive(live, here)
            parts.append(here.matrix if len(rows) == len(here) else here.matrix[rows])
            keys.append(live.part.pks[here.part_rows(rows)])
        return cls(parts, np.concatenate(keys))

    def __len__(self) -> int:
        return len(self.keys)

    def rows_of(self, keys: Keys) -> Keys:
        """The row of each key, -1 where it is not here."""
        if not len(self.keys):
            return np.full(len(keys), -1, dtype=np.int64)
        order = np.argsort(self.keys, kind="stable")
        place = np.minimum(np.searchsorted(self.keys, keys, sorter=order), len(order) - 1)
        found = order[place]
        return np.where(self.keys[found] == keys, found, -1)

    def take(self, rows: Keys) -> Floats:
        """Rows, ascending, copied together."""
        taken, first = [], 0
        for part in self.parts:
            here = rows[(rows >= first) & (rows < first + len(part))] - first
            taken.append(np.asarray(part[here]))
            first += len(part)
        return np.concatenate(taken) if taken else np.empty((0, 0), np.float32)

    def sample(self, most: int, wanted: Keys) -> Keys:
        """At most ``most`` rows, ascending: all where they are few, else ``wanted`` ones and a seeded choice."""
        if len(self) <= most:
            return np.arange(len(self))
        others = np.random.default_rng(_SEED).permutation(len(self))
        need = np.unique(wanted)
        return np.union1d(need, np.setdiff1d(others[:most], need, assume_unique=False)[: max(0, most - len(need))])

    def best(self, queries: Floats, k: int, biases: Sequence[Floats] | None = None) -> Keys:
        """The best ``k`` rows of queries in search form ``(n, k)``, less the biases of each part where given."""
        found, at = nothing(len(queries), k)
        first = 0
        for number, part in enumerate(self.parts):
            bias = np.zeros(len(part), np.float32) if biases is None else biases[number]
            inner, rows = scan_biased(part, bias, 1.0, queries, k, None)
            both = np.concatenate([found, inner], axis=1)
            where = np.concatenate([at, np.where(rows >= 0, rows + first, -1)], axis=1)
            order = np.argsort(-both, axis=1, kind="stable")[:, :k]
            found, at = np.take_along_axis(both, order, 1), np.take_along_axis(where, order, 1)
            first += len(part)
        return at


def biases_of(view: View, field: str, fit: Biaser, faces: Mapping[str, FieldPart]) -> list[ItemBiases]:
    """The biases of what :meth:`Gallery.of` gives, part by part: those of ``faces`` by segment, others computed."""
    found = []
    for live in view.parts:
        here = live.part.fields.get(field)
        if here is None or not len(here):
            continue
        rows = _alive(live, here)
        face = faces.get(live.part.name)
        items = face.known if isinstance(face, NormalField) else fit.of(here.matrix)
        found.append(items.take(rows))
    return found


def _alive(live: LivePart, here: FieldPart) -> Keys:
    """The rows of a field's matrix whose points are alive."""
    if not live.dead.count:
        return np.arange(len(here))
    return np.flatnonzero(~live.dead.mask()[here.part_rows(np.arange(len(here)))])
