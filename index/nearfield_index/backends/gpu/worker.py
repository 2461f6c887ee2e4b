"""One thread per device: it alone talks to the GPU, and answers together what waits together.

A FAISS index on a GPU serves one search at a time, so requests queue up for the one thread that owns the device. While
it works others arrive; it then takes all of them at once and joins those that ask the same index under the same filter
at the same effort and a like k. Nothing is ever delayed for the sake of a larger batch.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any, Protocol, TypeVar

import numpy as np

from nearfield_index.backends.base import Floats, Rows
from nearfield_index.backends.gpu.health import DeviceFailed, Health, IndexClosed
from nearfield_index.bitmap import Bitmap

_log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_WAITING = 1_024
_PATIENCE_S = 10.0
_LEAST_CLASS = 16


class Called(Protocol):
    """An index on the device. Both methods are called in the worker's thread."""

    def most_queries(self, k: int, within: Bitmap | None) -> int:
        """How many queries a single call may carry before it needs too much memory."""
        ...

    def call(self, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        """The best k rows of each query, ``(n, k)``, as :meth:`Searcher.search` gives them."""
        ...


@dataclass
class _Search:
    index: Called
    queries: Floats
    k: int
    effort: int
    within: Bitmap | None
    done: Future[tuple[Floats, Rows]] = field(default_factory=Future)

    @property
    def key(self) -> tuple[int, int, int, int]:
        """Searches of one key can be one call. Index and filter are held by each, so that their ids mean them."""
        return id(self.index), self.effort, k_class(self.k), id(self.within)


@dataclass
class _Task:
    work: Callable[[], Any]
    done: Future[Any] = field(default_factory=Future)


def k_class(k: int) -> int:
    """The next power of two: a search for 10 and one for 12 may share a call, one for 1,000 is not made to wait."""
    return max(_LEAST_CLASS, 1 << (k - 1).bit_length())


class Worker:
    """The thread of one device, its queue, and what it counts."""

    def __init__(self, name: str, health: Health, probe: Callable[[], None]) -> None:
        """``probe`` is called in the thread to see whether the device works again; it raises where it does not."""
        self._health = health
        self._probe = probe
        self._wakes = Condition()
        self._searches: deque[_Search] = deque()
        self._tasks: deque[_Task] = deque()
        self._closed = False
        self._occupied = 0
        self.calls = 0
        self.queries = 0
        self._thread = Thread(target=self._loop, name=f"nearfield-{name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Searches that wait."""
        return len(self._searches)

    @property
    def free(self) -> bool:
        """Whether a search would be taken up soon: no build or upload is at work or due."""
        return not self._occupied and not self._closed

    def search(self, index: Called, queries: Floats, k: int, effort: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        """The answer of an index on the device; waits for it. Raises :class:`DeviceFailed` where there will be none."""
        asked = _Search(index, queries, k, effort, within)
        with self._wakes:
            if not self._health.up:
                raise DeviceFailed(f"the device is down: {self._health.reason}")
            if not self.free:
                raise DeviceFailed("the device is building or closed")
            if len(self._searches) >= _MOST_WAITING:
                raise DeviceFailed(f"{_MOST_WAITING} searches wait already")
            self._searches.append(asked)
            self._wakes.notify()
        try:
            return asked.done.result(_PATIENCE_S)
        except Late:
            late = DeviceFailed(f"no answer within {_PATIENCE_S:.0f} s")
            self.failed(late)
            raise late from None

    def failed(self, error: BaseException) -> None:
        """Something found out that the device does not work; it is tried again in a while, whoever asks or not."""
        self._health.failed(error)
        with self._wakes:
            self._wakes.notify()

    def run(self, work: Callable[[], T], *, patience_s: float | None = None) -> T:
        """Run something long in the device's thread: a build, an upload. Searches go to the CPU meanwhile.

        Whatever ``work`` raises is raised here, and :class:`DeviceFailed` when it was not done in time.
        """
        task = _Task(work)
        with self._wakes:
            if self._closed:
                raise DeviceFailed("the device is closed")
            self._occupied += 1
            self._tasks.append(task)
            self._wakes.notify()
        try:
            found: T = task.done.result(patience_s)
        except Late:
            raise DeviceFailed(f"the device is still at work after {patience_s} s") from None
        finally:
            with self._wakes:
                self._occupied -= 1
        return found

    def close(self) -> None:
        """Answer what waits with :class:`DeviceFailed` and end the thread."""
        with self._wakes:
            self._closed = True
            self._wakes.notify()
        self._thread.join(_PATIENCE_S)

    # ------------------------------------------------------------------ the thread

    def _loop(self) -> None:
        while True:
            with self._wakes:
                due = self._health.due
                while not (self._searches or self._tasks or self._closed or due == 0.0):
                    self._wakes.wait(due)
                    due = self._health.due
                searches, tasks = [*self._searches], [*self._tasks]
                self._searches.clear()
                self._tasks.clear()
                if self._closed:
                    waiting: list[Future[Any]] = [*(each.done for each in searches), *(each.done for each in tasks)]
                    for done in waiting:
                        done.set_exception(DeviceFailed("the device is closed"))
                    return
            self._work_off(searches, tasks)
            del searches, tasks  # or the last round's arrays would live until the next
            if self._health.due == 0.0:
                self._try_again()

    def _work_off(self, searches: list[_Search], tasks: list[_Task]) -> None:
        """What waited is answered before a build begins: nobody who came earlier waits for it."""
        self._answer_all(searches)
        for task in tasks:
            _settle(task.done, task.work)

    def _try_again(self) -> None:
        try:
            self._probe()
        except Exception as error:
            self._health.failed(error)
        else:
            self._health.probed()

    def _answer_all(self, searches: list[_Search]) -> None:
        groups: dict[tuple[int, int, int, int], list[_Search]] = {}
        filters: list[Bitmap] = []
        for search in searches:
            search.within = _known(search.within, filters)
            groups.setdefault(search.key, []).append(search)
        for group in groups.values():
            if not self._health.up:  # an earlier group of this round found out
                for search in group:
                    search.done.set_exception(DeviceFailed(f"the device is down: {self._health.reason}"))
                continue
            try:
                self._answer(group)
            except Exception as error:
                if not isinstance(error, IndexClosed):
                    self._health.failed(error)
                for search in group:
                    search.done.set_exception(DeviceFailed(str(error)))

    def _answer(self, group: list[_Search]) -> None:
        first = group[0]
        k = max(search.k for search in group)
        queries = first.queries if len(group) == 1 else np.concatenate([search.queries for search in group])
        most = max(1, first.index.most_queries(k, first.within))
        blocks = [
            first.index.call(queries[start : start + most], k, first.effort, first.within)
            for start in range(0, len(queries), most)
        ]
        found, rows = blocks[0] if len(blocks) == 1 else map(np.concatenate, zip(*blocks, strict=True))
        self.calls += len(blocks)
        self.queries += len(queries)
        self._health.answered()
        start = 0
        for search in group:
            stop = start + len(search.queries)
            search.done.set_result((found[start:stop, : search.k], rows[start:stop, : search.k]))
            start = stop


def _known(within: Bitmap | None, filters: list[Bitmap]) -> Bitmap | None:
    """The same set among ``filters``, which it joins where it is new: equal filters come in different objects."""
    if within is None:
        return None
    for other in filters:
        if other is within or (
            other.n == within.n and other.count == within.count and np.array_equal(other.words(), within.words())
        ):
            return other
    filters.append(within)
    return within


def _settle(done: Future[Any], work: Callable[[], Any]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(error)
