"""Writes of any size: split by bytes, a few requests under way at once, progress, a clear end on failure."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np

from nearfield import operations
from nearfield.errors import Error, InvalidRequest, TooLarge
from nearfield.points import Points
from nearfield.progress import Progress, ProgressOption
from nearfield.results import UpsertResult
from nearfield.transport import AsyncTransport, Transport

TARGET_BYTES = 4 * 1024 * 1024
_FEW = 1000  # points that fit one request whatever the server's settings, so that nobody need be asked

Range = tuple[int, int]


def split(weights: np.ndarray, *, max_bytes: float, max_points: int) -> list[Range]:
    """Cut n points of the given weights into (start, stop) ranges; a point over ``max_bytes`` goes alone."""
    ends = np.cumsum(weights)
    ranges: list[Range] = []
    start = 0
    while start < len(weights):
        before = ends[start - 1] if start else 0.0
        stop = int(np.searchsorted(ends, before + max_bytes, side="right"))
        stop = max(start + 1, min(stop, start + max_points))
        ranges.append((start, stop))
        start = stop
    return ranges


def write(
    transport: Transport, name: str, points: Points, *, mode: str = "upsert", progress: ProgressOption = None
) -> UpsertResult:
    """Write points of any number. On failure the batches already acknowledged stay written."""
    plan = _Plan(points, mode, transport.window)
    if plan.needs_limits:
        plan.cut(transport.run(operations.info()).get("limits", {}))

    def send(part: Range) -> list[tuple[Range, UpsertResult]]:
        try:
            return [(part, transport.run(operations.write(name, points.body(*part), mode=mode)))]
        except TooLarge as failure:
            return [each for half in plan.halve(part, failure) for each in send(half)]

    if len(plan.ranges) == 1:
        return plan.join(send(plan.ranges[0]))
    done: list[tuple[Range, UpsertResult]] = []
    with (
        Progress(len(points.ids), progress, f"writing {name}") as bar,
        ThreadPoolExecutor(plan.window) as pool,
    ):
        under_way = [pool.submit(send, part) for part in plan.ranges]
        try:
            for future in as_completed(under_way):
                done += future.result()
                bar.update(_count(done))
        except BaseException as failure:
            pool.shutdown(wait=True, cancel_futures=True)
            _tell(failure, _count(done), len(points.ids))
            raise
    return plan.join(done)


async def write_async(
    transport: AsyncTransport,
    name: str,
    points: Points,
    *,
    mode: str = "upsert",
    progress: ProgressOption = None,
) -> UpsertResult:
    """The same, awaited."""
    plan = _Plan(points, mode, transport.window)
    if plan.needs_limits:
        plan.cut((await transport.run(operations.info())).get("limits", {}))

    async def send(part: Range) -> list[tuple[Range, UpsertResult]]:
        try:
            return [(part, await transport.run(operations.write(name, points.body(*part), mode=mode)))]
        except TooLarge as failure:
            return [each for half in plan.halve(part, failure) for each in await send(half)]

    if len(plan.ranges) == 1:
        return plan.join(await send(plan.ranges[0]))
    done: list[tuple[Range, UpsertResult]] = []
    waiting = iter(plan.ranges)
    with Progress(len(points.ids), progress, f"writing {name}") as bar:

        async def work() -> None:
            for part in waiting:
                done.extend(await send(part))
                bar.update(_count(done))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(plan.window):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            _tell(failures.exceptions[0], _count(done), len(points.ids))
            raise failures.exceptions[0] from None
    return plan.join(done)


class _Plan:
    """How one write is cut up, and how its parts' replies become one."""

    def __init__(self, points: Points, mode: str, window: int) -> None:
        if mode not in ("upsert", "insert", "update"):
            raise InvalidRequest("mode must be upsert, insert or update", field="mode")
        self._ids = points.ids
        self._weights = points.weights() if len(points.ids) > 1 else np.zeros(len(points.ids))
        self._mode = mode
        self._distinct = len(set(points.ids)) if all(isinstance(i, (str, int)) for i in points.ids) else -1
        # the last of two points with one id must win, so such a write keeps its order
        self.window = window if self._distinct == len(points.ids) else 1
        self.ranges: list[Range] = [(0, len(points.ids))]

    @property
    def needs_limits(self) -> bool:
        return len(self._ids) > _FEW or float(self._weights.sum()) > TARGET_BYTES

    def cut(self, limits: Mapping[str, Any]) -> None:
        max_bytes = min(TARGET_BYTES, limits.get("body_bytes", TARGET_BYTES * 2) / 2)
        self.ranges = split(self._weights, max_bytes=max_bytes, max_points=limits.get("points", _FEW))
        self.window = max(1, min(self.window, len(self.ranges)))

    def halve(self, part: Range, failure: TooLarge) -> tuple[Range, Range]:
        """Return the halves of a refused request; raise where one point or value is what is too large."""
        start, stop = part
        if stop - start < 2 or failure.field not in (None, "points", "ids", "body"):
            raise failure
        middle = (start + stop) // 2
        return (start, middle), (middle, stop)

    def join(self, done: list[tuple[Range, UpsertResult]]) -> UpsertResult:
        done = sorted(done, key=lambda each: each[0])
        results = [result for _, result in done]
        upserted = sum(result.upserted for result in results)
        if self._mode == "upsert" and len(results) > 1:
            upserted = self._distinct
        outcomes = [word for result in results for word in result.outcomes or ()]
        return UpsertResult(upserted, max(result.sequence for result in results), outcomes or None)


def _count(done: list[tuple[Range, UpsertResult]]) -> int:
    return sum(stop - start for (start, stop), _ in done)


def _tell(failure: BaseException, written: int, total: int) -> None:
    if isinstance(failure, Error):
        failure.add_note(f"{written:,} of {total:,} points were acknowledged; upserting all again is safe")
