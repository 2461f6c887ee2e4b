"""Rerankers: fitted from anchor queries, and the pairs that were scored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from nearfield.wire.words import Reply, Request, Vectors


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
