"""A progress bar for long work, drawn by what is installed, or a callable of the user's own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

ProgressOption = bool | None | Callable[[float, float], object]
"""True: a bar; False: none; None: a bar when it takes long on a terminal; or ``f(done, total)``."""

_PATIENCE_S = 2.0


class Progress:
    """Tells how far work of size ``total`` has come. A context manager; ``update`` takes the work done."""

    def __init__(self, total: float, option: ProgressOption, label: str) -> None:
        self._total = total
        self._label = label
        self._call = option if callable(option) else None
        self._wanted = option is True or (option is None and sys.stderr.isatty())
        self._draw_from = time.monotonic() + (0.0 if option is True else _PATIENCE_S)
        self._bar: _TqdmBar | _RichBar | None = None

    def update(self, done: float) -> None:
        if self._call is not None:
            self._call(done, self._total)
            return
        if self._wanted and self._bar is None and time.monotonic() >= self._draw_from:
            self._bar = _bar(self._total, self._label)
            self._wanted = self._bar is not None
        if self._bar is not None:
            self._bar.update(done)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class _TqdmBar:
    def __init__(self, tqdm: Any, total: float, label: str) -> None:
        self._bar = tqdm(total=total, desc=label)

    def update(self, done: float) -> None:
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class _RichBar:
    def __init__(self, rich_progress: Any, console: Any, total: float, label: str) -> None:
        self._bar = rich_progress(console=console)
        self._bar.start()
        self._task = self._bar.add_task(label, total=total)

    def update(self, done: float) -> None:
        self._bar.update(self._task, completed=done)

    def close(self) -> None:
        self._bar.stop()


def _bar(total: float, label: str) -> _TqdmBar | _RichBar | None:
    """Notebooks expect tqdm's bar; rich is the second choice; with neither there is none."""
    try:
        from tqdm.auto import tqdm

        return _TqdmBar(tqdm, total, label)
    except ImportError:
        pass
    try:
        from rich.console import Console
        from rich.progress import Progress as RichProgress

        return _RichBar(RichProgress, Console(stderr=True), total, label)
    except ImportError:
        return None
