"""Points: written, changed, read, deleted, counted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from nearfield.wire.words import Attributes, Filter, Id, Reply, Request, Select, Vector, Vectors, WithParts


class Point(Request):
    """One point; it may lack some or all vectors."""

    id: Id
    vector: Vector | None = Field(None, description="The vector of the field `vector`.")
    vectors: dict[str, Vector] | None = Field(None, description="Vectors by field.")
    attributes: Attributes | None = None
    text: str | None = Field(None, description="What a cross-encoder reads.")


class WritePoints(Request):
    """Either rows (`points`) or columns (`ids` and what belongs to them, in the same order)."""

    points: Annotated[list[Point] | None, Field(max_length=10_000)] = None
    ids: Annotated[list[Id] | None, Field(max_length=10_000)] = None
    vector: Vectors | None = None
    vectors: dict[str, Vectors] | Vectors | None = Field(None, description="A batch, or one per field.")
    attributes: dict[str, list[Any]] | None = Field(None, examples=[{"price": [10, 20]}])
    text: list[str | None] | None = None
    mode: Literal["upsert", "insert", "update"] = "upsert"


class Written(Reply):
    """Durable and searchable. `sequence` is that of the last change."""

    upserted: int
    sequence: int
    outcomes: list[str] | None = Field(None, description="One word per id, in the modes insert and update.")


class PatchPoints(Request):
    """Which points (`ids` or `filter`) and what to change."""

    ids: list[Id] | None = None
    filter: Filter | None = None
    set: Attributes | None = None
    unset: list[str] | None = Field(None, examples=[["color"]])


class Patched(Reply):
    """How many points changed."""

    patched: int
    sequence: int


class GetPoints(Request):
    """Which points to read, and what of them."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    ids: Annotated[list[Id], Field(max_length=10_000)]
    select: Select = True
    with_: WithParts | None = Field(None, alias="with")


class StoredPoint(Reply):
    """A point as it is stored; vectors and text only where asked for."""

    id: Id
    attributes: Attributes | None = None
    text: str | None = None
    vectors: dict[str, list[float]] | None = None


class Points(Reply):
    """The points that exist."""

    points: list[StoredPoint]


class DeletePoints(Request):
    """Which points: `ids` or `filter`. `dry_run` only counts."""

    ids: list[Id] | None = None
    filter: Filter | None = None
    dry_run: bool = False


class Deleted(Reply):
    """How many points were deleted, or would be."""

    deleted: int
    sequence: int | None = None
    dry_run: bool | None = None


class CountPoints(Request):
    """Which points to count; all without a filter."""

    filter: Filter | None = None


class Count(Reply):
    """The exact number of points."""

    count: int


class ScanPoints(Request):
    """One page of the points that pass a filter; `cursor` is the `next_cursor` of the page before."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    filter: Filter | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] | None = None
    cursor: str | None = None
    select: Select = True
    with_: WithParts | None = Field(None, alias="with")


class Page(Reply):
    """Points, and how to go on; `next_cursor` is null on the last page."""

    points: list[StoredPoint]
    next_cursor: str | None


class Facet(Request):
    """The attribute to count values of."""

    field: str
    filter: Filter | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] | None = None


class FacetValue(Reply):
    """How many points hold a value."""

    value: Any
    count: int


class FacetCounts(Reply):
    """Counts per value, most frequent first."""

    field: str
    values: list[FacetValue]
    warnings: list[str] = Field([])
