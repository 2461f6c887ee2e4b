"""Asking: one after the other (closed loop), or at a given rate whatever the answers do (open loop)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

_WORKERS = 8


def one_by_one(ask: Callable[[int], object], count: int) -> list[float]:
    """Call ``ask(0)`` .. ``ask(count - 1)``; the seconds each took."""
    seconds = []
    for number in range(count):
        start = time.perf_counter()
        ask(number)
        seconds.append(time.perf_counter() - start)
    return seconds


class OpenLoop:
    """Calls ``ask(0)``, ``ask(1)`` .. at ``rate`` a second from threads of its own, while it is entered.

    A latency counts from when the call was due, not from when a thread was free for it: a target that stalls is
    charged for every call that it kept waiting. ``latencies`` holds (due, seconds, error or None), ``due`` in seconds
    since the loop began; read it after leaving. Calls still waiting when the loop is left are dropped.
    """

    def __init__(self, ask: Callable[[int], object], rate: float, *, count: int | None = None) -> None:
        self._ask = ask
        self._pause = 1.0 / rate
        self._count = count
        self._stop = threading.Event()
        self._began = 0.0
        self.latencies: list[tuple[float, float, str | None]] = []
        self._thread = threading.Thread(target=self._run, name="open-loop", daemon=True)

    @property
    def now(self) -> float:
        """Seconds since the loop began."""
        return time.perf_counter() - self._began

    def wait(self) -> None:
        """Wait for all of ``count`` calls."""
        self._thread.join()

    def __enter__(self) -> OpenLoop:
        self._began = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="open-loop")
        number = 0
        while number != self._count and not self._stop.wait(max(0.0, number * self._pause - self.now)):
            pool.submit(self._one, number, number * self._pause)
            number += 1
        pool.shutdown(wait=True, cancel_futures=self._stop.is_set())

    def _one(self, number: int, due: float) -> None:
        error = None
        try:
            self._ask(number)
        except Exception as failure:  # whatever a target raises is a sample, not the end of the run
            error = f"{type(failure).__name__}: {failure}"
        self.latencies.append((round(due, 6), self.now - due, error))
