"""``POST .../pairs``: what a scorer said, page by page, with the texts it read, to train a smaller model on."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from nearfield_index.collection import Collection
from nearfield_index.errors import InvalidRequest
from nearfield_index.limits import Limits
from nearfield_index.ranking.anchorset import AnchorSet
from nearfield_index.schema import check_int, check_name, check_object
from nearfield_index.storage.scores import AnchorScores

Json = dict[str, Any]

_KEYS = frozenset({"limit", "cursor", "reranker"})
_PAGE = 1_000


def scored_pairs(collection: Collection, body: Mapping[str, Any], *, limits: Limits) -> Json:
    """A page of the pairs that queries had scored, or with ``reranker`` of its anchor queries with all points.

    Points that are gone by now are left out, so a page may hold fewer pairs than asked for.
    """
    check_object(body, at="body", known=_KEYS)
    limit = body.get("limit")
    limit = check_int(_PAGE if limit is None else limit, at="limit", low=1, high=limits.scan_page)
    after = 0 if body.get("cursor") is None else _decode(body["cursor"])
    if body.get("reranker") is None:
        return _logged(collection, after, limit)
    return _anchored(collection, check_name(body["reranker"], at="reranker"), after, limit)


def _logged(collection: Collection, after: int, limit: int) -> Json:
    found = collection.pair_log.read(after, limit)
    points = {p.pk: p for p in collection.store.fetch(dict.fromkeys(pair.pk for pair in found))}
    pairs = [
        {
            "query": pair.text,
            "id": points[pair.pk].id,
            "text": points[pair.pk].text,
            "score": pair.score,
            "scorer": pair.scorer,
            "version": pair.version,
        }
        for pair in found
        if pair.pk in points
    ]
    return {"pairs": pairs, "next_cursor": _encode(found[-1].number) if len(found) == limit else None}


def _anchored(collection: Collection, name: str, after: int, limit: int) -> Json:
    reranker = collection.rerankers.get(name)
    spec = reranker.current
    directory = reranker.directory / spec["directory"]
    anchors = AnchorSet.open(directory / "anchors")
    count = max(1, limit // len(anchors.texts))
    scores = AnchorScores(directory / "scores.db", anchors=len(anchors.texts))
    try:
        found = list(scores.read(after, count))
    finally:
        scores.close()
    points = {p.pk: p for p in collection.store.fetch([pk for pk, _ in found])}
    pairs = [
        {
            "query": text,
            "id": points[pk].id,
            "text": points[pk].text,
            "score": float(score),
            "scorer": spec["scorer"],
            "version": spec["version"],
        }
        for pk, row in found
        if pk in points
        for text, score in zip(anchors.texts, row.tolist(), strict=True)
    ]
    return {"pairs": pairs, "next_cursor": _encode(found[-1][0]) if len(found) == count else None}


def _encode(number: int) -> str:
    return base64.urlsafe_b64encode(f"pair:{number}".encode()).decode()


def _decode(cursor: object) -> int:
    try:
        if isinstance(cursor, str) and len(cursor) <= 64:
            text = base64.urlsafe_b64decode(cursor.encode("ascii")).decode("ascii")
            if text.startswith("pair:") and text[5:].isdigit():
                return min(int(text[5:]), 2**63 - 1)
    except (ValueError, binascii.Error):
        pass
    raise InvalidRequest("is not a cursor of these pairs", code="invalid_cursor", field="cursor")
