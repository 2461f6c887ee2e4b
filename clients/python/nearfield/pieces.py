"""Calls about more ids or queries than one request may hold: cut up, run one after the other, joined.

Writes of points, which are cut by their bytes, are in ``nearfield.bulk``.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

from nearfield import operations
from nearfield.errors import Error, InvalidRequest, TooLarge
from nearfield.operations import Operation, Reply
from nearfield.results import Id

T = TypeVar("T")

_FEW = 10_000  # what one request may hold unless the server was set up otherwise, so that nobody need be asked
_FEW_BYTES = 4 * 1024 * 1024
_FILLED = 0.9  # of the largest body: the rest is for names, filters and options
_COUNTED = {"get_points": "points", "delete_points": "deleted", "patch_points": "patched", "release_points": "released"}
_WRITES = _COUNTED.keys() - {"get_points"}
_PER_QUERY = ("vectors", "ids", "filters")
_DIVISIBLE = frozenset({None, "body", "ids", "q", "k", "wheres"})
_NUMBERED = re.compile(r"(ids|wheres)\[(\d+)\]")
_VECTOR = re.compile(r"vector (\d+)\b")  # of a batch of vectors the text tells which

_Steps = Generator[Operation[Any], Any, T]


def run(carry_out: Callable[[Operation[Any]], Any], operation: Operation[T]) -> T:
    """Carry out an operation in as many requests as it takes.

    Each piece is a request of its own: ``timeout_ms`` holds for each, and writes of others may come between them.
    What the pieces before a failure deleted or changed stays so; a note on the error tells how many ids that were.
    """
    if _size(operation) < 2:
        result: T = carry_out(operation)
        return result
    steps, outcome = _steps(operation), None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as finished:
            joined: T = finished.value
            return joined
        try:
            outcome = carry_out(step)
        except Error as failure:
            outcome = failure


async def run_async(carry_out: Callable[[Operation[Any]], Awaitable[Any]], operation: Operation[T]) -> T:
    """The same, awaited."""
    if _size(operation) < 2:
        result: T = await carry_out(operation)
        return result
    steps, outcome = _steps(operation), None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as finished:
            joined: T = finished.value
            return joined
        try:
            outcome = await carry_out(step)
        except Error as failure:
            outcome = failure


def _steps(whole: Operation[T]) -> _Steps[T]:
    """Yield what to carry out, take each reply or Error in, and return the reply of the whole."""
    whole, given = _distinct(whole)
    size = _size(whole)
    _check_lengths(whole, size)
    most = size
    if size > _FEW or _bytes(whole) > _FEW_BYTES:
        limits = yield operations.info()
        if isinstance(limits, Error):
            raise limits
        most = _most(whole, size, limits.get("limits", {}))
    replies: list[Reply] = []
    start = 0
    while start < size:
        stop = min(start + most, size)
        part: Operation[Any] = whole
        outcome = yield part._replace(body=_slice(whole, start, stop), parse=dict)
        if isinstance(outcome, TooLarge) and stop - start > 1 and outcome.field in _DIVISIBLE:
            most = (stop - start + 1) // 2
            continue
        if isinstance(outcome, Error):
            raise _placed(outcome, whole, start, given)
        replies.append(outcome)
        start = stop
    return whole.parse(_joined(whole, replies))


def _size(operation: Operation[Any]) -> int:
    """How many ids or queries an operation is about; 0 for one that cannot be cut up."""
    body = operation.body or {}
    if operation.call in _COUNTED:
        return len(body.get("ids") or ())
    if operation.call == "query":
        return len(body["vectors"] if "vectors" in body else body.get("ids") or ())
    return 0


def _bytes(operation: Operation[Any]) -> int:
    return int(getattr((operation.body or {}).get("vectors"), "nbytes", 0))


def _most(whole: Operation[Any], size: int, limits: dict[str, int]) -> int:
    by_vector = whole.call == "query" and "vectors" in (whole.body or {})
    most = min(size, limits.get("queries" if by_vector else "points", _FEW))
    per_query = _bytes(whole) // size
    if per_query and "body_bytes" in limits:
        most = min(most, int(limits["body_bytes"] * _FILLED) // per_query)
    return max(1, most)


def _slice(whole: Operation[Any], start: int, stop: int) -> dict[str, Any]:
    """Return the body of the part from ``start`` to ``stop``."""
    body = dict(whole.body or {})
    for key in _PER_QUERY if whole.call == "query" else ("ids",):
        if key in body:
            body[key] = body[key][start:stop]
    rerank = body.get("rerank")
    if isinstance(rerank, dict) and isinstance(rerank.get("query"), list):
        body["rerank"] = {**rerank, "query": rerank["query"][start:stop]}
    return body


def _distinct(whole: Operation[T]) -> tuple[Operation[T], list[Id]]:
    """Return the operation with each id once, as one request counts them, and the ids as they were given.

    Every query of a batch counts, and ids that are none are the server's to refuse, so those stay as they are.
    """
    body = whole.body or {}
    given: list[Id] = body.get("ids") or []
    if whole.call == "query" or not {*map(type, given)} <= {int, str}:
        return whole, given
    distinct = list(dict.fromkeys(given))
    return (whole, given) if len(distinct) == len(given) else (whole._replace(body={**body, "ids": distinct}), given)


def _check_lengths(whole: Operation[Any], size: int) -> None:
    """What belongs to the queries one by one is cut up with them, so that it must be as long."""
    body = whole.body or {}
    filters, texts = body.get("filters"), (body.get("rerank") or {}).get("query")
    if filters is not None and len(filters) != size:
        raise InvalidRequest(f"must be a list of {size} filters, one per query", field="wheres")
    if isinstance(texts, list) and len(texts) != size:
        raise InvalidRequest(f"must be a list of {size} texts, one per query", field="rerank.query")


def _placed(failure: Error, whole: Operation[Any], start: int, given: list[Id]) -> Error:
    """Say of a failure where in the whole it lies, and what was done before it."""
    numbered = _NUMBERED.match(failure.field or "")
    if numbered and failure.field is not None:
        number = int(numbered[2]) + start
        if numbered[1] == "ids" and whole.call != "query":
            number = given.index((whole.body or {})["ids"][number])
        failure.field = f"{numbered[1]}[{number}]{failure.field[numbered.end() :]}"
    if start and whole.call == "query":
        failure.detail = _VECTOR.sub(lambda found: f"vector {int(found[1]) + start}", failure.detail, count=1)
        failure.args = (failure.detail,)
    if start and whole.call in _WRITES:
        failure.add_note(f"{start:,} of {_size(whole):,} ids are done and stay so; the same call again is safe")
    return failure


def _joined(whole: Operation[Any], replies: list[Reply]) -> Reply:
    if len(replies) == 1:
        return replies[0]
    if whole.call == "query":
        results = [hits for reply in replies for hits in reply["results"]]
        return {"results": results, "meta": _joined_meta(replies)}
    key = _COUNTED[whole.call]
    if whole.call == "get_points":
        return {key: [point for reply in replies for point in reply[key]]}
    return {key: sum(reply[key] for reply in replies)}


def _joined_meta(replies: list[Reply]) -> dict[str, Any]:
    """Return the account of all pieces: work adds up, and what holds for the whole is what holds for every piece."""
    metas = [reply["meta"] for reply in replies]
    meta = dict(metas[-1])
    meta["ms"] = round(sum(each["ms"] for each in metas), 3)
    meta["sequence"] = min(each["sequence"] for each in metas)
    meta["warnings"] = list(dict.fromkeys(text for each in metas for text in each["warnings"]))
    meta["recall"] = {"target": meta["recall"]["target"], "estimate": _mean_estimate(replies)}
    if "plans" in meta:
        meta["plans"] = [plan for each in metas for plan in each["plans"]]
    if "hubness" in meta:
        said = [each["hubness"] for each in metas]
        added = {key: sum(each[key] for each in said) for key in ("normalised",) if key in said[0]}
        meta["hubness"] = meta["hubness"] | added | {"exact": all(each["exact"] for each in said)}
    if "rerank" in meta:
        parts = [each["rerank"] for each in metas]
        added = {key: sum(part[key] for part in parts) for key in ("calls", "cached", "rounds", "ms", "scorer_ms")}
        meta["rerank"] = meta["rerank"] | added | {"partial": any(part["partial"] for part in parts)}
        if "per_round" in meta["rerank"]:
            meta["rerank"]["per_round"] = [each for part in parts for each in part["per_round"]]
    return meta


def _mean_estimate(replies: list[Reply]) -> float | None:
    told: list[tuple[float, int]] = [
        (estimate, len(reply["results"]))
        for reply in replies
        if (estimate := reply["meta"]["recall"]["estimate"]) is not None
    ]
    if not told:
        return None
    return round(sum(estimate * queries for estimate, queries in told) / sum(queries for _, queries in told), 4)
