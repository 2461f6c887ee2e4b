"""Who may work now, who waits, who is told to come back: permits and threads for each kind of call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from threading import Lock
from time import monotonic
from typing import Any, Literal, TypeVar

from starlette.requests import ClientDisconnect

from nearfield_server.errors import Problem, overloaded
from nearfield_server.settings import Admission as AdmissionSettings

Result = TypeVar("Result")
LaneName = Literal["search", "rerank", "write", "control"]

WRITE_THREADS = 32
"""Writers block until their group is committed, so many of them share one sync."""
CONTROL_THREADS = 4
CONTROL_QUEUE = 64
MEBIBYTE = 1024 * 1024


class Place:
    """One admitted request: counts towards its lane, and carries the bytes it holds in memory."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.bytes = 0

    def hold(self, total: int) -> None:
        """Account for a body that is ``total`` bytes by now; raise Problem where the lane has no room for it.

        A body that is alone in its lane always fits: how large one may be is another limit.
        """
        self._lane.grow(self, total)


class NoRoom(Exception):
    """The hits of a search do not fit beside those of the searches that run."""

    def __init__(self, hits: int) -> None:
        super().__init__()
        self.hits = hits


class Room:
    """How many hits all running searches may look for together. One search alone always fits: how many hits it may
    have is another limit. Taken and given back in threads, waited for in the event loop."""

    def __init__(self, most: int, patience: float) -> None:
        self.held = 0
        self._most = most
        self._patience = patience
        self._lock = Lock()
        self._freed = asyncio.Event()
        self._first = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = 0

    def take(self, hits: int) -> None:
        """Raise NoRoom, or count ``hits`` until they are given back. Small searches pass large ones that wait."""
        with self._lock:
            if not self._fits(hits):
                raise NoRoom(hits)
            self.held += hits

    def give(self, hits: int) -> None:
        with self._lock:
            self.held -= hits
            loop = self._loop
        if loop is not None and self._waiting:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(self._freed.set)

    def patience(self) -> float:
        """When who begins to wait now is to give up."""
        return monotonic() + self._patience

    async def wait(self, hits: int, until: float) -> None:
        """Return when so many hits may fit; raise Problem 429 past ``until``."""
        self._loop = asyncio.get_running_loop()
        self._waiting += 1
        try:
            async with asyncio.timeout(until - monotonic()), self._first:
                self._freed.clear()
                while not self._fits(hits):
                    await self._freed.wait()
                    self._freed.clear()
        except TimeoutError:
            detail = f"The searches that run leave no room for {hits} hits (queries x k), of {self._most} together."
            raise overloaded(429, detail, retry_after=1.0) from None
        finally:
            self._waiting -= 1

    def _fits(self, hits: int) -> bool:
        return not self.held or self.held + hits <= self._most


class Lane:
    """One kind of call: a bounded number at work in own threads, a bounded number waiting, a bounded memory.

    ``status`` is what the refused are told: 503 where waiting would not help soon, 429 for writers.
    """

    def __init__(
        self,
        name: LaneName,
        *,
        at_work: int,
        waiting: int,
        patience: float,
        max_bytes: int,
        status: int,
        threads: int,
    ) -> None:
        self.name = name
        self.bytes = 0
        self.places = 0
        self.working = 0
        self._capacity = at_work + waiting
        self._max_bytes = max_bytes
        self._patience = patience
        self._status = status
        self._permits = asyncio.Semaphore(at_work)
        self._calls: set[Future[Any]] = set()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"nearfield-{name}")

    @property
    def waiting(self) -> int:
        """Requests let in that do not hold a permit: their body is arriving, or they queue."""
        return self.places - self.working

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        """Let a request in, or raise the problem that tells it to come back. Reads nothing of it."""
        if self.places >= self._capacity:
            raise self._refusal(f"The {self.name} queue is full.")
        place = Place(self)
        self.places += 1
        try:
            yield place
        finally:
            self.places -= 1
            self.bytes -= place.bytes

    async def run(self, work: Callable[[], Result], has_left: Callable[[], Awaitable[bool]]) -> Result:
        """Run ``work`` in a thread of this lane once there is a permit; wait no longer than the patience.

        Raises Problem where the patience ends first, ClientDisconnect where the caller left while it waited.
        """
        must_wait = self._permits.locked()
        try:
            async with asyncio.timeout(self._patience if must_wait else None):
                await self._permits.acquire()
        except TimeoutError:
            raise self._refusal(f"The {self.name} queue did not move in time.") from None
        self.working += 1
        try:
            if must_wait and await has_left():
                raise ClientDisconnect
            call = self._threads.submit(work)
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            return await asyncio.wrap_future(call)
        finally:
            self.working -= 1
            self._permits.release()

    def grow(self, place: Place, total: int) -> None:
        others = self.bytes - place.bytes
        if others and others + total > self._max_bytes:
            raise self._refusal(f"Too many bytes are waiting in the {self.name} queue.")
        self.bytes = others + total
        place.bytes = total

    @property
    def is_idle(self) -> bool:
        """Whether no call runs, not even one whose request is gone."""
        return not self._calls

    def close(self) -> None:
        """Start nothing more; what runs is left to finish."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _refusal(self, detail: str) -> Problem:
        return overloaded(self._status, detail, retry_after=1.0)


class Admission:
    """Four lanes: searches and other reads, searches that wait for a scorer, writes, and small calls that must work
    while those are full."""

    def __init__(self, settings: AdmissionSettings) -> None:
        self.body_timeout = settings.body_timeout
        self.room = Room(settings.search_hits, settings.queue_timeout)
        self._lanes: dict[LaneName, Lane] = {
            "search": Lane(
                "search",
                at_work=settings.searches,
                waiting=settings.search_queue,
                patience=settings.queue_timeout,
                max_bytes=settings.search_bytes,
                status=503,
                threads=settings.searches,
            ),
            "rerank": Lane(
                "rerank",
                at_work=settings.reranks,
                waiting=settings.rerank_queue,
                patience=settings.queue_timeout,
                max_bytes=settings.search_bytes,
                status=503,
                threads=settings.reranks,
            ),
            "write": Lane(
                "write",
                at_work=min(settings.writes, WRITE_THREADS),
                waiting=max(0, settings.writes - WRITE_THREADS),
                patience=settings.queue_timeout,
                max_bytes=settings.write_bytes,
                status=429,
                threads=WRITE_THREADS,
            ),
            "control": Lane(
                "control",
                at_work=CONTROL_THREADS,
                waiting=CONTROL_QUEUE,
                patience=settings.queue_timeout,
                max_bytes=8 * MEBIBYTE,
                status=503,
                threads=CONTROL_THREADS,
            ),
        }

    def lane(self, name: LaneName) -> Lane:
        return self._lanes[name]

    @property
    def lanes(self) -> list[Lane]:
        return list(self._lanes.values())

    async def close(self, seconds: float) -> bool:
        """Start nothing more; whether all that ran ended within ``seconds``."""
        for lane in self.lanes:
            lane.close()
        deadline = monotonic() + seconds
        while not all(lane.is_idle for lane in self.lanes):
            if monotonic() > deadline:
                return False
            await asyncio.sleep(0.01)
        return True
