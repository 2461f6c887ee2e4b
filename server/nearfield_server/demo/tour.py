"""The demo against a running service: load, index, five questions, measured recall."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import orjson
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

import nearfield
from nearfield_server.demo import show
from nearfield_server.demo.dataset import Dataset, load
from nearfield_server.demo.questions import SCORE_TOLERANCE, Question, faults, questions, without
from nearfield_server.demo.service import ServiceFailed

COLLECTION = "debian"
BATCH = 1_000
K = 10
RECALL_TARGET = 0.95
JOB_SECONDS = 300.0


def tour(console: Console, url: str, folder: Path) -> list[str]:
    """Everything between start and stop of the service at ``url``; request files go to ``folder``.

    Returns one line for each thing that was wrong with an answer.
    """
    data = load()
    console.print(f"[bold]Nearfield[/] at {url}: {len(data.ids):,} Debian packages as 256-d vectors", highlight=False)
    with nearfield.connect(url) as client, httpx2.Client(base_url=url, timeout=60.0, trust_env=False) as http:
        collection = client.create(COLLECTION, dim=data.vectors.shape[1], metric="cosine")
        _ingest(console, collection, data)
        _optimize(console, http)
        guide = _Guide(console, http, folder, data)
        asked = questions(data)
        best = [guide.ask(question) for question in asked]
        deleted = guide.delete_and_ask(asked[0], best[0])
        return guide.wrong + _measure(console, collection, data, deleted)


class _Guide:
    """Sends exactly what the printed curl line sends, prints the answer, collects what is wrong with it."""

    def __init__(self, console: Console, http: httpx2.Client, folder: Path, data: Dataset) -> None:
        self.console = console
        self.http = http
        self.folder = folder
        self.data = data
        self.wrong: list[str] = []

    def ask(self, question: Question) -> str | None:
        """Returns the id of the best hit, None when there was no hit."""
        show.title(self.console, question)
        return self._ask(question)

    def _ask(self, question: Question) -> str | None:
        reply = self._send("query", question.body)
        show.answer(self.console, question, reply)
        self._print_curl("query", question.body, question.name)
        self.wrong += [f"{question.name}: {fault}" for fault in faults(self.data, question, reply["results"])]
        first = reply["results"][0]
        return str(first[0]["id"]) if first else None

    def delete_and_ask(self, question: Question, best: str | None) -> int | None:
        """Delete ``best`` and ask again; returns the row that is gone."""
        if best is None:
            return None
        row = self.data.row_of[best]
        again = without(question, row)
        show.title(self.console, again)
        body = {"ids": [best]}
        reply = self._send("points/delete", body)
        if reply["deleted"] != 1:
            self.wrong.append(f"{again.name}: deleting {best} reported {reply['deleted']} deletions")
        self._print_curl("points/delete", body, again.name)
        self._ask(again)
        return row

    def _send(self, verb: str, body: Mapping[str, Any]) -> dict[str, Any]:
        json = {"content-type": "application/json"}
        reply = self.http.post(self._path(verb), content=orjson.dumps(body), headers=json)
        reply.raise_for_status()
        parsed: dict[str, Any] = orjson.loads(reply.content)
        return parsed

    def _print_curl(self, verb: str, body: Mapping[str, Any], name: str) -> None:
        show.curl(self.console, str(self.http.base_url.join(self._path(verb))), body, self.folder, name)

    @staticmethod
    def _path(verb: str) -> str:
        return f"/v1/collections/{COLLECTION}/{verb}"


def _ingest(console: Console, collection: Any, data: Dataset) -> None:
    """All points through the SDK, in batches, with a bar."""
    began = time.perf_counter()
    columns = {name: data.column(name) for name in data.points[0]["attributes"]}
    with _progress(console) as progress:
        task = progress.add_task("loading over REST", total=len(data.ids))
        for start in range(0, len(data.ids), BATCH):
            part = slice(start, start + BATCH)
            collection.upsert(
                data.ids[part],
                data.vectors[part],
                attributes={name: column[part] for name, column in columns.items()},
                text=data.texts[part],
            )
            progress.advance(task, len(data.ids[part]))
    took = time.perf_counter() - began
    console.print(f"loaded {len(data.ids):,} points in {took:.1f} s, each batch durable before its reply")


def _optimize(console: Console, http: httpx2.Client) -> None:
    """Seal, index and calibrate; raises ServiceFailed when that does not end well."""
    began = time.perf_counter()
    job = http.post(f"/v1/collections/{COLLECTION}/optimize", json={}).raise_for_status().json()
    deadline = time.monotonic() + JOB_SECONDS
    with _progress(console) as progress:
        task = progress.add_task("building the index", total=1.0)
        while job["state"] in ("queued", "running"):
            if time.monotonic() > deadline:
                raise ServiceFailed(f"the index was not built in {JOB_SECONDS:.0f} s")
            time.sleep(0.05)
            job = http.get(f"/v1/jobs/{job['id']}").raise_for_status().json()
            progress.update(task, completed=job["progress"])
    if job["state"] != "done":
        raise ServiceFailed(f"building the index ended as {job['state']}: {job.get('error')}")
    console.print(f"indexed and calibrated in {time.perf_counter() - began:.1f} s")


def _measure(console: Console, collection: Any, data: Dataset, deleted: int | None) -> list[str]:
    """Recall of default answers over all packaged queries, and of exact ones against brute force."""
    queries = data.query_vectors
    scores = queries @ data.vectors.T
    if deleted is not None:
        scores[:, deleted] = -np.inf
    worst = np.sort(scores, axis=1)[:, -K][:, None] - SCORE_TOLERANCE
    scores = np.pad(scores, ((0, 0), (0, 1)), constant_values=-np.inf)  # last column: a hit that is missing

    def ask(exact: bool) -> tuple[NDArray[np.float64], float]:
        began = time.perf_counter()
        many = collection.query(queries, k=K, exact=exact, select=False)
        took = time.perf_counter() - began
        rows = np.array([[data.row_of.get(point, -1) for point in ids] for ids in many.ids])
        return np.mean(np.take_along_axis(scores, rows, axis=1) >= worst, axis=1), took * 1000

    found, took = ask(exact=False)
    exact_found, exact_took = ask(exact=True)
    recall, exact_recall = found.mean(), exact_found.mean()
    error = 2 * found.std() / np.sqrt(len(found))  # two standard errors of a mean over this many queries
    console.print(
        f"\n[bold]recall@{K} over {len(queries)} queries: {recall:.3f} ± {error:.3f}[/], asked for {RECALL_TARGET} "
        f"({took:.0f} ms for all); exact=True: {exact_recall:.3f} ({exact_took:.0f} ms)",
        highlight=False,
    )
    wrong = []
    if recall + error < RECALL_TARGET:
        wrong.append(f"recall {recall:.3f} is below {RECALL_TARGET}, by more than chance")
    if exact_recall < 1.0:
        wrong.append(f"exact answers hold only {exact_recall:.4f} of the true neighbours")
    return wrong


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield bar
