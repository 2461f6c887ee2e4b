"""The service itself: errors, health, limits, and its jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from nearfield.wire.words import Reply


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
