"""What a target must be able to do to be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from loadtests.targets.process import Usage

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Setting = Mapping[str, Any]
"""How a query is to be answered, in the target's own terms: ``{"recall": 0.95}``, ``{"ef": 64}``."""
Where = tuple[str, Any] | None
"""Only points whose attribute has this value."""


@dataclass(frozen=True)
class Answer:
    """The ids of one query, best first, (k,) padded with -1; ``ms`` what the target says it took, if it does."""

    ids: Integers
    ms: float | None = None


class Target(Protocol):
    """A search engine with one collection. ``start`` comes first, ``stop`` last; then it may be started again.

    Ids are row numbers. ``query`` and ``query_batch`` may be called from several threads, also during the other calls.
    """

    name: ClassVar[str]
    durable: ClassVar[bool]
    """Whether a load that returned survives power loss."""
    settings: ClassVar[tuple[Setting, ...]]
    """What the recall workload sweeps, cheapest first."""
    usual: ClassVar[Setting]
    """What a user gets who asks for nothing."""
    thorough: ClassVar[Setting]
    """Exact, or as near as the target comes."""

    def start(self, directory: Path, *, dim: int, metric: str) -> None:
        """Begin with an empty collection; ``directory`` is empty and the target's own."""

    def load(self, ids: Integers, vectors: Floats, attributes: Mapping[str, NDArray[Any]]) -> None:
        """Write points, replacing those that exist, in as many requests as the target's client likes."""

    def optimize(self, queries: Floats | None = None) -> None:
        """Finish all index work, with a sample of queries to learn from; returns when it is done."""

    def query(self, vector: Floats, k: int, setting: Setting, where: Where = None) -> Answer:
        """One query, (d,)."""

    def query_batch(self, vectors: Floats, k: int, setting: Setting, where: Where = None) -> Integers:
        """Many queries in one call, (m, d); ids (m, k)."""

    def delete(self, ids: Integers) -> None:
        """Delete points; returns when they are gone from answers."""

    def usage(self) -> Usage:
        """Processor time and memory so far of the process that does the target's work."""

    def describe(self) -> dict[str, Any]:
        """Facts worth a record: parameters, segments, bytes."""

    def stop(self) -> None:
        """Give everything back; harmless when not started."""
