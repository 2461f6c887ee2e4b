"""What calls give back: hits as objects and as arrays, points, pages, jobs and the outcome of writes."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import Any, overload

import numpy as np

from nearfield import vectors as wire_vectors

Id = int | str
Reply = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One stored point; ``point["price"]`` is its attribute."""

    id: Id
    attributes: dict[str, Any] = field(default_factory=dict)
    text: str | None = None
    vectors: dict[str, np.ndarray] = field(default_factory=dict, compare=False)

    def __getitem__(self, name: str) -> Any:
        return self.attributes[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or ``default`` where the point lacks it."""
        return self.attributes.get(name, default)

    @classmethod
    def from_wire(cls, row: Reply) -> Point:
        return cls(row["id"], dict(row.get("attributes") or {}), row.get("text"), _decode_vectors(row))


@dataclass(frozen=True)
class Hit(Point):
    """One found point. ``score`` is what the ranking used; higher is better, whatever the metric.

    Where hubness normalisation was used, ``raw_score`` is the score without it and ``bias`` what it subtracted.
    """

    score: float = float("nan")
    raw_score: float | None = None
    bias: float | None = None
    base_score: float | None = None
    """The similarity, where ``score`` is a scorer's."""

    @classmethod
    def from_wire(cls, row: Reply) -> Hit:
        return cls(
            row["id"],
            dict(row.get("attributes") or {}),
            row.get("text"),
            _decode_vectors(row),
            float(row["score"]),
            row.get("raw_score"),
            row.get("bias"),
            row.get("base_score"),
        )


class Hits(Sequence[Hit]):
    """The hits of one query, best first: a sequence of Hit, and arrays.

    ``ids`` is int64 when all are integers, else an object array; ``scores`` is float64; ``meta`` is the
    reply's own account (``ms``, ``sequence``, ``recall``, ``warnings``), ``plans`` how each segment answered
    (with ``explain=True``).
    """

    def __init__(self, rows: Sequence[Reply], meta: Mapping[str, Any] | None = None) -> None:
        self._rows = rows
        self.meta: dict[str, Any] = dict(meta or {})

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> Hits: ...
    def __getitem__(self, index: int | slice) -> Hit | Hits:
        if isinstance(index, slice):
            return Hits(self._rows[index], self.meta)
        return Hit.from_wire(self._rows[index])

    def __iter__(self) -> Iterator[Hit]:
        return (Hit.from_wire(row) for row in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def ids(self) -> np.ndarray:
        return _id_array(self._rows)

    @cached_property
    def scores(self) -> np.ndarray:
        return np.array(list(map(_score_of, self._rows)), dtype=np.float64)

    @property
    def plans(self) -> list[dict[str, Any]]:
        return list(self.meta.get("plans") or [])

    def to_pandas(self) -> Any:
        """Return a data frame with ``id``, ``score`` and one column per attribute (needs pandas)."""
        import pandas as pd

        return pd.DataFrame.from_records(self._records())

    def to_arrow(self) -> Any:
        """Return a pyarrow table with ``id``, ``score`` and one column per attribute (needs pyarrow)."""
        import pyarrow as pa

        return pa.Table.from_pylist(self._records())

    def to_polars(self) -> Any:
        """Return a polars frame with ``id``, ``score`` and one column per attribute (needs polars)."""
        import polars as pl

        return pl.DataFrame(self._records())

    def __repr__(self) -> str:
        shown = ", ".join(f"{hit.id!r} {hit.score:.4g}" for hit in self[:5])
        return f"Hits({len(self)}: {shown}{', ..' if len(self) > 5 else ''})"

    def _repr_html_(self) -> str:
        return _table(["id", "score"], self._records())

    def _records(self) -> list[dict[str, Any]]:
        return [{**(row.get("attributes") or {}), "id": row["id"], "score": row["score"]} for row in self._rows]


class ManyHits(Sequence[Hits]):
    """The hits of n queries. ``many[i]`` is the Hits of query i.

    ``ids`` has shape (n, k): int64 padded with -1 when all ids are integers, else objects padded with None;
    ``scores`` has shape (n, k), float64 padded with NaN.
    """

    def __init__(self, lists: Sequence[Sequence[Reply]], k: int, meta: Mapping[str, Any] | None = None) -> None:
        self._lists = lists
        self._k = k
        self.meta: dict[str, Any] = dict(meta or {})

    @overload
    def __getitem__(self, index: int) -> Hits: ...
    @overload
    def __getitem__(self, index: slice) -> ManyHits: ...
    def __getitem__(self, index: int | slice) -> Hits | ManyHits:
        if isinstance(index, slice):
            return ManyHits(self._lists[index], self._k, self.meta)
        return Hits(self._lists[index], self.meta)

    def __len__(self) -> int:
        return len(self._lists)

    @cached_property
    def ids(self) -> np.ndarray:
        ids = _id_array(chain.from_iterable(self._lists))
        return self._padded(ids, None if ids.dtype == object else -1)

    @cached_property
    def scores(self) -> np.ndarray:
        scores = map(_score_of, chain.from_iterable(self._lists))
        return self._padded(np.array(list(scores), dtype=np.float64), np.nan)

    def _padded(self, values: np.ndarray, padding: object) -> np.ndarray:
        """Values of all hits in a row, as one row of k for each query."""
        matrix = np.full((len(self._lists), self._k), padding, values.dtype)
        lengths = np.fromiter(map(len, self._lists), np.int64, len(self._lists))
        matrix[np.arange(self._k) < lengths[:, np.newaxis]] = values
        return matrix

    @property
    def plans(self) -> list[dict[str, Any]]:
        return list(self.meta.get("plans") or [])

    def __repr__(self) -> str:
        return f"ManyHits({len(self)} queries, k={self._k})"

    def _repr_html_(self) -> str:
        rows = [
            {"query": number, "id": row["id"], "score": row["score"]}
            for number, hits in enumerate(self._lists[:20])
            for row in hits[:5]
        ]
        return _table(["query", "id", "score"], rows)


@dataclass(frozen=True)
class UpsertResult:
    """``upserted`` counts distinct ids; ``sequence`` is the last change, for ``query(after=...)``.

    ``outcomes`` has one word per id in the modes insert and update; ``ids`` is set where the SDK made them.
    """

    upserted: int
    sequence: int
    outcomes: list[str] | None = None
    ids: list[Id] | None = None


@dataclass(frozen=True)
class ScanPage:
    """One page of a scan; ``next_cursor`` is None on the last."""

    points: list[Point]
    next_cursor: str | None


@dataclass(frozen=True)
class FacetValue:
    """How many points hold ``value``."""

    value: Any
    count: int


@dataclass(frozen=True)
class Job:
    """Long work: ``state`` is queued, running, done, failed or cancelled; ``progress`` is 0..1."""

    id: str
    kind: str
    state: str
    progress: float = 0.0
    step: str = ""
    error: str | None = None
    collection: str | None = None
    created_at: Any = None
    finished_at: Any = None
    result: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    @classmethod
    def from_wire(cls, reply: Reply) -> Job:
        return cls(**{name: reply[name] for name in cls.__dataclass_fields__ if reply.get(name) is not None})


def _decode_vectors(row: Reply) -> dict[str, np.ndarray]:
    return {name: wire_vectors.decode(value) for name, value in (row.get("vectors") or {}).items()}


_id_of, _score_of = itemgetter("id"), itemgetter("score")


def _id_array(rows: Iterable[Reply]) -> np.ndarray:
    ids = list(map(_id_of, rows))
    if set(map(type, ids)) <= {int}:
        return np.array(ids, dtype=np.int64)
    held = np.empty(len(ids), dtype=object)
    held[:] = ids
    return held


def _table(first: list[str], records: list[dict[str, Any]]) -> str:
    names = first + sorted({name for record in records for name in record} - set(first))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(record.get(name)))}</td>" for name in names) + "</tr>"
        for record in records
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)
    return text if len(text) <= 80 else text[:79] + "…"
