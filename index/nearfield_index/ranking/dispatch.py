"""One scorer asked by many: pairs of concurrent queries share batches, calls are bounded, failures are told apart.

A pair that two queries want is asked once. Queries go before background work. Every pair sent is paid for from the
allowance of whoever waits for it, repetitions too: a scorer never sees more pairs of a query than its budget.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from nearfield_index.errors import Busy, ScorerFailed
from nearfield_index.ranking.scorer import Pair, Scorer, digest, limits_of

Doubles = np.ndarray[Any, np.dtype[np.float64]]

_log = logging.getLogger(__name__)

_IDLE_S = 10.0
_QUIET_S = 10.0
_SMOOTHING = 0.2


class _Ticket:
    """One pair on its way, with the asks that wait for it."""

    __slots__ = ("asks", "attempts", "background", "key", "pair", "queried", "value")

    def __init__(self, pair: Pair, key: bytes, queried: bytes, background: bool) -> None:
        self.pair = pair
        self.key = key
        self.queried = queried
        self.background = background
        self.attempts = 0
        self.value: float | None = None
        self.asks: list[Ask] = []


class Ask:
    """What one caller wants scored at once. ``scores`` is NaN where there is none (yet)."""

    def __init__(self, count: int, allowance: int) -> None:
        self.scores: Doubles = np.full(count, np.nan)
        self.cached = 0
        """Pairs that cost no call of this caller: kept, or on their way for another."""
        self.sent = 0
        """Pairs sent for this caller, repetitions included."""
        self.left = allowance
        self.error: str | None = None
        self.gone = False
        """Whether a call failed for good (rather than being slow)."""
        self._places: dict[bytes, list[int]] = {}
        self._open: dict[bytes, _Ticket] = {}
        self._paid: set[bytes] = set()
        self._done = threading.Event()

    @property
    def open(self) -> int:
        """Pairs that are not settled yet."""
        return len(self._open)

    def wait(self, seconds: float) -> bool:
        """Wait until every pair is settled; returns whether it is."""
        return self._done.wait(max(0.0, seconds))

    def _settle(self, ticket: _Ticket, value: float | None, error: str | None) -> None:
        if self._open.pop(ticket.key, None) is None:
            return
        if value is None:
            self.error, self.gone = error, True
        else:
            self.scores[self._places[ticket.key]] = value
        if not self._open:
            self._done.set()


class Dispatcher:
    """The one way to a scorer. Thread-safe; its threads come with work and leave after ten idle seconds."""

    def __init__(self, name: str, scorer: Scorer) -> None:
        self.name = name
        self.scorer = scorer
        self.limits = limits_of(scorer)
        self.calls = 0
        self.pairs = 0
        self.failures = 0
        self.pairs_per_second: float | None = None
        self._cache: OrderedDict[bytes, float] = OrderedDict()
        self._tickets: dict[bytes, _Ticket] = {}
        self._queues: tuple[deque[_Ticket], deque[_Ticket]] = (deque(), deque())
        self._active = 0
        self._threads = 0
        self._idle = 0
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._quiet_until = 0.0

    @property
    def version(self) -> str:
        """The version of the scorer, as of now."""
        return str(self.scorer.version)

    def close(self) -> None:
        """Settle everything as failed, start no more calls and close the scorer where it can be closed; a call that
        runs is left to end."""
        with self._changed:
            self._closed.set()
            for ticket in list(self._tickets.values()):
                self._finish(ticket, None, "the scorer was closed")
            self._changed.notify_all()
        close = getattr(self.scorer, "close", None)
        if callable(close):
            close()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, batches may wait a moment for this caller's next pairs."""
        with self._changed:
            self._active += 1
        try:
            yield
        finally:
            with self._changed:
                self._active -= 1

    # ------------------------------------------------------------------ asking

    def ask(self, pairs: Sequence[Pair], *, allowance: int, background: bool = False) -> Ask:
        """Start scoring; ``allowance`` bounds the pairs sent, repetitions included (a pair beyond it fails).

        Raises :class:`Busy` when too many pairs wait already.
        """
        return self.ask_all([(pairs, allowance)], background=background)[0]

    def ask_all(self, wanted: Sequence[tuple[Sequence[Pair], int]], *, background: bool = False) -> list[Ask]:
        """Start scoring for several callers at once, each with its pairs and its allowance: they share batches."""
        version = self.version
        queried = {query: digest(version, query) for query in dict.fromkeys(q for pairs, _ in wanted for q, _ in pairs)}
        keyed = [[queried[query] + digest(text) for query, text in pairs] for pairs, _ in wanted]
        count = sum(map(len, keyed))
        asks = [Ask(len(pairs), allowance) for pairs, allowance in wanted]
        with self._changed:
            if self._closed.is_set():
                raise ScorerFailed(f"the scorer {self.name} was closed")
            if not background and len(self._queues[0]) + count > max(self.limits.max_waiting, count):
                raise Busy(f"too many pairs wait for the scorer {self.name}", retry_after=1.0)
            for ask, keys, (pairs, _) in zip(asks, keyed, wanted, strict=True):
                for place, (key, pair) in enumerate(zip(keys, pairs, strict=True)):
                    self._add(ask, place, key, pair, queried[pair[0]], background)
                if not ask._open:
                    ask._done.set()
            if any(self._queues):
                self._wake()
        return asks

    def _add(self, ask: Ask, place: int, key: bytes, pair: Pair, queried: bytes, background: bool) -> None:
        known = self._cache.get(key)
        if known is not None:
            self._cache.move_to_end(key)
            ask.scores[place] = known
            ask.cached += 1
            return
        if key in ask._open:  # twice in one ask
            ask._places[key].append(place)
            ask.cached += 1
            return
        ticket = self._tickets.get(key)
        if ticket is not None:
            ask.cached += 1
        elif ask.left < 1:
            ask.error = ask.error or "the budget is used up"
            return
        else:
            ticket = self._tickets[key] = _Ticket(pair, key, queried, background)
            ask.left -= 1
            ask.sent += 1
            ask._paid.add(key)
            self._queues[background].append(ticket)
        ticket.asks.append(ask)
        ask._open[key] = ticket
        ask._places[key] = [place]

    def abandon(self, ask: Ask) -> None:
        """Stop waiting: pairs that nobody else wants and that were not sent yet are dropped."""
        with self._changed:
            for ticket in ask._open.values():
                ticket.asks.remove(ask)
                if not ticket.asks and ticket.attempts == 0:
                    self._forget(ticket)
                    ask.sent -= ticket.key in ask._paid
            ask._open = {}
            ask._done.set()

    # ------------------------------------------------------------------ working

    def _wake(self) -> None:
        """Have a thread for what waits, within the limit of calls in flight. Called under the lock."""
        self._changed.notify()
        if self._idle == 0 and self._threads < self.limits.max_in_flight:
            self._threads += 1
            name = f"nearfield-scorer-{self.name}-{next(self._numbers)}"
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._changed:
                batch = self._next()
                if not batch:
                    self._threads -= 1
                    return
                for ticket in batch:
                    ticket.attempts += 1
            values, error, sent, retryable = self._call(batch)
            with self._changed:
                again = [
                    t for t, v in zip(batch, values, strict=True) if not self._conclude(t, v, error, sent, retryable)
                ]
            if again:
                self._closed.wait(self.limits.retry_wait_s * 2.0 ** (again[0].attempts - 1))
                with self._changed:
                    for ticket in again:
                        self._queues[ticket.background].appendleft(ticket)

    def _next(self) -> list[_Ticket]:
        """The next batch, waited for; empty when this thread may go. Called under the lock."""
        patient = True
        while not self._closed.is_set():
            self._prune()
            front = self._queues[0]
            if front and patient and self._might_grow():
                patient = False  # once
                self._changed.wait(self.limits.linger_s)
                continue
            for queue in self._queues:
                if queue:
                    batch = self._take(queue)
                    if any(self._queues):
                        self._wake()
                    return batch
            self._idle += 1
            woken = self._changed.wait(_IDLE_S)
            self._idle -= 1
            if not woken and not any(self._queues):
                break
        return []

    def _prune(self) -> None:
        """Drop what nobody waits for at the front of the queues, so that they do not outgrow their bound."""
        for queue in self._queues:
            while queue and not queue[0].asks:
                self._forget(queue.popleft())

    def _might_grow(self) -> bool:
        front = self._queues[0]
        if self.limits.linger_s <= 0 or len(front) >= self.limits.max_batch:
            return False
        if self.limits.one_query or self._active < 2:
            return False
        waiting = {id(ask) for ticket in front for ask in ticket.asks}
        return len(waiting) < self._active

    def _take(self, queue: deque[_Ticket]) -> list[_Ticket]:
        batch: list[_Ticket] = []
        rest: list[_Ticket] = []
        while queue and len(batch) < self.limits.max_batch:
            ticket = queue.popleft()
            if not ticket.asks:
                self._forget(ticket)
            elif batch and self.limits.one_query and ticket.queried != batch[0].queried:
                rest.append(ticket)
                if len(rest) >= 4 * self.limits.max_batch:
                    break
            else:
                batch.append(ticket)
        queue.extendleft(reversed(rest))
        return batch

    def _call(self, batch: Sequence[_Ticket]) -> tuple[Doubles, str | None, bool, bool]:
        """Values (NaN where there is none), why not, whether the model saw the pairs, whether to try again."""
        start = time.perf_counter()
        nothing = np.full(len(batch), np.nan)
        try:
            values = np.asarray(
                self.scorer.score([ticket.pair for ticket in batch], timeout_s=self.limits.timeout_s), np.float64
            )
        except Exception as failure:
            reason = f"{type(failure).__name__}: {failure}" if str(failure) else type(failure).__name__
            self._count(len(batch), start, failed=True)
            self._complain(reason)
            return nothing, reason, getattr(failure, "sent", True), getattr(failure, "retryable", True)
        if values.shape != (len(batch),):
            self._count(len(batch), start, failed=True)
            reason = f"it answered {values.size} scores for {len(batch)} pairs"
            self._complain(reason)
            return nothing, reason, True, True
        finite = np.isfinite(values)
        self._count(len(batch), start, failed=not finite.all())
        if finite.all():
            return values, None, True, True
        self._complain("it answered NaN or infinity")
        return np.where(finite, values, np.nan), "it answered NaN or infinity", True, True

    def _complain(self, reason: str) -> None:
        """Log why a call failed, now and then: replies name no reason, it may hold what a stranger sent."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET_S
            _log.warning("a call of scorer %s failed (%d so far): %s", self.name, self.failures, reason)

    def _count(self, pairs: int, start: float, *, failed: bool) -> None:
        speed = pairs / max(1e-6, time.perf_counter() - start)
        with self._changed:
            self.calls += 1
            self.pairs += pairs
            if failed:
                self.failures += 1
                return
            old = self.pairs_per_second
            self.pairs_per_second = speed if old is None else old + _SMOOTHING * (speed - old)

    def _conclude(self, ticket: _Ticket, value: float, error: str | None, sent: bool, retryable: bool) -> bool:
        """Settle a pair, or return False where it is to be sent again. Called under the lock."""
        if value == value:
            self._finish(ticket, float(value), None)
            return True
        if not retryable or ticket.attempts > self.limits.retries or self._closed.is_set():
            self._finish(ticket, None, error)
            return True
        for ask in list(ticket.asks):
            if sent and ask.left < 1:
                ticket.asks.remove(ask)
                ask._settle(ticket, None, error)
            elif sent:
                ask.left -= 1
                ask.sent += 1
        if not ticket.asks:
            self._forget(ticket)
        return not ticket.asks

    def _finish(self, ticket: _Ticket, value: float | None, error: str | None) -> None:
        self._forget(ticket)
        if value is not None and self.limits.cache_entries:
            self._cache[ticket.key] = value
            while len(self._cache) > self.limits.cache_entries:
                self._cache.popitem(last=False)
        for ask in ticket.asks:
            ask._settle(ticket, value, error)
        ticket.asks = []

    def _forget(self, ticket: _Ticket) -> None:
        """Nobody new may join a ticket that is settled or dropped; a later one of the same pair is another."""
        if self._tickets.get(ticket.key) is ticket:
            del self._tickets[ticket.key]
