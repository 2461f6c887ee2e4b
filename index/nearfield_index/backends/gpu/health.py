"""Whether a device answers: it goes down with the first failed call and comes back when a probe succeeds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Lock

_log = logging.getLogger(__name__)

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 300.0


class DeviceFailed(Exception):
    """A call on the device gave no answer. Never reaches a user: the CPU answers instead."""


class Unfit(DeviceFailed):
    """These rows cannot lie there in this form, however often it is tried."""


class IndexClosed(DeviceFailed):
    """The index was dropped, with its segment, before the search came to it: nothing is wrong with the device."""


class Health:
    """The state of one device; any thread may ask and tell."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._lock = Lock()
        self._streak = 0
        self._retry_at = 0.0
        self.reason: str | None = None
        """Why it is down; None while it is up."""
        self.failures = 0
        self.returned: list[Callable[[], None]] = []
        """Called each time that it is up again."""

    @property
    def up(self) -> bool:
        return self.reason is None

    def failed(self, error: BaseException) -> None:
        """A call failed: down until a probe succeeds, which is tried later each time in a row."""
        with self._lock:
            self.failures += 1
            self._streak += 1
            wait = min(_LAST_RETRY_S, _FIRST_RETRY_S * 2.0 ** (self._streak - 1))
            self._retry_at = self._clock() + wait
            first, self.reason = self.reason is None, _first_line(error)
        if first:
            _log.warning(
                "%s failed, the CPU answers; tried again in %.0f s: %s", self._name, wait, self.reason, exc_info=error
            )
        else:
            _log.warning("%s is still down, tried again in %.0f s: %s", self._name, wait, self.reason)

    def probed(self) -> None:
        """A probe succeeded: up again. Only real work (:meth:`answered`) forgets how often it failed before."""
        with self._lock:
            self.reason = None
        _log.warning("%s is back", self._name)
        for tell in [*self.returned]:
            try:
                tell()
            except Exception:  # whoever wanted to know may be closing; the device's thread must go on
                _log.exception("after %s came back", self._name)

    def answered(self) -> None:
        """A real call succeeded."""
        if self._streak:
            with self._lock:
                self._streak = 0

    @property
    def due(self) -> float | None:
        """Seconds until the next probe, 0 when it is due; None while up."""
        with self._lock:
            return None if self.reason is None else max(0.0, self._retry_at - self._clock())


def _first_line(error: BaseException) -> str:
    """What went wrong, short: FAISS puts it last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:200]}" if lines else type(error).__name__
