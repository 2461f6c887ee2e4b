"""A query and its answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from nearfield.wire.words import Attributes, Filter, Id, Reply, Request, Select, Vector, Vectors, WithParts


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
    field: str | None = Field(None, description="The vector field; without it `vector`, or the only one there is.")
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
