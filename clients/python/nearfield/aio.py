"""The awaited client: the calls of ``nearfield.client``, name by name, over any transport."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Coroutine, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from nearfield import bulk, errors, operations, pieces, points
from nearfield.client import done_or_raise, pauses
from nearfield.http import AsyncHttpTransport, HttpOptions
from nearfield.operations import Operation, Select, Where
from nearfield.progress import Progress, ProgressOption
from nearfield.results import FacetValue, Job, Point, UpsertResult
from nearfield.transport import AsyncTransport

T = TypeVar("T")


def connect(url: str, **options: Any) -> Opening:
    """Return a client of the server at ``url``, awaited or entered; options as for ``nearfield.connect``.

    ``nf = await aio.connect(url)`` and ``async with aio.connect(url) as nf`` are both right. Nothing is sent yet.
    """
    return Opening(_connect(url, options))


def open(
    path: str | os.PathLike[str],
    *,
    scorers: Mapping[str, object] | None = None,
    device: str = "auto",
    device_memory_share: float = 0.8,
) -> Opening:
    """Return a client of the engine in this process, awaited or entered as that of ``connect``.

    Its calls run in threads. See ``nearfield.open``.
    """
    return Opening(_open(path, scorers, device, device_memory_share))


async def _connect(url: str, options: Mapping[str, Any]) -> AsyncClient:
    return AsyncClient(AsyncHttpTransport(HttpOptions.of(url, **options)))


async def _open(
    path: str | os.PathLike[str], scorers: Mapping[str, object] | None, device: str, device_memory_share: float
) -> AsyncClient:
    from nearfield.local import AsyncLocalTransport, LocalTransport

    make = partial(LocalTransport, path, scorers, device=device, device_memory_share=device_memory_share)
    return AsyncClient(AsyncLocalTransport(await asyncio.to_thread(make)))


class Opening(Coroutine[Any, Any, "AsyncClient"]):
    """A client to be: ``await`` it, or enter it with ``async with``, which closes the client at the end.

    A coroutine, so that ``asyncio.run`` and ``create_task`` take it too.
    """

    def __init__(self, making: Coroutine[Any, Any, AsyncClient]) -> None:
        self._making = making
        self._client: AsyncClient | None = None

    def __await__(self) -> Generator[Any, Any, AsyncClient]:
        return self._making.__await__()

    async def __aenter__(self) -> AsyncClient:
        self._client = await self._making
        return self._client

    async def __aexit__(self, *exc: object) -> None:
        if self._client is not None:
            await self._client.close()

    def send(self, value: Any, /) -> Any:
        return self._making.send(value)

    def throw(self, *failure: Any) -> Any:
        return self._making.throw(*failure)

    def close(self) -> None:
        self._making.close()


class AsyncClient:
    """A server, or an engine in this process. Made by ``nearfield.aio.connect`` and ``nearfield.aio.open``.

    An async context manager. Every call raises subclasses of ``nearfield.Error``.
    """

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        name: str,
        *,
        dim: int | None = None,
        metric: str = "cosine",
        vectors: Mapping[str, Mapping[str, Any]] | None = None,
        attributes: Mapping[str, Any] | None = None,
        index: Mapping[str, Any] | None = None,
        exist_ok: bool = True,
    ) -> AsyncCollection:
        """Create a collection, or return it where the same stands already (with ``exist_ok``).

        ``dim`` and ``metric`` (``cosine``, ``dot``, ``l2``) describe the one field ``vector``; ``vectors``
        several: ``{"image": {"dim": 512, "metric": "dot"}}``. Raises Conflict for another schema.
        """
        reply = await self.run(
            operations.create(
                name,
                dim=dim,
                metric=metric,
                vectors=vectors,
                attributes=attributes,
                index=index,
                exist_ok=exist_ok,
            )
        )
        if not (exist_ok or reply.get("created", True)):
            raise errors.Conflict("the collection exists already", field="name", status=409)
        return AsyncCollection(self, name)

    def collection(self, name: str) -> AsyncCollection:
        """Return a handle; nothing is sent, so an unknown name shows at the first call."""
        return AsyncCollection(self, name)

    async def collections(self) -> list[AsyncCollection]:
        """Return a handle of every collection."""
        return [AsyncCollection(self, each["name"]) for each in await self.run(operations.list_collections())]

    async def drop(self, name: str) -> bool:
        """Delete a collection and everything in it."""
        return await self.run(operations.drop(name))

    async def info(self) -> dict[str, Any]:
        """Return version, limits and features."""
        return await self.run(operations.info())

    async def jobs(self) -> list[Job]:
        return await self.run(operations.list_jobs())

    async def job(self, job_id: str) -> Job:
        return await self.run(operations.get_job(job_id))

    async def cancel(self, job: Job | str) -> Job:
        """Cancel a job."""
        return await self.run(operations.cancel_job(job.id if isinstance(job, Job) else job))

    async def wait(self, job: Job | str, *, timeout: float | None = None, progress: ProgressOption = None) -> Job:
        """Wait until a job is done and return it.

        Raises JobFailed if it failed or was cancelled, DeadlineExceeded after ``timeout`` seconds (the job
        goes on).
        """
        job_id = job.id if isinstance(job, Job) else job
        ends = None if timeout is None else time.monotonic() + timeout
        with Progress(1.0, progress, "waiting for the job") as bar:
            for pause in pauses():
                state = await self.job(job_id)
                bar.update(state.progress)
                if state.finished:
                    return done_or_raise(state)
                if ends is not None and time.monotonic() + pause > ends:
                    raise errors.DeadlineExceeded(f"the job is {state.state} after {timeout} seconds")
                await asyncio.sleep(pause)
        raise RuntimeError("unreachable")

    async def run(self, operation: Operation[T]) -> T:
        """Carry out any operation of ``nearfield.operations``."""
        return await self._transport.run(operation)

    async def close(self) -> None:
        """Release connections or the data directory; closing twice is harmless."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __getitem__(self, name: str) -> AsyncCollection:
        return AsyncCollection(self, name)

    def __repr__(self) -> str:
        return f"nearfield.AsyncClient({self._transport.name!r})"


class AsyncCollection:
    """A handle of one collection."""

    def __init__(self, client: AsyncClient, name: str) -> None:
        self.client = client
        self.name = name
        self._transport = client._transport

    async def upsert(
        self,
        ids: Any = None,
        vectors: Any = None,
        *,
        attributes: Any = None,
        text: Any = None,
        rows: Any = None,
        id: str = "id",
        vector: str = points.DEFAULT_FIELD,
        mode: str = "upsert",
        progress: ProgressOption = None,
    ) -> UpsertResult:
        """Write points, of any number; an id that exists is replaced as a whole.

        Columns: ``upsert(ids, X, attributes={"price": prices})`` with X of shape (n, d), or
        ``vectors={field: X}``.
        Rows: ``upsert(rows=[{"id": 1, "vector": v, "price": 3}])``, or an Arrow table or data frame whose
        columns ``id=`` and ``vector=`` name. Without ids, random ones are made (and returned).
        """
        batch = points.gather(ids, vectors, attributes=attributes, text=text, rows=rows, id=id, vector=vector)
        result = await bulk.write_async(self._transport, self.name, batch, mode=mode, progress=progress)
        return points.with_made_ids(result, batch, made=ids is None and rows is None)

    async def insert(self, ids: Any = None, vectors: Any = None, **options: Any) -> UpsertResult:
        """Like upsert, but leaves ids that exist alone; ``outcomes`` tells, id by id."""
        return await self.upsert(ids, vectors, mode="insert", **options)

    async def update(self, ids: Any = None, vectors: Any = None, **options: Any) -> UpsertResult:
        """Like upsert, but leaves ids that do not exist alone; ``outcomes`` tells, id by id."""
        return await self.upsert(ids, vectors, mode="update", **options)

    async def patch(
        self,
        *,
        ids: Any = None,
        where: Where = None,
        set: Mapping[str, Any] | None = None,
        unset: Sequence[str] | None = None,
    ) -> int:
        """Change attributes of points chosen by id or filter; returns how many points.

        They leave the index, as rewritten points do, and are scanned until it takes them in: after a patch of many,
        run :meth:`optimize`.
        ``ids`` may be of any number, cut up and failing as in ``delete``.
        """
        return await self._in_pieces(operations.patch(self.name, ids=ids, where=where, set=set, unset=unset))

    async def delete(self, ids: Any = None, *, where: Where = None, dry_run: bool = False) -> int:
        """Delete points by id or filter; returns how many. Unknown ids are no error.

        ``ids`` may be of any number: where they take several requests and one fails, the points of those before it stay
        deleted, a note on the error says how far it came, and the same call again is safe.
        """
        return await self._in_pieces(operations.delete(self.name, ids=ids, where=where, dry_run=dry_run))

    async def get(self, ids: Any, *, select: Select = True, with_: Iterable[str] = ()) -> list[Point]:
        """Return these points, of any number; unknown ids are left out. ``with_=["vectors", "text"]`` adds those."""
        return await self._in_pieces(operations.get(self.name, ids, select=select, with_=with_))

    async def count(self, where: Where = None) -> int:
        return await self.run(operations.count(self.name, where=where))

    async def scan(
        self,
        where: Where = None,
        *,
        limit: int | None = None,
        page: int = 1000,
        select: Select = True,
        with_: Iterable[str] = (),
    ) -> AsyncIterator[Point]:
        """Iterate over all points (at most ``limit``), fetching ``page`` at a time."""
        cursor, left = None, limit
        while left is None or left > 0:
            size = page if left is None else min(page, left)
            reply = await self.run(
                operations.scan(self.name, where=where, limit=size, cursor=cursor, select=select, with_=with_)
            )
            for point in reply.points:
                yield point
            cursor, left = reply.next_cursor, None if left is None else left - len(reply.points)
            if cursor is None:
                return

    async def facet(self, field: str, *, where: Where = None, limit: int | None = None) -> list[FacetValue]:
        """Return the values of an attribute with how many points hold each, most frequent first."""
        return await self.run(operations.facet(self.name, field, where=where, limit=limit))

    async def query(
        self,
        q: Any = None,
        k: int = 10,
        *,
        ids: Any = None,
        where: Where = None,
        wheres: Sequence[Where] | None = None,
        field: str | None = None,
        recall: float | None = None,
        exact: bool = False,
        offset: int = 0,
        select: Select = True,
        with_: Iterable[str] = (),
        min_score: float | None = None,
        after: int | None = None,
        timeout_ms: int | None = None,
        explain: bool = False,
        hubness: str | None = None,
        hubness_strength: float | None = None,
        rerank: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the k best points: Hits for one vector (d,) or one id, ManyHits for (n, d) or a list of ids.

        Queries of any number: more than one request may hold are sent in several, each with the whole ``timeout_ms``,
        and ``meta`` adds up what they took; if one fails, its error is raised and no hits are returned.
        ``where`` filters all queries, ``wheres`` each its own. ``recall`` asks for that share of the true
        top k (``exact=True`` for all). ``after`` waits until that sequence is visible. ``explain`` adds
        ``plans``. ``hubness`` is ``auto`` (as the fit recommends), ``on`` or ``off``.
        ``rerank={"scorer": name, "query": text, "budget": 100}`` searches under an expensive scorer
        (``{"reranker": name, ..}`` under one with a fitted reranker): hits then carry ``base_score``, and
        ``meta["rerank"]`` what it cost.
        """
        return await self._in_pieces(
            operations.query(
                self.name,
                q,
                k,
                ids=ids,
                where=where,
                wheres=wheres,
                field=field,
                recall=recall,
                exact=exact,
                offset=offset,
                select=select,
                with_=with_,
                min_score=min_score,
                after=after,
                timeout_ms=timeout_ms,
                explain=explain,
                hubness=hubness,
                hubness_strength=hubness_strength,
                rerank=rerank,
            )
        )

    async def describe(self) -> dict[str, Any]:
        """Return schema, counts, segments, bytes and state. ``points`` beyond ``indexed_points`` are scanned."""
        return await self.run(operations.describe(self.name))

    async def alter(
        self,
        *,
        vectors: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
        index: Mapping[str, Any] | None = None,
    ) -> dict[str, Any] | Job:
        """Add vector fields, declare attributes, change the index; returns the description, or a running Job.

        A vector field costs nothing. An attribute declared where there are points already has all of them read again,
        while writes wait, and all indexes built anew by the Job, until which searches scan. Declare with ``create``,
        or several at once. Another ``index`` is built by the Job beside the old one, which serves until then.
        """
        return await self.run(operations.alter(self.name, vectors=vectors, attributes=attributes, index=index))

    async def optimize(
        self,
        queries: Any = None,
        *,
        workload: Mapping[str, Any] | None = None,
        wait: bool = True,
        timeout: float | None = None,
        progress: ProgressOption = None,
    ) -> Job:
        """Index everything written so far and calibrate recall, on ``queries`` (n, d) if given.

        Rows are laid out for the filters that the collection was asked, or for those of a ``workload``:
        ``{"filters": [where, ..], "vectors": (n, d), "least_gain": 0.05}``, every part optional. The finished job's
        ``result`` tells what that saves.
        """
        job = await self.run(operations.optimize(self.name, queries=queries, workload=workload))
        return await self.client.wait(job, timeout=timeout, progress=progress) if wait else job

    async def fit_reranker(
        self,
        name: str,
        scorer: str,
        *,
        texts: Sequence[str] | None = None,
        anchors: Any = None,
        log: int | None = None,
        count: int | None = None,
        field: str | None = None,
        wait: bool = True,
        timeout: float | None = None,
        progress: ProgressOption = None,
    ) -> Job:
        """Teach a reranker: score every point under anchor queries, as a job that resumes when asked again.

        Anchor queries are ``texts`` with their vectors ``anchors`` (n, d), of which ``count`` are chosen, or ``log``
        of the reranked queries seen so far. Without either, the reranker goes on with those it has: points written
        since then are scored. ``reranker_cost`` tells the price before.
        """
        job = await self.run(
            operations.put_reranker(
                self.name, name, scorer, texts=texts, anchors=anchors, log=log, count=count, field=field
            )
        )
        return await self.client.wait(job, timeout=timeout, progress=progress) if wait else job

    async def reranker_cost(
        self,
        name: str,
        scorer: str,
        *,
        texts: Sequence[str] | None = None,
        anchors: Any = None,
        log: int | None = None,
        count: int | None = None,
        field: str | None = None,
    ) -> dict[str, Any]:
        """Return what ``fit_reranker`` would cost: ``calls_left`` and, as the scorer's speed is measured for this with
        one batch, ``seconds_left``."""
        return await self.run(
            operations.put_reranker(
                self.name,
                name,
                scorer,
                texts=texts,
                anchors=anchors,
                log=log,
                count=count,
                field=field,
                dry_run=True,
            )
        )

    async def reranker(self, name: str) -> dict[str, Any]:
        """Return the state of a reranker: progress, calls, cost, error."""
        return await self.run(operations.get_reranker(self.name, name))

    async def rerankers(self) -> list[dict[str, Any]]:
        """Return the state of every reranker."""
        return await self.run(operations.list_rerankers(self.name))

    async def drop_reranker(self, name: str) -> bool:
        """Delete a reranker with everything that was scored for it."""
        return await self.run(operations.drop_reranker(self.name, name))

    async def pairs(self, *, reranker: str | None = None, page: int = 1000) -> AsyncIterator[dict[str, Any]]:
        """Iterate over scored pairs (``query``, ``id``, ``text``, ``score``, ``scorer``, ``version``), to train a
        smaller model on: those of queries, or with ``reranker`` those of its anchor queries with every point."""
        cursor = None
        while True:
            reply = await self.run(operations.scored_pairs(self.name, reranker=reranker, limit=page, cursor=cursor))
            for pair in reply["pairs"]:
                yield pair
            cursor = reply["next_cursor"]
            if cursor is None:
                return

    async def quality(self) -> dict[str, Any]:
        """Return measured recall and other properties of the collection."""
        return await self.run(operations.quality(self.name))

    async def fit_hubness(
        self,
        bank: Any = None,
        *,
        log: int | None = None,
        pairs: tuple[Any, Any] | None = None,
        method: str = "auto",
        strength: float | None = None,
        gate: bool = False,
        gallery_sample: int | None = None,
        quarantine: bool = False,
        field: str | None = None,
        wait: bool = True,
        timeout: float | None = None,
        progress: ProgressOption = None,
    ) -> Job:
        """Fit a hubness normalisation on a ``bank`` of queries (n, d), or on ``log`` of the live queries.

        ``pairs`` are queries with the id that answers each: they decide which method helps, and whether ``auto``
        uses it. ``quarantine`` keeps new points that stand out as hubs from results until they are released.
        """
        job = await self.run(
            operations.fit_hubness(
                self.name,
                bank,
                log=log,
                pairs=pairs,
                method=method,
                strength=strength,
                gate=gate,
                gallery_sample=gallery_sample,
                quarantine=quarantine,
                field=field,
            )
        )
        return await self.client.wait(job, timeout=timeout, progress=progress) if wait else job

    async def hubness(self) -> dict[str, Any]:
        """Return the report of the fit: method, hubness and recall before and after, the top hubs."""
        return await self.run(operations.hubness(self.name))

    async def drop_hubness(self) -> bool:
        """Search raw again; nothing stays in quarantine."""
        return await self.run(operations.drop_hubness(self.name))

    async def rotate_hubness(
        self,
        queries: Any = None,
        *,
        field: str | None = None,
        wait: bool = True,
        timeout: float | None = None,
        progress: ProgressOption = None,
    ) -> Job:
        """Replace the oldest sixteenth of the bank by ``queries`` (n, d), or by queries of the log."""
        job = await self.run(operations.rotate_hubness(self.name, queries, field=field))
        return await self.client.wait(job, timeout=timeout, progress=progress) if wait else job

    async def release(self, ids: Any) -> int:
        """Let points out of the hub monitor's quarantine; returns how many were in it."""
        return await self._in_pieces(operations.release(self.name, ids))

    async def run(self, operation: Operation[T]) -> T:
        """Carry out an operation."""
        return await self.client.run(operation)

    async def _in_pieces(self, operation: Operation[T]) -> T:
        return await pieces.run_async(self.run, operation)

    def __repr__(self) -> str:
        return f"nearfield.AsyncCollection({self.name!r})"
