"""Measured recall: a sample of live queries is answered again exactly, later, against the very view they saw.

The sample costs the query a random number; replays run in the background worker and pause for 66 times the processor
time they took, so that they stay under 1.8 % of one core. Estimates are kept per plan and selectivity bucket.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from nearfield_index.execution.batch import Report, Search
from nearfield_index.execution.run import run
from nearfield_index.execution.topk import Candidates
from nearfield_index.schema import Metric
from nearfield_index.segments.part import FindKeys
from nearfield_index.segments.view import View

_log = logging.getLogger(__name__)

Doubles = np.ndarray[Any, np.dtype[np.float64]]

_WAITING = 32
_VIEWS = 3  # an old view keeps its tail and its segments in memory
_REST = 66.0
_LARGEST_K = 1_000
_TIES = 1e-5  # approximate answers carry float32 scores
_ENOUGH = 200
"""Samples of a bucket before a miss is believed."""
_SHOWN = 30
_EVENTS = 20
_EDGES = (0.0001, 0.001, 0.01, 0.1, 0.5, 1.0)
_MOST_MARGIN = 0.04


def bucket_of(selectivity: float) -> str:
    """The name of the selectivity bucket: its upper end."""
    return f"<={next((edge for edge in _EDGES if selectivity <= edge), 1.0):g}"


@dataclass(frozen=True)
class _Sample:
    view: View
    search: Search
    metric: Metric
    find_keys: FindKeys
    scores: Doubles
    bucket: tuple[str, str]


@dataclass
class _Tally:
    """Recalls of the samples of one bucket: how many, their sum, the sum of their squares."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, recall: float) -> None:
        self.count += 1
        self.total += recall
        self.squares += recall * recall

    def interval(self) -> tuple[float, float, float]:
        """Mean recall with its 95 % interval. One imaginary miss keeps a spotless sample from certainty."""
        mean = self.total / self.count
        shrunk = (self.total + 0.5) / (self.count + 1)
        spread = max(0.0, self.squares / self.count - mean * mean)
        half = 1.96 * math.sqrt((spread + shrunk * (1 - shrunk) / self.count) / self.count)
        return mean, max(0.0, mean - half), min(1.0, mean + half)


class RecallMonitor:
    """Samples, replays and tallies. ``rate`` is the share of queries that are looked at again (0 switches it off)."""

    def __init__(self, *, rate: float, submit: Callable[[Callable[[], None]], None]) -> None:
        """``submit`` runs a function in the background worker, behind everything else."""
        self._rate = rate
        self._submit = submit
        self._lock = Lock()
        self._waiting: deque[_Sample] = deque()
        self._scheduled = False
        self._resume = 0.0
        self._tallies: dict[tuple[str, str], _Tally] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS)
        self._cpu_s = 0.0
        self.margin = 0.0
        """Added to targets after a miss was measured."""

    def consider(
        self,
        view: View,
        search: Search,
        target: float,
        metric: Metric,
        find_keys: FindKeys,
        found: Candidates,
        report: Report,
    ) -> None:
        """Maybe keep one query of a batch, which asked for recall ``target``, for a replay."""
        count = len(found.scores)
        if self._rate <= 0 or target >= 1.0 or search.k > _LARGEST_K or not count:
            return
        if random.random() >= self._rate * count:
            return
        row = random.randrange(count)
        plan = report.plan_of(row)
        if plan is None or plan.kind in ("exact", "none"):
            return  # exact answers need no second look
        expr = search.filters[row if len(search.filters) > 1 else 0]
        one = Search(search.field, search.vectors[row : row + 1], [expr], search.k, target)
        sample = _Sample(
            view, one, metric, find_keys, found.scores[row].copy(), (plan.kind, bucket_of(plan.selectivity))
        )
        with self._lock:
            views = {id(waiting.view) for waiting in self._waiting} | {id(view)}
            if len(self._waiting) < _WAITING and len(views) <= _VIEWS:
                self._waiting.append(sample)
            due = not self._scheduled and time.monotonic() >= self._resume
            self._scheduled = self._scheduled or due
        if due:
            self._submit(self._replay)

    def _replay(self) -> None:
        start = time.thread_time()
        try:
            for _ in range(_WAITING):  # what arrives meanwhile waits for the rest to be over
                with self._lock:
                    if not self._waiting:
                        return
                    sample = self._waiting.popleft()
                exact = Search(sample.search.field, sample.search.vectors, sample.search.filters, sample.search.k, 1.0)
                truth, _ = run(sample.view, exact, sample.metric, {}, sample.find_keys)
                self._tally(sample, truth.scores[0])
        finally:
            with self._lock:
                spent = time.thread_time() - start
                self._cpu_s += spent
                self._scheduled = False
                self._resume = time.monotonic() + _REST * spent

    def _tally(self, sample: _Sample, truth: Doubles) -> None:
        wanted = truth[np.isfinite(truth)]
        if not len(wanted):
            return
        worst = wanted[-1]
        good = int((sample.scores >= worst - _TIES * max(1.0, abs(worst))).sum())
        with self._lock:
            tally = self._tallies.setdefault(sample.bucket, _Tally())
            tally.add(min(1.0, good / len(wanted)))
            mean, _, high = tally.interval()
            if tally.count >= _ENOUGH and high < sample.search.recall:
                self._miss(sample, mean, high)

    def _miss(self, sample: _Sample, mean: float, high: float) -> None:
        """The target was missed with confidence: aim higher from now on, and measure anew."""
        self.margin = min(_MOST_MARGIN, self.margin + sample.search.recall - mean)
        event = {
            "at": time.time(),
            "plan": sample.bucket[0],
            "selectivity": sample.bucket[1],
            "target": sample.search.recall,
            "recall": round(mean, 4),
            "margin": round(self.margin, 4),
        }
        self._events.append(event)
        self._tallies.clear()
        _log.warning("measured recall %.4f (at most %.4f) missed its target: %s", mean, high, event)

    def interval(self, report: Report) -> list[float] | None:
        """The measured 95 % interval of a single query's bucket, once there are samples enough to show."""
        if not report.groups:
            return None
        plan = report.groups[0][1]
        if plan.kind in ("exact", "none"):
            return [1.0, 1.0]
        with self._lock:
            tally = self._tallies.get((plan.kind, bucket_of(plan.selectivity)))
            if tally is None or tally.count < _SHOWN:
                return None
            _, low, high = tally.interval()
        return [round(low, 4), round(high, 4)]

    def to_wire(self) -> dict[str, Any]:
        """What ``/quality`` shows: an estimate with its interval per plan and bucket, and what was corrected."""
        with self._lock:
            buckets = []
            for (plan, selectivity), tally in sorted(self._tallies.items()):
                mean, low, high = tally.interval()
                buckets.append(
                    {
                        "plan": plan,
                        "selectivity": selectivity,
                        "samples": tally.count,
                        "recall": round(mean, 4),
                        "interval": [round(low, 4), round(high, 4)],
                    }
                )
            return {
                "rate": self._rate,
                "margin": round(self.margin, 4),
                "cpu_s": round(self._cpu_s, 3),
                "buckets": buckets,
                "events": [*self._events],
            }
