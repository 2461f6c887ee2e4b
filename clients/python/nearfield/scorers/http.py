"""Scorers behind HTTP, in the shapes that rerank servers speak.

``tei`` (text-embeddings-inference ``/rerank``) and ``cohere`` / ``jina`` take one query a call; ``pairs``
(text-embeddings-inference ``/predict``) takes pairs, so that concurrent queries share its batches.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from nearfield.errors import InvalidRequest
from nearfield.scorers import ScorerError

Pair = tuple[str, str]

_MOST_BYTES = 32 * 1024 * 1024
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class HttpScorer:
    """One endpoint. ``body`` is added to every request (``{"truncate": true}``); ``model`` names it where the
    endpoint serves several. ``version`` defaults to kind, address and model: give one that changes with the weights.
    """

    def __init__(
        self,
        kind: str,
        *,
        url: str,
        model: str | None = None,
        version: str | None = None,
        api_key: str | None = None,
        body: Mapping[str, Any] | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        import httpx2

        if not url.startswith(("http://", "https://")):
            raise InvalidRequest("a scorer's address begins with http:// or https://", field="url")
        self.kind = kind
        self.version = version or ":".join(part for part in (kind, url, model) if part)
        self.limits: dict[str, Any] = {"one_query": kind != "pairs", **(limits or {})}
        self._url = url
        self._model = model
        self._body = dict(body or {})
        headers = {"content-type": "application/json", "accept": "application/json"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        calls = int(self.limits.get("max_in_flight", 4))
        self._client = httpx2.Client(
            headers=headers,
            trust_env=False,
            limits=httpx2.Limits(max_connections=calls, max_keepalive_connections=calls),
        )

    def score(self, pairs: Sequence[Pair], *, timeout_s: float) -> list[float]:
        """Return one number a pair, in order. Raises ScorerError."""
        reply = self._post(self._request(pairs), timeout_s)
        try:
            return self._read(reply, len(pairs))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ScorerError(f"the reply is not of the shape of {self.kind}") from error

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _request(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        if self.kind == "pairs":
            return {"inputs": [[query, text] for query, text in pairs], **self._body}
        texts = [text for _, text in pairs]
        if self.kind == "tei":
            return {"query": pairs[0][0], "texts": texts, **self._body}
        named = {} if self._model is None else {"model": self._model}
        return {**named, "query": pairs[0][0], "documents": texts, "top_n": len(texts), **self._body}

    def _read(self, reply: Any, count: int) -> list[float]:
        if self.kind == "pairs":
            rows = reply["scores"] if isinstance(reply, dict) else reply
            return [float(_only(row)) for row in rows]
        rows, name = (reply, "score") if self.kind == "tei" else (reply["results"], "relevance_score")
        found: list[float | None] = [None] * count
        for row in rows:
            if not 0 <= row["index"] < count:
                raise ScorerError("it answered for a text that was not sent")
            found[row["index"]] = float(row[name])
        known = [value for value in found if value is not None]
        if len(rows) != count or len(known) != count:
            raise ScorerError(f"it answered {len(known)} of {count} texts")
        return known

    def _post(self, body: dict[str, Any], timeout_s: float) -> Any:
        import httpx2

        ends = time.monotonic() + timeout_s
        try:
            with self._client.stream("POST", self._url, content=orjson.dumps(body), timeout=timeout_s) as reply:
                if reply.status_code != 200:
                    raise ScorerError(
                        f"the endpoint answered {reply.status_code}", retryable=reply.status_code in _AGAIN
                    )
                raw = bytearray()
                for chunk in reply.iter_bytes():
                    raw += chunk
                    if len(raw) > _MOST_BYTES:
                        raise ScorerError("the reply is too large", retryable=False)
                    if time.monotonic() > ends:
                        raise ScorerError(f"no whole reply within {timeout_s} seconds")
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as failure:
            raise ScorerError(f"no connection ({type(failure).__name__})", sent=False) from failure
        except httpx2.TimeoutException as failure:
            raise ScorerError(f"no reply within {timeout_s} seconds") from failure
        except httpx2.TransportError as failure:
            raise ScorerError(f"the connection broke ({type(failure).__name__})") from failure
        try:
            return orjson.loads(raw)
        except orjson.JSONDecodeError as failure:
            raise ScorerError("the reply is not JSON") from failure


def _only(row: Any) -> Any:
    """The score of one pair: a number, or a list of labelled scores of which there is one."""
    if isinstance(row, list):
        (row,) = row
    return row["score"] if isinstance(row, dict) else row
