"""Scorers for tests: a real HTTP endpoint on loopback that counts what it is asked and misbehaves on demand; and a
synthetic relevance with a known answer."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import orjson

Score = Callable[[str, str], float]
Spoil = Callable[[int, Any], Any]


class Endpoint:
    """``url`` speaks the tei, cohere and pairs shapes, told apart by the request. ``pairs`` counts what was asked,
    ``calls`` how often. ``spoil(call, reply)`` may change a reply, raise, or return an int as the status."""

    def __init__(self, score: Score) -> None:
        self.score = score
        self.calls = 0
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.batches: list[list[tuple[str, str]]] = []
        self.spoil: Spoil | None = None
        self.gate = threading.Event()
        """Calls wait until it is set."""
        self.gate.set()
        self.arrived = threading.Semaphore(0)
        """Released once a call."""
        self.url = ""
        self._lock = threading.Lock()

    def total(self) -> int:
        return sum(self.pairs.values())

    def answer(self, body: dict[str, Any]) -> Any:
        if "inputs" in body:
            pairs = [(query, text) for query, text in body["inputs"]]
        else:
            pairs = [(body["query"], text) for text in body.get("texts", body.get("documents"))]
        with self._lock:
            self.calls += 1
            call = self.calls
            self.pairs.update(pairs)
            self.batches.append(pairs)
        self.arrived.release()
        self.gate.wait(30)
        values = [self.score(query, text) for query, text in pairs]
        order = np.argsort(-np.array(values)).tolist()  # as real servers do: best first
        if "inputs" in body:
            reply: Any = [[{"score": value, "label": "LABEL_0"}] for value in values]
        elif "documents" in body:
            reply = {"results": [{"index": n, "relevance_score": values[n]} for n in order]}
        else:
            reply = [{"index": n, "score": values[n]} for n in order]
        return reply if self.spoil is None else self.spoil(call, reply)


@contextmanager
def endpoint(score: Score) -> Iterator[Endpoint]:
    """An :class:`Endpoint` that listens."""
    made = Endpoint(score)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            try:
                reply = made.answer(orjson.loads(raw))
            except ConnectionError:
                self.close_connection = True
                self.connection.close()
                return
            status = reply if isinstance(reply, int) else 200
            content = reply if isinstance(reply, bytes) else orjson.dumps(reply)
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, ValueError):  # the client hung up, or we did
                pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}/rerank"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.gate.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


class Synthetic:
    """Items and queries whose true score is low rank plus popularity plus noise, of which vectors tell a part.

    Text ``item 7`` is item 7, ``query 3`` query 3. Deterministic.
    """

    def __init__(self, items: int, queries: int, *, dim: int = 16, rank: int = 12, seed: int = 5) -> None:
        rng = np.random.default_rng(seed)
        hidden = rng.standard_normal((items, rank))
        asked = rng.standard_normal((queries, rank))
        exact = asked @ hidden.T / np.sqrt(rank) + 0.5 * rng.standard_normal(items)
        self.scores = np.tanh(exact / 2) + 0.03 * rng.standard_normal((queries, items))
        lift = rng.standard_normal((rank, dim))
        self.vectors = (hidden @ lift + 2.0 * rng.standard_normal((items, dim))).astype(np.float32)
        self.queries = (asked @ lift + 2.0 * rng.standard_normal((queries, dim))).astype(np.float32)
        self.texts = [f"item {n}" for n in range(items)]
        self.query_texts = [f"query {n}" for n in range(queries)]
        self.asked: Counter[tuple[str, str]] = Counter()
        self.calls = 0

    def one(self, query: str, text: str) -> float:
        return float(self.scores[int(query.split()[1]), int(text.split()[1])])

    def __call__(self, query: str, texts: Sequence[str]) -> list[float]:
        self.calls += 1
        self.asked.update((query, text) for text in texts)
        return [self.one(query, text) for text in texts]

    version = "synthetic-1"

    def best(self, query: int, k: int, among: Sequence[int] | None = None) -> list[int]:
        """The true top k."""
        rows = np.arange(self.scores.shape[1]) if among is None else np.array(among)
        values = self.scores[query][rows]
        return rows[np.argsort(-values, kind="stable")[:k]].tolist()


def nearness(query: str, text: str) -> float:
    """``near 7`` likes ``price 7`` best, then 6 and 8: for tests that only need any scorer."""
    return -abs(int(query.split()[1]) - int(text.split()[1]) - 0.1)


def near_each(query: str, texts: Sequence[str]) -> list[float]:
    """The same as embedded users write it."""
    return [nearness(query, text) for text in texts]
