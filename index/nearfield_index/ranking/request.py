"""The ``rerank`` part of a query, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nearfield_index.errors import InvalidRequest, TooLarge
from nearfield_index.limits import Limits
from nearfield_index.schema import check_flag, check_int, check_name, check_object

METHODS = ("rerank", "axn", "anncur", "adacur", "joint")
WITH_LATENTS = frozenset({"anncur", "adacur", "joint"})
_KEYS = frozenset({"scorer", "reranker", "query", "method", "budget", "rounds", "prior"})
_ROUNDS = 5
_MOST_ROUNDS = 50
_BUDGET = 100


@dataclass(frozen=True)
class Rerank:
    """Search under ``scorer`` or ``reranker`` (one of them), for these query texts, one a query vector.

    ``budget`` bounds the distinct items scored for a query. ``prior``: whether the base score counts as evidence.
    """

    scorer: str | None
    reranker: str | None
    texts: tuple[str, ...]
    method: str
    budget: int
    rounds: int
    prior: bool


def parse_rerank(body: object, *, wanted: int, limits: Limits) -> Rerank:
    """Check a ``rerank`` object; ``wanted`` is k + offset, which the budget must cover."""
    parts = check_object(body, at="rerank", known=_KEYS)
    named = [key for key in ("scorer", "reranker") if parts.get(key) is not None]
    if len(named) != 1:
        raise InvalidRequest("give one of 'scorer' and 'reranker'", code="missing", field="rerank.scorer")
    name = check_name(parts[named[0]], at=f"rerank.{named[0]}")
    usual = "joint" if named == ["reranker"] else "axn"
    method = usual if parts.get("method") is None else parts["method"]
    if method not in METHODS:
        raise InvalidRequest(f"must be one of: {', '.join(METHODS)}", field="rerank.method")
    if method in WITH_LATENTS and named == ["scorer"]:
        raise InvalidRequest(
            f"{method} needs a fitted reranker",
            code="reranker_needed",
            field="rerank.method",
            hint="PUT .../rerankers/{name} fits one; axn and rerank need none",
        )
    budget = max(_BUDGET, wanted) if parts.get("budget") is None else parts["budget"]
    budget = check_int(budget, at="rerank.budget", low=1, high=limits.rerank_calls)
    if wanted > budget:
        raise InvalidRequest(
            "k + offset is larger than the budget", field="rerank.budget", hint=f"a budget of {wanted} or more"
        )
    rounds = check_int(
        _ROUNDS if parts.get("rounds") is None else parts["rounds"], at="rerank.rounds", low=1, high=_MOST_ROUNDS
    )
    return Rerank(
        name if named == ["scorer"] else None,
        name if named == ["reranker"] else None,
        _texts(parts, limits),
        method,
        budget,
        rounds,
        check_flag(True if parts.get("prior") is None else parts["prior"], at="rerank.prior"),
    )


def _texts(parts: Mapping[str, object], limits: Limits) -> tuple[str, ...]:
    given = parts.get("query")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, (list, tuple)) or not texts:
        raise InvalidRequest("must be the query's text, or a list of one a query", code="missing", field="rerank.query")
    for text in texts:
        check_text(text, at="rerank.query", limits=limits)
    return tuple(texts)


def check_text(text: object, *, at: str, limits: Limits) -> str:
    """A query's text: not empty, valid unicode, within the limit of bytes."""
    if not isinstance(text, str) or not text.strip():
        raise InvalidRequest("must be text that is not empty", field=at)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRequest("must be valid unicode", field=at) from None
    if size > limits.rerank_query_bytes:
        raise TooLarge(f"a query's text has at most {limits.rerank_query_bytes} bytes", field=at)
    return text


def check_counts(rerank: Rerank, queries: int, limits: Limits) -> None:
    """One text a query, and a bounded number of calls a request."""
    if len(rerank.texts) != queries:
        raise InvalidRequest(
            f"{queries} queries need {queries} texts, {len(rerank.texts)} were given", field="rerank.query"
        )
    if queries * rerank.budget > limits.rerank_calls:
        raise TooLarge(
            f"queries x budget is at most {limits.rerank_calls}", field="rerank.budget", hint="split the batch"
        )
