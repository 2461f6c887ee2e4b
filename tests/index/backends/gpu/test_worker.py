"""The worker of a device: what waits together is answered together, nothing waits for ever, faults reach everybody."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from nearfield_index.backends.gpu import health
from nearfield_index.backends.gpu import worker as module
from nearfield_index.backends.gpu.health import DeviceFailed, Health
from nearfield_index.backends.gpu.worker import Worker, k_class
from nearfield_index.bitmap import Bitmap

Array = np.ndarray[Any, np.dtype[Any]]


class Echo:
    """An index whose answers tell who asked: row ``j`` of query ``q`` is ``q[0] * 1000 + j``. ``gate`` holds it up."""

    def __init__(self, most: int = 1 << 20) -> None:
        self.gate = threading.Lock()
        self.entered = threading.Event()
        self.most = most
        self.calls: list[tuple[int, int, int, Any]] = []
        self.fail: Exception | None = None

    def most_queries(self, k: int, within: Bitmap | None) -> int:
        return self.most

    def call(self, queries: Array, k: int, effort: int, within: Bitmap | None) -> tuple[Array, Array]:
        self.calls.append((len(queries), k, effort, within))
        self.entered.set()
        with self.gate:
            if self.fail is not None:
                raise self.fail
            rows = queries[:, :1].astype(np.int64) * 1_000 + np.arange(k)
            return rows.astype(np.float32), rows


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def probed() -> list[str]:
    return []


@pytest.fixture
def worker(clock: Clock, probed: list[str]) -> Iterator[Worker]:
    made = Worker("test", Health("test", clock), lambda: probed.append("probe"))
    yield made
    made.close()


def asked(number: int, count: int = 1) -> Array:
    return np.full((count, 2), number, dtype=np.float32)


def held_up(worker: Worker, index: Echo, *calls: Callable[[], Any]) -> list[Any]:
    """Run calls that all arrive while the device is busy with another one; their outcomes, in order."""
    with ThreadPoolExecutor(len(calls) + 1) as pool:
        with index.gate:
            index.entered.clear()
            first = pool.submit(worker.search, index, asked(0), 1, 0, None)
            assert index.entered.wait(10)
            futures = []
            for number, call in enumerate(calls):
                futures.append(pool.submit(call))
                assert _until(lambda n=number: worker.waiting == n + 1)  # type: ignore[misc]
        first.result(10)
        return [future.exception(10) or future.result() for future in futures]


def _until(true: Callable[[], bool]) -> bool:
    wait = threading.Event()
    return any(true() or wait.wait(0.001) for _ in range(10_000))


def test_what_waits_is_one_call(worker: Worker) -> None:
    index = Echo()
    found = held_up(
        worker,
        index,
        lambda: worker.search(index, asked(1), 10, 5, None),
        lambda: worker.search(index, asked(2, 3), 12, 5, None),
        lambda: worker.search(index, asked(3), 16, 5, None),
    )
    assert index.calls[1:] == [(5, 16, 5, None)]
    for number, (count, k), (_, rows) in zip((1, 2, 3), ((1, 10), (3, 12), (1, 16)), found, strict=True):
        np.testing.assert_array_equal(rows, np.tile(number * 1_000 + np.arange(k), (count, 1)))
    assert (worker.calls, worker.queries) == (2, 6)


def test_other_filters_efforts_and_classes_of_k_are_other_calls(worker: Worker) -> None:
    index, other = Echo(), Echo()
    one, same, two = (Bitmap.from_rows(100, np.array([row])) for row in (3, 3, 4))
    held_up(
        worker,
        index,
        lambda: worker.search(index, asked(1), 10, 5, None),
        lambda: worker.search(index, asked(2), 10, 6, None),
        lambda: worker.search(index, asked(3), 100, 5, None),
        lambda: worker.search(index, asked(4), 10, 5, one),
        lambda: worker.search(index, asked(5), 10, 5, same),
        lambda: worker.search(index, asked(6), 10, 5, two),
        lambda: worker.search(other, asked(7), 10, 5, None),
    )
    assert [call[0] for call in index.calls[1:]] == [1, 1, 1, 2, 1]
    assert index.calls[4][3] is one
    assert len(other.calls) == 1
    assert k_class(10) == k_class(16) != k_class(17) == k_class(32)


def test_calls_are_no_larger_than_memory_allows(worker: Worker) -> None:
    index = Echo(most=4)
    _, rows = worker.search(index, np.arange(10, dtype=np.float32)[:, None], 3, 0, None)
    assert [call[0] for call in index.calls] == [4, 4, 2]
    np.testing.assert_array_equal(rows[:, 0], np.arange(10) * 1_000)


def test_the_queue_is_bounded(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 2)
    index = Echo()

    def refused() -> None:
        with pytest.raises(DeviceFailed, match="2 searches wait already"):
            worker.search(index, asked(9), 1, 0, None)

    with ThreadPoolExecutor(4) as pool, index.gate:
        pool.submit(worker.search, index, asked(0), 1, 0, None)
        assert index.entered.wait(10)
        for _ in range(2):
            pool.submit(worker.search, index, asked(1), 1, 0, None)
        assert _until(lambda: worker.waiting == 2)
        refused()
        index.gate.release()
        index.gate.acquire()


def test_a_fault_reaches_all_that_waited_and_takes_the_device_down(worker: Worker, clock: Clock) -> None:
    index = Echo()
    index.fail = RuntimeError("out of memory")
    with pytest.raises(DeviceFailed, match="out of memory"):
        worker.search(index, asked(1), 1, 0, None)
    with pytest.raises(DeviceFailed, match="is down"):
        worker.search(index, asked(1), 1, 0, None)
    assert len(index.calls) == 1, "nothing is sent to a device that is down"


def test_it_heals_when_its_time_has_come(worker: Worker, clock: Clock, probed: list[str]) -> None:
    index = Echo()
    index.fail = RuntimeError("a fault")
    with pytest.raises(DeviceFailed):
        worker.search(index, asked(1), 1, 0, None)
    worker.run(lambda: None)
    assert probed == []
    clock.now += 1.5
    worker.run(lambda: None)  # wakes the thread, as its own timer would
    assert _until(lambda: worker._health.up)
    assert probed == ["probe"]
    index.fail = None
    worker.search(index, asked(1), 1, 0, None)


def test_a_fault_that_somebody_else_found_wakes_it(probed: list[str]) -> None:
    """Nothing is sent to a device that is down, so that nothing else would."""
    worker = Worker("test", Health("test", lambda: 100.0), lambda: probed.append("probe"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_FIRST_RETRY_S", "_LAST_RETRY_S"):
            patch.setattr(health, name, 0.0)
        worker.run(lambda: None)
        worker.failed(RuntimeError("a build failed"))
        assert _until(lambda: worker._health.up)
    assert probed == ["probe"]
    worker.close()


def test_it_waits_longer_each_time_in_a_row(clock: Clock) -> None:
    state = Health("test", clock)
    waits = []
    for _ in range(12):
        state.failed(RuntimeError("once\n  and again"))
        waits.append(state.due)
        state.probed()
        assert state.due is None
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == 300.0
    state.answered()
    state.failed(RuntimeError("again"))
    assert state.due == 1.0
    assert state.reason == "RuntimeError: again"
    assert state.failures == 13


def test_searches_do_not_wait_for_a_build(worker: Worker) -> None:
    index, gate, began = Echo(), threading.Lock(), threading.Event()

    def build() -> str:
        began.set()
        with gate:
            return "built"

    with ThreadPoolExecutor(1) as pool:
        with gate:
            done = pool.submit(worker.run, build)
            assert began.wait(10)
            assert not worker.free
            with pytest.raises(DeviceFailed, match="building"):
                worker.search(index, asked(1), 1, 0, None)
        assert done.result(10) == "built"
    assert worker.free
    assert worker._health.up
    worker.search(index, asked(1), 1, 0, None)


def test_what_a_build_raises_is_the_builders(worker: Worker) -> None:
    def build() -> None:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        worker.run(build)
    assert worker._health.up


def test_who_is_in_a_hurry_does_not_wait_for_a_device_that_hangs(worker: Worker) -> None:
    index = Echo()
    with ThreadPoolExecutor(1) as pool, index.gate:
        pool.submit(worker.search, index, asked(1), 1, 0, None)
        assert index.entered.wait(10)
        with pytest.raises(DeviceFailed, match="still at work"):
            worker.run(lambda: None, patience_s=0.01)
    assert _until(lambda: worker.free)


def test_no_answer_in_time_is_a_fault(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.01)
    index = Echo()
    with index.gate, pytest.raises(DeviceFailed, match="no answer within"):
        worker.search(index, asked(1), 1, 0, None)
    assert not worker._health.up


def test_closed_it_answers_nobody(clock: Clock) -> None:
    worker = Worker("test", Health("test", clock), lambda: None)
    worker.close()
    with pytest.raises(DeviceFailed, match="closed"):
        worker.search(Echo(), asked(1), 1, 0, None)
    with pytest.raises(DeviceFailed, match="closed"):
        worker.run(lambda: None)
