"""Who is let in, who waits, who is refused, and that nothing held is forgotten."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from nearfield_server.admission import Admission, Lane
from nearfield_server.errors import Problem
from nearfield_server.settings import Admission as AdmissionSettings


def lane(**changes: Any) -> Lane:
    bounds: dict[str, Any] = {
        "at_work": 1,
        "waiting": 1,
        "patience": 5.0,
        "max_bytes": 100,
        "status": 503,
        "threads": 1,
    }
    return Lane("search", **(bounds | changes))


async def stays() -> bool:
    return False


async def leaves() -> bool:
    return True


async def through(entrance: Lane, work: Callable[[], Any], has_left: Callable[[], Awaitable[bool]] = stays) -> Any:
    async with entrance.place():
        return await entrance.run(work, has_left)


async def busy_until(started: threading.Event) -> None:
    """Let the event loop turn until the work has begun in its thread."""
    while not started.is_set():
        await asyncio.sleep(0)


def with_one_at_work(entrance: Lane, scenario: Callable[[threading.Event], Coroutine[Any, Any, None]]) -> None:
    """Run ``scenario`` while the lane's only permit is held by work that ends when the event is set."""

    async def play() -> None:
        started, release = threading.Event(), threading.Event()

        def work() -> str:
            started.set()
            release.wait(10)
            return "first"

        first = asyncio.create_task(through(entrance, work))
        await busy_until(started)
        try:
            await scenario(release)
        finally:
            release.set()
            assert await first == "first"
        assert (entrance.places, entrance.working, entrance.bytes) == (0, 0, 0)

    asyncio.run(play())
    entrance.close()


def test_second_waits_third_is_refused() -> None:
    entrance = lane()

    async def scenario(release: threading.Event) -> None:
        second = asyncio.create_task(through(entrance, lambda: "second"))
        await asyncio.sleep(0)
        assert entrance.waiting == 1
        with pytest.raises(Problem) as refused:
            await through(entrance, lambda: "third")
        assert (refused.value.status, refused.value.code) == (503, "busy")
        assert refused.value.headers["Retry-After"] == "1"
        release.set()
        assert await second == "second"

    with_one_at_work(entrance, scenario)


def test_patience_ends() -> None:
    entrance = lane(patience=0.01, status=429)

    async def scenario(release: threading.Event) -> None:
        with pytest.raises(Problem, match="did not move in time") as refused:
            await through(entrance, lambda: "second")
        assert refused.value.status == 429

    with_one_at_work(entrance, scenario)


def test_work_of_a_caller_who_left_is_not_done() -> None:
    entrance = lane()
    done: list[str] = []

    async def scenario(release: threading.Event) -> None:
        second = asyncio.create_task(through(entrance, lambda: done.append("second"), leaves))
        await asyncio.sleep(0)
        release.set()
        with pytest.raises(ClientDisconnect):
            await second

    with_one_at_work(entrance, scenario)
    assert done == []


def test_failing_work_gives_its_permit_back() -> None:
    entrance = lane()

    def fail() -> None:
        raise ZeroDivisionError

    async def play() -> None:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await through(entrance, fail)
        assert await through(entrance, lambda: "after") == "after"

    asyncio.run(play())
    entrance.close()


def test_bytes_are_bounded_together_but_one_always_fits() -> None:
    entrance = lane(waiting=5)

    async def play() -> None:
        async with entrance.place() as first, entrance.place() as second:
            first.hold(60)
            second.hold(40)
            with pytest.raises(Problem, match="Too many bytes"):
                second.hold(41)
            assert entrance.bytes == 100
        async with entrance.place() as alone:
            alone.hold(10_000)
        assert entrance.bytes == 0

    asyncio.run(play())
    entrance.close()


def test_closing_waits_for_what_runs() -> None:
    admission = Admission(AdmissionSettings(searches=1, search_queue=1))

    async def play() -> None:
        started, release = threading.Event(), threading.Event()

        def work() -> None:
            started.set()
            release.wait(10)

        running = asyncio.create_task(through(admission.lane("search"), work))
        await busy_until(started)
        assert not await admission.close(0.05)
        release.set()
        assert await admission.close(10)
        await running

    asyncio.run(play())
