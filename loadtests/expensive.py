"""An expensive scorer whose every score is known, and an HTTP endpoint that answers for it and counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Expensive:
    """``score(query, items)`` are the scores of a query's number with some items' numbers. The first queries are
    those of the corpus, the last ones anchor queries with vectors ``anchors`` ``(t, d)``. Texts end in ``#number``."""

    score: Callable[[int, Integers], Doubles]
    query_texts: list[str]
    item_texts: list[str]
    anchors: NDArray[np.float32]

    @property
    def asked(self) -> int:
        """How many queries are no anchors."""
        return len(self.query_texts) - len(self.anchors)

    @property
    def anchor_texts(self) -> list[str]:
        return self.query_texts[self.asked :]

    @classmethod
    def of_table(
        cls, scores: Doubles, queries: Sequence[str], items: Sequence[str], *, anchors: NDArray[np.float32]
    ) -> Expensive:
        """From the whole table ``(queries, items)``."""
        return cls(lambda query, rows: scores[query, rows], _numbered(queries), _numbered(items), anchors)

    @classmethod
    def of_vectors(
        cls, base: NDArray[np.float32], queries: NDArray[np.float32], anchors: NDArray[np.float32]
    ) -> Expensive:
        """Made up for vectors without texts: their cosine, bent by a smooth function that no vector shows."""
        unit = base / np.linalg.norm(base, axis=1, keepdims=True)
        asked = np.concatenate([queries, anchors])
        asked = asked / np.linalg.norm(asked, axis=1, keepdims=True)
        phase = np.random.default_rng(1).normal(size=(2, base.shape[1]))

        def score(query: int, rows: Integers) -> Doubles:
            near = unit[rows] @ asked[query]
            return np.asarray(near + 0.3 * np.sin(3 * unit[rows] @ phase[0] + asked[query] @ phase[1]), np.float64)

        names = [f"query {n}" for n in range(len(asked))]
        return cls(score, _numbered(names), _numbered([f"item {n}" for n in range(len(base))]), anchors)


def _numbered(texts: Sequence[str]) -> list[str]:
    return [f"{text} #{number}" for number, text in enumerate(texts)]


def _number(text: str) -> int:
    return int(text.rsplit("#", 1)[1])


class Endpoint:
    """Speaks the shapes of text-embeddings-inference (``/rerank`` and ``/predict``) for an :class:`Expensive`."""

    def __init__(self, expensive: Expensive) -> None:
        self._expensive = expensive
        self._lock = threading.Lock()
        self.calls = 0
        self.pairs = 0
        self.delay_s = 0.0
        """What a call takes at least: a real model's time."""
        self.url = ""

    def answer(self, body: dict[str, Any]) -> Any:
        predict = "inputs" in body
        pairs = body["inputs"] if predict else [(body["query"], text) for text in body["texts"]]
        with self._lock:
            self.calls += 1
            self.pairs += len(pairs)
        time.sleep(self.delay_s)
        queries = np.array([_number(query) for query, _ in pairs])
        items = np.array([_number(text) for _, text in pairs])
        values = np.empty(len(pairs))
        for query in np.unique(queries).tolist():
            mine = queries == query
            values[mine] = self._expensive.score(query, items[mine])
        if predict:
            return [[{"score": value}] for value in values.tolist()]
        return [{"index": index, "score": value} for index, value in enumerate(values.tolist())]


@contextmanager
def serving(expensive: Expensive) -> Iterator[Endpoint]:
    """An endpoint that listens on loopback."""
    made = Endpoint(expensive)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_POST(self) -> None:
            content = orjson.dumps(made.answer(orjson.loads(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}/"
    threading.Thread(target=server.serve_forever, name="scorer", daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
