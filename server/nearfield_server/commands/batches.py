"""Points as they come out of a file: batches in order, whatever the file is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ROWS = 4096
BATCH_BYTES = 16 * 1024 * 1024


class TableError(ValueError):
    """The file cannot be read as points; the text says what was expected."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a file are not attributes; None where they are to be found by name or type."""

    vector: str | None = None
    id: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Batch:
    """Consecutive points of a file.

    ``vectors`` is (n, d) float32, or a list of n vectors with None where a point has none; ``attributes`` are
    columns of n values, or n mappings. ``start`` is the row of the first, from 0; ``lines`` are the lines of the file
    where it has such.
    """

    ids: list[Any]
    vectors: Floats | list[Floats | None]
    attributes: dict[str, list[Any]] | list[dict[str, Any]]
    text: list[str | None] | None = None
    start: int = 0
    lines: list[int] | None = None

    def part(self, start: int, stop: int) -> Batch:
        """The points of these positions."""
        rows = slice(start, stop)
        attributes = self.attributes
        return Batch(
            self.ids[rows],
            self.vectors[rows],
            attributes[rows] if isinstance(attributes, list) else {n: column[rows] for n, column in attributes.items()},
            None if self.text is None else self.text[rows],
            self.start + start,
            None if self.lines is None else self.lines[rows],
        )

    def place(self) -> str:
        """Where in the file its first point stands."""
        return f"row {self.start} (from 0)" if self.lines is None else f"line {self.lines[0]}"

    @property
    def dim(self) -> int | None:
        """Dimension of the first vector there is."""
        return next((len(vector) for vector in self.vectors if vector is not None), None)


@dataclass(frozen=True)
class Table:
    """A file opened for reading: its batches, and how many rows are to come where that is known."""

    batches: Iterator[Batch]
    rows: int | None = None
    skipped: tuple[str, ...] = ()
    """Columns that are left out: further vectors, and bytes."""
    declared: dict[str, str] = field(default_factory=dict)
    """Attributes whose type the file states, where a collection would not find it by itself."""


def only_vector(names: Sequence[str]) -> str | None:
    """Which of the columns that hold vectors is meant where none was named: the only one, or ``vector``."""
    if len(names) > 1 and "vector" not in names:
        raise TableError(f"several columns hold vectors: {', '.join(names)}; name one with --vector")
    return "vector" if "vector" in names else next(iter(names), None)


def rows_per_batch(dim: int) -> int:
    """How many rows keep a batch of float32 vectors within bounds."""
    return max(1, min(ROWS, BATCH_BYTES // max(1, 4 * dim)))
