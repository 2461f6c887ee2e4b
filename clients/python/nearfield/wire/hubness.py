"""Hubness: fits, and the points that stand out as hubs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from nearfield.wire.words import Id, Reply, Request, Vectors


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


class Quality(Reply):
    """Measured properties of a collection."""

    hub_alerts: list[dict[str, Any]] = Field([], description="Points that stand out as hubs, newest last.")
