"""The one background worker: jobs run here one after the other, what users wait for first."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Callable

from nearfield_index.errors import Busy, NearfieldError, NotFound
from nearfield_index.jobs import Cancelled, Job, JobBook

_log = logging.getLogger(__name__)

Work = Callable[[Job], None]

_MOST_QUEUED = 1_000
_LAST = 9


class Maintenance:
    """One thread and its queue. Beside these, only scorers have threads (``ranking.dispatch``)."""

    def __init__(self, jobs: JobBook | None = None) -> None:
        """``jobs``: the book of another worker, where both show their jobs in one."""
        self.jobs = JobBook() if jobs is None else jobs
        self._queue: queue.PriorityQueue[tuple[int, int, Job | None, Work | None]] = queue.PriorityQueue(_MOST_QUEUED)
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="nearfield-maintenance", daemon=True)
        self._thread.start()

    def submit(self, kind: str, collection: str, work: Work, *, priority: int = 5) -> Job:
        """Queue work; the same kind of work for the same collection is joined, not repeated."""
        with self._lock:
            same = self.jobs.find(
                lambda j: (j.kind, j.collection) == (kind, collection) and j.joinable and not j.cancelled
            )
            if same is not None:
                return same
            job = Job(kind, collection)
            if self._closed:  # nobody would ever run it, and whoever waits for it would wait for ever
                job.finish("cancelled")
                return job
            try:
                self._queue.put_nowait((priority, next(self._order), job, work))
            except queue.Full:
                raise Busy("too many jobs are waiting", retry_after=10.0) from None
            self.jobs.add(job)
            return job

    def run_quietly(self, work: Callable[[], None]) -> None:
        """Run small work behind all jobs, without a job of its own; dropped where the queue is full or closed."""
        with self._lock:
            if not self._closed and not self._queue.full():
                self._queue.put_nowait((_LAST, next(self._order), Job("quiet", ""), lambda job: work()))

    def stop_jobs(self, collection: str) -> None:
        """Cancel a collection's jobs and wait until none runs."""
        for job in self.jobs.list():
            if job.collection == collection and job.active:
                job.cancel()
                if threading.current_thread() is not self._thread:
                    job.wait(60)

    def close(self) -> None:
        """Cancel what runs, drop what waits, end the thread."""
        with self._lock:
            self._closed = True
        for job in self.jobs.list():
            if job.active:
                job.cancel()
        self._queue.put((-1, next(self._order), None, None))
        self._thread.join()

    def _loop(self) -> None:
        while True:
            _, _, job, work = self._queue.get()
            if job is None or work is None:
                self._drop_waiting()
                return
            if job.cancelled:
                job.finish("cancelled")
            else:
                self._run(job, work)

    def _drop_waiting(self) -> None:
        while not self._queue.empty():
            job = self._queue.get_nowait()[2]
            if job is not None:
                job.finish("cancelled")

    def _run(self, job: Job, work: Work) -> None:
        job.state, job.step = "running", "starting"
        try:
            work(job)
            job.finish("done")
        except (Cancelled, NotFound):  # or its collection was dropped
            job.finish("cancelled")
        except NearfieldError as error:
            _log.warning("job %s of %s failed: %s", job.kind, job.collection, error)
            job.finish("failed", error.message)
        except Exception as error:
            _log.exception("job %s of %s failed", job.kind, job.collection)
            job.finish("failed", f"{type(error).__name__}: {error}")
