"""Who is let in, who waits, who is refused, and that nothing held is forgotten."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient

from nearfield_server.admission import Admission, Lane, NoRoom, Room
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


def test_hits_are_bounded_together_but_one_always_fits() -> None:
    room = Room(100, 5.0)

    async def play() -> None:
        room.take(1_000)
        with pytest.raises(NoRoom):
            room.take(1)
        waiting = asyncio.create_task(room.wait(60, room.patience()))
        await asyncio.sleep(0)
        assert not waiting.done()
        room.give(950)
        await asyncio.sleep(0)
        assert not waiting.done()
        room.give(10)
        await waiting
        room.take(60)
        assert room.held == 100
        with pytest.raises(Problem, match="no room for 1 hits") as refused:
            await room.wait(1, until=0.0)
        assert (refused.value.status, refused.value.code) == (429, "busy")
        assert refused.value.headers["Retry-After"] == "1"

    asyncio.run(play())


def test_those_that_wait_for_room_go_in_turn() -> None:
    room = Room(100, 5.0)

    async def play() -> None:
        room.take(100)
        waiting = [asyncio.create_task(room.wait(hits, room.patience())) for hits in (80, 10)]
        await asyncio.sleep(0)
        room.give(30)
        for _ in range(5):
            await asyncio.sleep(0)
        assert [each.done() for each in waiting] == [False, False], "the second does not pass the first"
        room.give(70)
        await asyncio.gather(*waiting)

    asyncio.run(play())


def filled(api: TestClient, count: int) -> None:
    assert api.put("/v1/collections/c", json={"dim": 2}).status_code == 201
    points = {"ids": list(range(count)), "vectors": [[1.0, n] for n in range(count)]}
    assert api.post("/v1/collections/c/points", json=points).status_code == 200


def test_large_searches_wait_for_each_other(serve_here: Callable[..., TestClient]) -> None:
    api = serve_here(admission={"search_hits": 100, "queue_timeout": 0.2})
    filled(api, 10)
    room = api.app.state.service.admission.room  # type: ignore[attr-defined]
    body = {"vectors": [[1.0, 1.0]] * 8, "k": 10}
    room.take(30)
    refused = api.post("/v1/collections/c/query", json=body)
    assert (refused.status_code, refused.json()["code"]) == (429, "busy")
    assert "80 hits" in refused.json()["detail"]
    assert refused.headers["Retry-After"]
    assert api.post("/v1/collections/c/query", json={"vector": [1.0, 1.0], "k": 10}).status_code == 200
    room.give(30)
    answered = api.post("/v1/collections/c/query", json=body)
    assert [len(hits) for hits in answered.json()["results"]] == [10] * 8
    assert api.post("/v1/collections/c/query", json=body | {"k": "all"}).status_code == 422
    assert room.held == 0


def test_hits_of_one_search_are_bounded(serve_here: Callable[..., TestClient]) -> None:
    api = serve_here(limits={"max_hits": 60, "max_reply_bytes": 1_000})
    filled(api, 40)
    assert api.get("/v1").json()["limits"]["hits"] == 60
    many = api.post("/v1/collections/c/query", json={"vectors": [[1.0, 1.0]] * 2, "k": 30, "offset": 1})
    assert many.json() == {
        "type": "urn:nearfield:error:too_large",
        "title": many.json()["title"],
        "status": 413,
        "detail": "queries x (k + offset) is 62, the limit is 60 hits",
        "code": "too_large",
        "field": "k",
        "hint": "split the batch, or ask for a smaller k",
    }
    wide = api.post("/v1/collections/c/query", json={"vectors": [[1.0, 1.0]] * 2, "k": 30, "with": ["vectors"]})
    assert (wide.status_code, wide.json()["code"], wide.json()["field"]) == (413, "reply_too_large", "k")
    assert api.post("/v1/collections/c/query", json={"vector": [1.0, 1.0], "k": 10}).status_code == 200
