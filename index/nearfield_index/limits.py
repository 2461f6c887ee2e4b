"""The documented maximum of every number a request may carry. All on by default, all settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked before anything is allocated. ``GET /v1`` tells them."""

    body_bytes: int = 64 * 1024 * 1024
    reply_bytes: int = 128 * 1024 * 1024
    """Of the hits of one query request, as written; bounds the service, like ``body_bytes``."""
    points: int = 10_000
    queries: int = 10_000
    k: int = 10_000
    hits: int = 1_000_000
    """queries x (k + offset) of one request."""
    query_cost: int = 20_000_000_000
    """queries x (k + offset) x dim of one request."""
    dim: int = 65_536
    collections: int = 1_000
    filter_depth: int = 32
    filter_conditions: int = 256
    filter_values: int = 10_000
    id_bytes: int = 256
    attribute_bytes: int = 1024 * 1024
    attribute_depth: int = 8
    attribute_keys: int = 256
    attribute_names: int = 4_096
    """Distinct attribute names of a collection, nested ones by their dotted name."""
    text_bytes: int = 1024 * 1024
    rerank_calls: int = 10_000
    """Queries x budget of one request with ``rerank``."""
    rerank_query_bytes: int = 16 * 1024
    rerank_anchors: int = 2_000
    """Anchor queries of one reranker."""
    logged_pairs: int = 1_000_000
    """Scored pairs of queries that a collection keeps for training; 0 keeps none."""
    rerankers: int = 16
    """Of one collection."""
    scan_page: int = 10_000
    facet_values: int = 10_000
    waiting_writes: int = 256
    waiting_bytes: int = 64 * 1024 * 1024
    tail_bytes: int = 64 * 1024 * 1024
    """A tail of this size becomes a flat segment."""
    unsealed_bytes: int = 256 * 1024 * 1024
    """Past this many bytes that could not become a flat segment, writes fail with the reason why."""

    def to_wire(self) -> dict[str, int]:
        return asdict(self)
