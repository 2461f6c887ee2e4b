"""Stored points and search answers in the shape of the wire."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from nearfield_index.collection import Answer, Collection
from nearfield_index.errors import InvalidRequest
from nearfield_index.execution.query import Query, Selection
from nearfield_index.storage.rows import StoredPoint

Json = dict[str, Any]


def point_to_wire(point: StoredPoint, selection: Selection, vectors: Mapping[str, Mapping[int, Any]]) -> Json:
    """One stored point with what was selected of it."""
    return selected({"id": point.id}, point, selection, vectors)


def selected(found: Json, point: StoredPoint, selection: Selection, vectors: Mapping[str, Mapping[int, Any]]) -> Json:
    """``found`` with what was selected of a stored point added."""
    _add_selected(found, point, selection, vectors)
    return found


def _add_selected(
    found: Json, point: StoredPoint, selection: Selection, vectors: Mapping[str, Mapping[int, Any]]
) -> None:
    if selection.attributes is True:
        found["attributes"] = orjson.loads(point.attributes)
    elif selection.attributes is not False:
        stored = orjson.loads(point.attributes)
        found["attributes"] = {n: v for n in selection.attributes if (v := _pick(stored, n)) is not None}
    if selection.text and point.text is not None:
        found["text"] = point.text
    if selection.vectors:
        found["vectors"] = {n: rows[point.pk] for n, rows in vectors.items() if point.pk in rows}


def _pick(stored: Json, name: str) -> Any:
    """An attribute by name, or by the dotted name of a nested one."""
    if name in stored:
        return stored[name]
    value: Any = stored
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def points_to_wire(collection: Collection, points: Sequence[StoredPoint], selection: Selection) -> list[Json]:
    """Stored points with what was selected of them."""
    vectors = collection.vectors_of(points) if selection.vectors else {}
    return [point_to_wire(point, selection, vectors) for point in points]


def answer_to_wire(answer: Answer, query: Query) -> Iterator[list[Json]]:
    """Hits of each query, best first; made when asked for, since the objects of a hit are ten times what was found."""
    if answer.normalised is not None:
        yield from _normalised_to_wire(answer, query)
        return
    selection = query.selection
    plain = not selection.anything
    ids = iter(answer.ids)
    for scores, pks in zip(answer.found.scores, answer.found.pks, strict=True):
        whole = zip(pks.tolist(), scores.tolist(), ids, strict=False)  # the ids go on from query to query
        if plain:
            yield [{"id": i, "score": score} for pk, score, i in whole if pk >= 0]
            continue
        hits: list[Json] = []
        for pk, score, point_id in whole:
            if pk >= 0:
                hit: Json = {"id": point_id, "score": score}
                _add_selected(hit, answer.stored[pk], selection, answer.vectors)
                hits.append(hit)
        yield hits


def _normalised_to_wire(answer: Answer, query: Query) -> Iterator[list[Json]]:
    """Hits that carry what the ranking used: the score, without normalisation, and the bias between the two."""
    columns = (answer.found.pks, answer.found.scores, answer.raw, answer.biases)
    width = answer.found.pks.shape[1]
    for row, arrays in enumerate(zip(*columns, strict=True)):
        values = [array.tolist() for array in arrays]
        if not query.selection.anything:
            whole = zip(answer.ids[row * width : (row + 1) * width], *values, strict=True)
            yield [{"id": i, "score": s, "raw_score": r, "bias": b} for i, pk, s, r, b in whole if pk >= 0]
            continue
        hits: list[Json] = []
        for at, (pk, score, raw, bias) in enumerate(zip(*values, strict=True)):
            if pk < 0:
                continue
            hit: Json = {"id": answer.ids[row * width + at], "score": score, "raw_score": raw, "bias": bias}
            _add_selected(hit, answer.stored[pk], query.selection, answer.vectors)
            hits.append(hit)
        yield hits


def encode_cursor(pk: int) -> str:
    """An opaque place in the order of row keys."""
    return base64.urlsafe_b64encode(f"pk:{pk}".encode()).decode()


def decode_cursor(cursor: object) -> int:
    """The row key of a cursor. Raises :class:`InvalidRequest` for one that this engine did not make."""
    try:
        if isinstance(cursor, str) and len(cursor) <= 64:
            text = base64.urlsafe_b64decode(cursor.encode("ascii")).decode("ascii")
            if text.startswith("pk:") and text[3:].isdigit():
                return min(int(text[3:]), 2**63 - 1)
    except (ValueError, binascii.Error):
        pass
    raise InvalidRequest("is not a cursor of this collection", code="invalid_cursor", field="cursor")
