"""Group commit: whoever waits its turn to write commits everything that waits with it, in one transaction."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import Generic, Protocol, TypeVar

from nearfield_index.errors import Busy, InvalidRequest
from nearfield_index.storage.rows import Change, RowStore

_GROUP = 256


class Write(Protocol):
    """One operation: applied inside the transaction. ``alone`` ones read the view and share it with nobody."""

    @property
    def alone(self) -> bool: ...

    @property
    def nbytes(self) -> int: ...

    def apply(self, store: RowStore, change: Change) -> None: ...


W = TypeVar("W", bound=Write)


@dataclass
class _Waiting(Generic[W]):
    write: W
    done: bool = False
    sequence: int = 0
    error: BaseException | None = field(default=None)


class GroupCommit(Generic[W]):
    """A bounded queue of writes with no thread of its own."""

    def __init__(self, commit: Callable[[Sequence[W]], int], *, most_writes: int, most_bytes: int) -> None:
        """``commit`` makes a group durable and visible, and returns the sequence it reached."""
        self._commit = commit
        self._most_writes = most_writes
        self._most_bytes = most_bytes
        self._queue: deque[_Waiting[W]] = deque()
        self._bytes = 0
        self._guard = Lock()
        self.turn = RLock()
        """Held while a group is committed; whoever changes segments holds it, too. A write that selects by a
        filter reads while it is held, and a reader that finds no quiet moment takes it."""

    def submit(self, write: W) -> int:
        """Returns the sequence once the write is durable and visible. Raises :class:`Busy` when the queue is full."""
        waiting = _Waiting(write)
        with self._guard:
            # A single write larger than the bound still goes through when nothing waits.
            if len(self._queue) >= self._most_writes or (self._queue and self._bytes + write.nbytes > self._most_bytes):
                raise Busy("too many writes are waiting", retry_after=1.0)
            self._queue.append(waiting)
            self._bytes += write.nbytes
        if threading.current_thread() is threading.main_thread():
            # Ctrl-C strikes the main thread only, and it must not fall between a commit and its being visible.
            worker = threading.Thread(target=self._finish, args=(waiting,), name="nearfield-commit")
            worker.start()
            worker.join()
        else:
            self._finish(waiting)
        if waiting.error is not None:
            raise waiting.error
        return waiting.sequence

    def _finish(self, waiting: _Waiting[W]) -> None:
        with self.turn:
            while not waiting.done:
                self._run(self._next_group())

    def _next_group(self) -> list[_Waiting[W]]:
        with self._guard:
            group = [self._queue.popleft()]
            while not group[0].write.alone and self._queue and len(group) < _GROUP:
                if self._queue[0].write.alone:
                    break
                group.append(self._queue.popleft())
            self._bytes -= sum(w.write.nbytes for w in group)
        return group

    def _run(self, group: list[_Waiting[W]]) -> None:
        error: BaseException | None = None
        sequence = 0
        try:
            sequence = self._commit([w.write for w in group])
        except InvalidRequest as refused:
            if len(group) > 1:  # nothing of the group happened: each on its own, so that only the bad one fails
                for waiting in group:
                    self._run([waiting])
                return
            error = refused
        except BaseException as failure:
            error = failure
        for waiting in group:
            waiting.error, waiting.sequence, waiting.done = error, sequence, True
