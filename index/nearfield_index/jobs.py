"""Long work as a job: state, progress, the step it is at, cancel, and the error it ended with."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from threading import Event, Lock
from typing import Any

from nearfield_index.errors import Conflict, NotFound

_KEPT = 200


class Cancelled(Exception):
    """Raised inside a job's work after somebody cancelled it."""


class Job:
    """One piece of long work. Its own thread reports; everybody may look and cancel."""

    def __init__(self, kind: str, collection: str) -> None:
        self.id = uuid.uuid4().hex
        self.kind = kind
        self.collection = collection
        self.state = "queued"
        self.progress = 0.0
        self.step = "waiting"
        self.error: str | None = None
        self.result: dict[str, Any] | None = None
        """What the work has to tell, JSON-able."""
        self.created_at = time.time()
        self.finished_at: float | None = None
        self.joinable = True
        """Whether another request for the same work may take this job for an answer."""
        self.abandoned: Callable[[], None] | None = None
        """Called when it was cancelled before it began."""
        self._cancel = Event()
        self._finished = Event()

    def report(self, progress: float, step: str | None = None) -> None:
        """Say how far the work is. Raises :class:`Cancelled` when it should stop."""
        if self._cancel.is_set():
            raise Cancelled
        self.progress = max(self.progress, min(1.0, progress))
        if step is not None:
            self.step = step

    def cancel(self) -> None:
        """Ask the work to stop; one that waits never starts."""
        self._cancel.set()

    @property
    def cancelled(self) -> bool:
        return self._cancel.is_set()

    @property
    def active(self) -> bool:
        return self.state in ("queued", "running")

    def finish(self, state: str, error: str | None = None) -> None:
        """Enter a final state."""
        self.error = error
        self.finished_at = time.time()
        if state == "done":
            self.progress, self.step = 1.0, "done"
        self.state = state
        self._finished.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for a final state; returns whether it came."""
        return self._finished.wait(timeout)

    def to_wire(self) -> dict[str, object]:
        return {
            "id": self.id,
            "kind": self.kind,
            "collection": self.collection,
            "state": self.state,
            "progress": round(self.progress, 4),
            "step": self.step,
            "error": self.error,
            "result": self.result,
            "created_at": self.created_at,
            "finished_at": self.finished_at,
        }


class JobBook:
    """The jobs there are, the latest finished ones kept."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = Lock()

    def add(self, job: Job) -> None:
        with self._lock:
            self._jobs[job.id] = job
            finished = [j for j in self._jobs.values() if not j.active]
            for old in finished[: max(0, len(finished) - _KEPT)]:
                del self._jobs[old.id]

    def find(self, accept: Callable[[Job], bool]) -> Job | None:
        """The first active job that is accepted."""
        with self._lock:
            return next((j for j in self._jobs.values() if j.active and accept(j)), None)

    def list(self) -> list[Job]:
        with self._lock:
            return list(self._jobs.values())

    def get(self, job_id: object) -> Job:
        with self._lock:
            job = self._jobs.get(job_id) if isinstance(job_id, str) else None
        if job is None:
            raise NotFound("no such job", code="job_not_found", field="id")
        return job

    def cancel(self, job_id: object) -> Job:
        """Ask a job to stop. Raises :class:`Conflict` when it has ended already."""
        job = self.get(job_id)
        if not job.active:
            raise Conflict(f"the job has ended: {job.state}", code="job_ended", field="id")
        job.cancel()
        return job
