"""The seam to an expensive relevance model, and how much of it may be asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

from nearfield_index.errors import InvalidRequest

Pair = tuple[str, str]
"""A query's text and an item's text."""


@runtime_checkable
class Scorer(Protocol):
    """A black box that says how relevant a text is to a query; higher is better.

    ``version`` names the model: scores of another version are never mixed with these. An optional attribute
    ``limits`` holds values of :class:`ScorerLimits` by name.
    """

    @property
    def version(self) -> str: ...

    def score(self, pairs: Sequence[Pair], *, timeout_s: float) -> Sequence[float]:
        """One finite number a pair, in order, at most ``max_batch`` pairs a call.

        Called from up to ``max_in_flight`` threads. Any exception is a failed call, which is tried again unless
        the exception's ``retryable`` is False; ``sent`` False says that the model surely saw none of the pairs.
        """
        ...


@dataclass(frozen=True)
class ScorerLimits:
    """How a scorer is asked. Seconds and pairs."""

    max_batch: int = 64
    max_in_flight: int = 4
    timeout_s: float = 10.0
    """Of one call."""
    deadline_s: float = 30.0
    """Of a whole query without a ``timeout_ms`` of its own: what is scored by then is the answer."""
    retries: int = 2
    retry_wait_s: float = 0.05
    """Before the first repetition; doubled each time."""
    max_waiting: int = 20_000
    """Pairs of queries that may wait; past it queries are told to come back."""
    cache_entries: int = 200_000
    """Scores kept, about 150 bytes each; 0 keeps none."""
    linger_s: float = 0.001
    """How long a batch that is not full waits for other queries that are at work."""
    one_query: bool = False
    """Whether a call takes pairs of one query only, as the common HTTP shapes do."""


_LIMITS = frozenset(field.name for field in fields(ScorerLimits))


def limits_of(scorer: Scorer) -> ScorerLimits:
    """The limits a scorer asks for. Raises :class:`InvalidRequest` for one that does not exist or makes no sense."""
    given: Mapping[str, Any] = getattr(scorer, "limits", {})
    unknown = sorted(set(given) - _LIMITS)
    if unknown:
        raise InvalidRequest(f"a scorer has no limit {unknown[0]!r}", field="scorers")
    limits = ScorerLimits(**given)
    if min(limits.max_batch, limits.max_in_flight, limits.max_waiting) < 1 or limits.retries < 0:
        raise InvalidRequest("a scorer needs max_batch, max_in_flight and max_waiting of at least 1", field="scorers")
    if min(limits.timeout_s, limits.deadline_s) <= 0 or limits.cache_entries < 0:
        raise InvalidRequest("a scorer needs timeout_s and deadline_s above 0", field="scorers")
    return limits


class CallableScorer:
    """A function ``f(query, texts) -> scores`` as a scorer, called by one thread at a time."""

    limits: Mapping[str, Any] = {"one_query": True, "max_in_flight": 1}

    def __init__(self, function: Callable[[str, list[str]], Sequence[float]]) -> None:
        self._function = function
        self.version = str(getattr(function, "version", "") or getattr(function, "__name__", "callable"))

    def score(self, pairs: Sequence[Pair], *, timeout_s: float) -> Sequence[float]:
        return self._function(pairs[0][0], [text for _, text in pairs])


def as_scorer(given: object) -> Scorer:
    """A scorer as it is, or a callable made one. Raises :class:`InvalidRequest` for anything else."""
    if isinstance(given, Scorer):
        return given
    if callable(given):
        return CallableScorer(given)
    raise InvalidRequest(
        "a scorer is a callable f(query, texts) or has 'version' and 'score(pairs, timeout_s=..)'", field="scorers"
    )


def digest(*texts: str) -> bytes:
    """16 bytes that stand for these texts."""
    made = hashlib.blake2b(digest_size=16)
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        made.update(len(raw).to_bytes(8, "little") + raw)
    return made.digest()
