"""Collections: their schema, their parts, and what is optimised in them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from nearfield.wire.words import AttributeType, Filter, Metric, Name, Reply, Request, Vectors


class VectorField(Request):
    """One vector per point: its length and how two are compared."""

    dim: Annotated[int, Field(ge=1, le=65_536)]
    metric: Metric = "cosine"


class IndexSettings(Request):
    """How sealed segments are searched; `auto` picks by size."""

    kind: Literal["auto", "exact", "hnsw", "hnswlib", "ivf"] | None = None
    m: Annotated[int | None, Field(description="Links per point of a graph.")] = None
    ef_construction: Annotated[int | None, Field(description="Effort of building a graph.")] = None
    recall: Annotated[float | None, Field(description="Default share of the true top k to find.")] = None
    workload: Annotated[bool | None, Field(description="Log a sample of the filters asked, to lay rows out for.")] = (
        None
    )


class CreateCollection(Request):
    """The schema of a new collection, or the shorthand `dim` and `metric` for the one field `vector`."""

    vectors: dict[str, VectorField] | None = None
    dim: Annotated[int, Field(ge=1, le=65_536)] | None = None
    metric: Metric | None = None
    attributes: Annotated[
        dict[str, AttributeType] | None, Field(description="Declared types; others are inferred.")
    ] = None
    index: IndexSettings | None = None


class AlterCollection(Request):
    """What to add or change. Attributes where there are points (all are read again), and the index, start a job."""

    vectors: dict[str, VectorField] | None = None
    attributes: dict[str, AttributeType] | None = None
    index: IndexSettings | None = None


class Segment(Reply):
    """One immutable part of a collection."""

    id: str
    state: Literal["flat", "indexed"]
    kind: str
    points: int
    deleted: int
    bytes: int | dict[str, int]
    layout: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None


class Collection(Reply):
    """The description of a collection."""

    name: Name
    vectors: dict[str, VectorField]
    attributes: dict[str, dict[str, Any]] = Field(examples=[{"price": {"type": "integer", "declared": False}}])
    index: dict[str, Any]
    points: int
    indexed_points: int = Field(description="Those that an index finds; the others are scanned until it is built.")
    sequence: int
    segments: list[Segment]
    tail: dict[str, int]
    bytes: dict[str, int]
    state: Literal["ready", "building", "read_only"]
    created: bool | None = Field(None, description="Only in the reply to a create.")


class Collections(Reply):
    """All collections."""

    collections: list[Collection]


class Dropped(Reply):
    """The collection is gone."""

    dropped: bool


class Workload(Request):
    """Filters as they come in practice, one per query, to lay rows out for in place of those logged."""

    filters: list[Filter | None] | None = None
    vectors: Annotated[Vectors | None, Field(description="One per filter; the gain is measured with them.")] = None
    least_gain: Annotated[
        float | None, Field(description="The share of their time that queries must be expected to save; 0.05 if unset.")
    ] = None


class Optimize(Request):
    """Queries to calibrate recall on, and filters to lay rows out for, as they come in practice; both optional."""

    queries: Vectors | None = None
    workload: Workload | None = None
