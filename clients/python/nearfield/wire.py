"""Every request and reply of the wire, as models that document it (OpenAPI) and nothing else.

No vector ever passes through these: the engine checks what arrives, and vectors are typed loosely here.
Import this only where models are wanted; ``import nearfield`` does not, because pydantic takes its time.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Id = Annotated[
    Annotated[str, Field(min_length=1, max_length=256)] | Annotated[int, Field(ge=0, le=2**63 - 1)],
    Field(description='Text of 1 to 256 bytes, or an integer from 0 to 2^63-1; `1` and `"1"` are two points.'),
]
Attributes = Annotated[
    dict[str, Any],
    Field(
        description="Any JSON object; scalars and lists of scalars can be filtered, null means missing.",
        examples=[{"color": "red", "price": 12}],
    ),
]
Filter = Annotated[
    dict[str, Any],
    Field(
        description="Attributes and conditions, ANDed. A bare value is equality; operators: "
        "`eq ne in nin lt lte gt gte exists any all prefix`; combine with `$and`, `$or`, `$not`, `$id`.",
        examples=[{"color": "red", "price": {"gte": 10, "lt": 50}}],
    ),
]
Metric = Literal["cosine", "dot", "l2"]
AttributeType = Literal["keyword", "integer", "float", "bool", "datetime"]
Name = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$", examples=["products"])]
WithParts = Annotated[list[Literal["vectors", "text"]], Field(description="What else to return.")]
Select = Annotated[
    bool | list[str],
    Field(description="True: all attributes; false: none; a list: these.", examples=[["price"]]),
]


class Request(BaseModel):
    """What clients send: unknown keys are refused, nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Reply(BaseModel):
    """What the server sends: more keys may come with later versions."""

    model_config = ConfigDict(extra="allow")


class PackedVectors(Request):
    """Vectors as base64 of their little-endian, row-major numbers."""

    b64: str
    dtype: Literal["f32", "f16"] = "f32"
    shape: Annotated[list[int], Field(min_length=1, max_length=2, examples=[[2, 384]])]


class BlockVectors(Request):
    """Vectors as a raw block of a frame body (`application/x-nearfield-frame`)."""

    block: Annotated[int, Field(ge=0)]
    dtype: Literal["f32", "f16"] = "f32"
    shape: Annotated[list[int], Field(min_length=1, max_length=2, examples=[[2, 384]])]


Vector = Annotated[
    list[float] | PackedVectors | BlockVectors, Field(description="One vector.", examples=[[0.1, 0.2, 0.3]])
]
Vectors = Annotated[
    list[list[float] | None] | PackedVectors | BlockVectors,
    Field(description="A batch of vectors, one per row.", examples=[[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]]),
]


class Problem(Reply):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:nearfield:error:not_found"])
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable, for programs.")
    field: str | None = Field(None, description="The part of the request at fault.")
    hint: str | None = Field(None, description="What to do instead.")


class Health(Reply):
    """The state of the service."""

    status: str = Field(examples=["ready"])
    read_only: list[str] | None = Field(None, description="Collections that stopped taking writes.")
    device: dict[str, Any] | None = Field(
        None,
        description="A GPU's `name`, `state` (`ready`, or `down`: the CPU answers) and the `reason` for the latter.",
    )


class Info(Reply):
    """Who answers, within which limits, and what it can do."""

    name: Literal["nearfield"]
    version: str
    limits: dict[str, int] = Field(description="The largest of everything a request may carry.")
    features: list[str] = Field(examples=[["frame"]])
    scorers: list[str] = Field([], description="Scorers that `rerank` may name.", examples=[["relevance"]])
    device: str = Field("cpu", description="What computes beside the CPU, or the CPU alone.", examples=["cuda:0"])


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
    """What to add (fields, attributes) or change (index, which starts a job)."""

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
    warnings: list[str] = []


class Rerank(Request):
    """Search under an expensive scorer: `scorer` (of the server's configuration) or a fitted `reranker`."""

    scorer: Annotated[str | None, Field(examples=["relevance"])] = None
    reranker: str | None = None
    query: Annotated[str | list[str], Field(description="The query's text; a list for a batch.")]
    method: Annotated[
        Literal["rerank", "axn", "anncur", "adacur", "joint"] | None,
        Field(description="`axn` by default with a scorer, `joint` with a reranker; `rerank` rescores a fixed list."),
    ] = None
    budget: Annotated[int | None, Field(ge=1, description="Points scored per query at most; 100 by default.")] = None
    rounds: Annotated[int | None, Field(ge=1, le=50, description="5 by default.")] = None
    prior: Annotated[bool | None, Field(description="Whether similarity counts as evidence; true by default.")] = None


class Query(Request):
    """What to search for (exactly one of `vector`, `vectors`, `ids`) and how."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    vector: Vector | None = None
    vectors: Vectors | None = None
    ids: list[Id] | None = Field(None, description="Search with stored vectors; the point itself is left out.")
    field: str | None = Field(None, description="The vector field; `vector` by default.")
    k: Annotated[int, Field(ge=1, le=10_000)] = 10
    offset: Annotated[int, Field(ge=0)] = 0
    filter: Filter | None = None
    filters: list[Filter] | None = Field(None, description="One filter per query.")
    select: Select = True
    with_: WithParts | None = Field(None, alias="with")
    min_score: float | None = None
    recall: Annotated[float | None, Field(description="The share of the true top k to find.", examples=[0.95])] = None
    exact: bool = False
    hubness: Literal["auto", "on", "off"] = Field(
        "auto", description="Rank by score less a per-item bias: on, off, or where a fit recommends it."
    )
    hubness_strength: float | None = Field(None, description="Another strength than the fit's, for nnn and csls.")
    after: int | None = Field(None, description="Wait until this sequence is visible.")
    timeout_ms: int | None = None
    rerank: Rerank | None = None
    explain: bool = Field(False, description="Return the plans that were used.")


class Hit(Reply):
    """One found point; a higher score is better, whatever the metric."""

    id: Id
    score: float
    raw_score: float | None = Field(None, description="Of normalised answers: the score without normalisation.")
    bias: float | None = Field(None, description="Of normalised answers: what was subtracted.")
    base_score: float | None = Field(None, description="The similarity, where `score` is a scorer's.")
    attributes: Attributes | None = None
    text: str | None = None
    vectors: dict[str, list[float]] | None = None


class RecallMeta(Reply):
    """The recall that was asked for and the one to expect."""

    target: float
    estimate: float | None


class RerankMeta(Reply):
    """What the scorer was asked. `calls` were sent to it, `cached` cost none; `partial`: less than the budget."""

    method: str
    scorer: str
    calls: int
    cached: int
    rounds: int
    ms: float
    scorer_ms: float
    partial: bool
    per_round: list[dict[str, Any]] | None = None


class Meta(Reply):
    """What the answer cost and how good it is."""

    ms: float
    sequence: int
    warnings: list[str]
    recall: RecallMeta
    hubness: dict[str, Any] | None = Field(None, description="How the answer was normalised, where it was.")
    rerank: RerankMeta | None = None
    plans: list[dict[str, Any]] | None = Field(None, description="How each segment answered, when asked for.")


class Results(Reply):
    """One list of hits per query, best first."""

    results: list[list[Hit]]
    meta: Meta


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


class Anchors(Request):
    """Queries to learn from: `texts` with their `vectors` (of which `count` are chosen), or so many of the `log`."""

    texts: list[str] | None = None
    vectors: Vectors | None = None
    count: Annotated[int | None, Field(ge=2)] = None
    log: Annotated[int | None, Field(ge=2, description="So many of the reranked queries seen so far.")] = None


class PutReranker(Request):
    """Without `anchors`, those the reranker has: points written since are scored, a stopped job goes on."""

    scorer: str
    field: str | None = None
    anchors: Anchors | None = None
    dry_run: bool = Field(False, description="Only tell what it would cost.")


class Estimate(Reply):
    """What is scored and what is left to score."""

    anchors: int | None = None
    points: int
    scored: int
    calls: int
    calls_left: int
    pairs_per_second: float | None
    seconds_left: float | None


class Estimated(Reply):
    """The cost of a job that was not started."""

    estimate: Estimate


class Reranker(Estimate):
    """A reranker: what it is fitted from, how far its job is, whether it serves."""

    name: str
    state: Literal["ready", "scoring", "interrupted", "cancelled", "failed"]
    ready: bool = Field(description="Whether queries may name it.")
    scorer: str
    scorer_version: str
    field: str
    rank: int | None
    fitted_items: int | None
    error: str | None
    job: dict[str, Any] | None


class Rerankers(Reply):
    """All rerankers of a collection."""

    rerankers: list[Reranker]


class ReadPairs(Request):
    """One page; `cursor` is the `next_cursor` of the page before."""

    limit: Annotated[int | None, Field(ge=1, le=10_000)] = None
    cursor: str | None = None
    reranker: str | None = Field(None, description="Pairs of this reranker's anchor queries, not those of queries.")


class ScoredPairs(Reply):
    """Pairs that a scorer scored, with the texts it read."""

    pairs: list[dict[str, Any]] = Field(
        examples=[[{"query": "red shoes", "id": "a", "text": "..", "score": 0.7, "scorer": "s", "version": "1"}]]
    )
    next_cursor: str | None


class Job(Reply):
    """Long work and how far it is."""

    id: str
    kind: str
    collection: str | None = None
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    progress: Annotated[float, Field(ge=0, le=1)]
    step: str = ""
    error: str | None = None
    result: Annotated[dict[str, Any] | None, Field(description="What the work has to tell.")] = None
    created_at: Any = None
    finished_at: Any = None


class Jobs(Reply):
    """All jobs the server remembers."""

    jobs: list[Job]


class Quality(Reply):
    """Measured properties of a collection."""

    hub_alerts: list[dict[str, Any]] = Field([], description="Points that stand out as hubs, newest last.")


class Bank(Request):
    """A bank of queries: `vectors`, or `log`: that many of the collection's own live queries (switches the log on)."""

    vectors: Vectors | None = None
    log: int | None = None


class GalleryBank(Request):
    """How many items stand in for queries, for the method `dual_is`."""

    sample: int


class Pairs(Request):
    """Labelled queries: the point that answers each. They decide whether normalisation helps."""

    vectors: Vectors
    ids: list[Id]


class FitHubness(Request):
    """What to fit; only `bank` is required."""

    field: str | None = None
    method: Literal["auto", "is", "dual_is", "nnn", "csls", "sinkhorn"] = "auto"
    strength: float | None = Field(None, description="Needs a method; by default one is chosen by trial.")
    gate: bool = Field(False, description="Normalise only queries whose raw best hit some bank query has, too.")
    bank: Bank
    gallery_bank: GalleryBank | None = None
    pairs: Pairs | None = None
    quarantine: bool = Field(False, description="Keep new points that stand out as hubs from results.")


class Hubness(Reply):
    """A fit in force: what it is, what it does, and the hubs of the collection."""

    field: str
    method: str
    strength: float
    gate: bool
    version: str
    recommended: bool = Field(description="Whether `auto` normalises.")
    reason: str
    bank: dict[str, Any]
    occurrence: dict[str, Any]
    pairs: dict[str, Any] | None = None
    hubs: list[dict[str, Any]]
    fields: dict[str, Any] = Field(description="The same by vector field.")


class RotateHubness(Request):
    """Queries for the oldest block of the bank; without them, some of the query log."""

    field: str | None = None
    vectors: Vectors | None = None


class ReleasePoints(Request):
    """Points to let out of quarantine."""

    ids: list[Id]


class Released(Reply):
    """How many points were in quarantine."""

    released: int
