"""The open loop: a latency counts from when a call was due."""

from __future__ import annotations

import threading

import pytest

from loadtests.drive import OpenLoop, one_by_one


def test_one_by_one_asks_in_order() -> None:
    asked: list[int] = []
    assert len(one_by_one(asked.append, 5)) == 5
    assert asked == [0, 1, 2, 3, 4]


def test_every_call_is_made_at_its_time() -> None:
    with OpenLoop(lambda number: None, 1000.0, count=20) as loop:
        loop.wait()
    assert sorted(due for due, _, _ in loop.latencies) == pytest.approx([number / 1000 for number in range(20)])
    assert all(seconds >= 0 and error is None for _, seconds, error in loop.latencies)


def test_a_target_that_stalls_is_charged_for_those_that_wait() -> None:
    held = threading.Event()

    def ask(number: int) -> None:
        held.wait(10)

    with OpenLoop(ask, 1000.0, count=30) as loop:
        timer = threading.Timer(0.1, held.set)
        timer.start()
        loop.wait()
        timer.join()
    assert len(loop.latencies) == 30
    assert min(due + seconds for due, seconds, _ in loop.latencies) >= 0.09


def test_an_error_is_a_sample() -> None:
    def ask(number: int) -> None:
        raise RuntimeError(str(number))

    with OpenLoop(ask, 1000.0, count=3) as loop:
        loop.wait()
    assert sorted(str(error) for _, _, error in loop.latencies) == [f"RuntimeError: {number}" for number in range(3)]
