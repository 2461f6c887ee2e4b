"""When to send, wait and give up: one generator that the blocking and the awaiting client both drive.

It does no I/O and reads no clock but the one it is given: the client does what it yields (``Send`` or
``Sleep``) and tells it what came of it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from nearfield.errors import Busy, ConnectionFailed, Error, ReadOnly, ScorerFailed, StorageFailed

RETRIED_STATUSES = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class Policy:
    """Bounds of one call, all attempts together. ``max_attempts=1`` switches retries off."""

    max_attempts: int = 5
    first_wait_s: float = 0.1
    longest_wait_s: float = 5.0
    deadline_s: float = 120.0


@dataclass(frozen=True)
class Send:
    """Send the request now; the next ``send()`` into the generator tells a reply or an Error."""

    attempt: int


@dataclass(frozen=True)
class Sleep:
    """Wait so long, then go on with ``send(None)``."""

    seconds: float


Reply = Mapping[str, Any]
Steps = Generator[Send | Sleep, Reply | Error | None, Reply]


def steps(
    *,
    idempotent: bool,
    policy: Policy | None = None,
    clock: Callable[[], float] = time.monotonic,
    jitter: Callable[[], float] = random.random,
) -> Steps:
    """Yield what to do until a reply is there, and return that reply.

    ``clock`` gives seconds, ``jitter`` numbers in [0, 1). Raises the last Error when it may not, or
    need not, be tried again.
    """
    policy = policy or Policy()
    ends = clock() + policy.deadline_s
    attempt = 0
    while True:
        attempt += 1
        outcome = yield Send(attempt)
        if outcome is None:
            raise RuntimeError("the outcome of a Send must be told")
        if not isinstance(outcome, Error):
            return outcome
        if attempt >= policy.max_attempts or not may_retry(outcome, idempotent):
            raise outcome
        wait = wait_before(attempt, outcome.retry_after, policy, jitter())
        if clock() + wait >= ends:
            raise outcome
        yield Sleep(wait)


def may_retry(failure: Error, idempotent: bool) -> bool:
    """Whether trying again can help and does no harm.

    What was surely not carried out (refused as busy, or never sent) may be repeated whatever it was; what may
    have been carried out, only when it is idempotent.
    """
    if isinstance(failure, ConnectionFailed):
        return not failure.sent or (idempotent and failure.code != "timeout")
    if isinstance(failure, Busy):
        return True
    if isinstance(failure, (ReadOnly, StorageFailed, ScorerFailed)):  # only an operator can mend it
        return False
    return idempotent and failure.status in RETRIED_STATUSES


def wait_before(attempt: int, retry_after: float | None, policy: Policy, jitter: float) -> float:
    """Seconds until the next attempt: full jitter on a doubling bound, and never before ``Retry-After``."""
    bound = min(policy.longest_wait_s, policy.first_wait_s * 2.0 ** (attempt - 1))
    return max(bound * jitter, retry_after or 0.0)


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Read a ``Retry-After`` header, in seconds or as an HTTP date; None where it says nothing usable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - (now or datetime.now(UTC))).total_seconds()
        except (TypeError, ValueError):
            return None
    return seconds if 0 <= seconds < 86_400 else None
