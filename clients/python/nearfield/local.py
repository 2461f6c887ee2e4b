"""The engine in this process, behind the same operations as a server. The only door to nearfield_index."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nearfield import errors
from nearfield.arguments import named
from nearfield.operations import Operation

T = TypeVar("T")


class LocalTransport:
    """Runs operations on an engine it owns; the data directory stays locked until ``close``."""

    window = 1  # one writer per directory: a second request under way would only wait

    def __init__(
        self,
        path: str | os.PathLike[str],
        scorers: Mapping[str, object] | None = None,
        device: str = "auto",
        device_memory_share: float = 0.8,
    ) -> None:
        self.name = os.fspath(path)
        self._engine = _open_engine(self.name, scorers or {}, device, device_memory_share)
        # a client that is dropped without close() must not keep the directory locked
        self._close = weakref.finalize(self, self._engine.close)

    def run(self, operation: Operation[T]) -> T:
        if not self._close.alive:
            raise errors.closed()
        arguments = (operation.target, operation.part, operation.body)
        try:
            call: Callable[..., dict[str, Any]] = getattr(self._engine, operation.call)
            reply = call(*[each for each in arguments if each is not None])
        except Exception as failure:
            if isinstance(failure, _engine_error()):
                raise named(errors.from_engine(failure), operation.call) from failure
            raise
        return operation.parse(reply)

    def close(self) -> None:
        self._close()


class AsyncLocalTransport:
    """The same, each call in a thread, so that the event loop goes on."""

    window = 1

    def __init__(self, inner: LocalTransport) -> None:
        self.name = inner.name
        self._inner = inner

    async def run(self, operation: Operation[T]) -> T:
        return await asyncio.to_thread(self._inner.run, operation)

    async def close(self) -> None:
        await asyncio.to_thread(self._inner.close)


def _open_engine(path: str, scorers: Mapping[str, object], device: str, memory_share: float) -> Any:
    try:
        from nearfield_index.backends.gpu.setting import DeviceOptions
        from nearfield_index.engine import Engine, EngineOptions
    except ImportError as missing:
        raise ImportError('the embedded engine is not installed: pip install "nearfield[embedded]"') from missing
    try:
        options = EngineOptions(scorers=scorers, device=DeviceOptions(device, memory_share))
        return Engine.open(path, options=options)
    except _engine_error() as failure:
        raise errors.from_engine(failure) from failure


def _engine_error() -> type[Exception]:
    from nearfield_index.errors import NearfieldError

    return NearfieldError
