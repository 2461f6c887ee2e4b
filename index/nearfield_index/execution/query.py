"""A checked query: everything a search needs to know, nothing unchecked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from nearfield_index.errors import InvalidRequest, TooLarge
from nearfield_index.filters.expr import Everything, Expr
from nearfield_index.filters.parse import parse_filter
from nearfield_index.limits import Limits
from nearfield_index.points import PointId, check_ids
from nearfield_index.ranking.request import Rerank, check_counts, parse_rerank
from nearfield_index.schema import (
    Schema,
    check_attribute_name,
    check_flag,
    check_int,
    check_number,
    check_object,
    check_recall,
)
from nearfield_index.vectors import Floats, as_matrix, as_vector

_KEYS = frozenset(
    "vector vectors ids field k offset filter filters select with min_score recall exact hubness hubness_strength"
    " rerank after timeout_ms explain".split()
)
_LEAST_DIM = 64  # a hit costs as much to tell as so many products
_EXTRAS = frozenset({"vectors", "text"})


class Selection(NamedTuple):
    """What of a stored point goes into a reply: ``attributes`` is all (True), none (False) or some names."""

    attributes: bool | tuple[str, ...]
    vectors: bool
    text: bool

    @property
    def anything(self) -> bool:
        """Whether the row store must be asked at all."""
        return self.attributes is not False or self.vectors or self.text


_EVERYTHING = Selection(True, False, False)
_NOTHING = Selection(False, False, False)


class Query(NamedTuple):
    """``vectors`` ``(n, dim)`` raw, or ``ids`` whose stored vectors are searched with; one filter or one each."""

    field: str
    vectors: Floats | None
    ids: list[PointId] | None
    k: int
    offset: int
    filters: list[Expr | None]
    selection: Selection
    min_score: float | None
    recall: float
    after: int | None
    timeout_s: float | None
    explain: bool
    hubness: str = "auto"
    hubness_strength: float | None = None
    rerank: Rerank | None = None

    @property
    def size(self) -> int:
        """Number of queries."""
        if self.vectors is not None:
            return len(self.vectors)
        return len(self.ids or ())

    @property
    def hits(self) -> int:
        """How many hits are looked for, those before ``offset`` included."""
        return self.size * (self.k + self.offset)


def parse_query(body: Mapping[str, Any], *, schema: Schema, limits: Limits) -> Query:
    """Check a query request. Raises :class:`InvalidRequest` naming the field at fault."""
    get = check_object(body, at="body", known=_KEYS).get
    _refuse_unbuilt(get("vector"))
    name = schema.field_of(body)
    field = schema.field(name)
    k = check_int(get("k", 10), at="k", low=1, high=limits.k)
    offset = check_int(body["offset"], at="offset", low=0, high=limits.k) if "offset" in body else 0
    if k + offset > limits.k:
        raise InvalidRequest(f"k + offset is at most {limits.k}", field="offset")
    vectors, ids = _parse_target(body, field, limits)
    count = len(vectors) if vectors is not None else len(ids or ())
    hits = count * (k + offset)
    if hits > limits.hits:
        raise TooLarge(
            f"queries x (k + offset) is {hits}, the limit is {limits.hits} hits",
            field="k",
            value=k,
            hint="split the batch, or ask for a smaller k",
        )
    cost = hits * max(field.dim, _LEAST_DIM)
    if cost > limits.query_cost:
        raise TooLarge(
            f"queries x k x dim is {cost}, the limit is {limits.query_cost}",
            field="k",
            hint="split the batch",
        )
    recall, timeout, minimum, after, rerank = map(get, ("recall", "timeout_ms", "min_score", "after", "rerank"))
    recall = schema.index.recall if recall is None else check_recall(recall, at="recall")
    if "exact" in body and check_flag(body["exact"], at="exact"):
        recall = 1.0
    return Query(
        name,
        vectors,
        ids,
        k,
        offset,
        _parse_filters(body, count, schema, limits),
        parse_selection(body),
        None if minimum is None else check_number(minimum, at="min_score", low=-1e300, high=1e300),
        recall,
        None if after is None else check_int(after, at="after", low=0, high=2**63 - 1),
        None if timeout is None else check_int(timeout, at="timeout_ms", low=1, high=3_600_000) / 1000,
        "explain" in body and check_flag(body["explain"], at="explain"),
        *_parse_hubness(body),
        None if rerank is None else _parse_rerank(rerank, count, k + offset, limits),
    )


def _parse_hubness(body: Mapping[str, Any]) -> tuple[str, float | None]:
    """Whether to normalise, and how strongly where the fit's method leaves that open."""
    mode, strength = body.get("hubness", "auto"), body.get("hubness_strength")
    if not isinstance(mode, str) or mode not in ("auto", "off", "on"):
        raise InvalidRequest("must be auto, off or on", field="hubness")
    if strength is None:
        return mode, None
    return mode, check_number(strength, at="hubness_strength", low=0.01, high=4.0)


def _parse_rerank(body: Any, count: int, wanted: int, limits: Limits) -> Rerank:
    rerank = parse_rerank(body, wanted=wanted, limits=limits)
    check_counts(rerank, count, limits)
    return rerank


def _refuse_unbuilt(vector: object) -> None:
    if isinstance(vector, np.ndarray):
        return
    if isinstance(vector, Mapping) and ("positive" in vector or "negative" in vector):
        raise InvalidRequest("positive and negative examples are not built yet", code="not_yet", field="vector")
    if isinstance(vector, list) and vector and isinstance(vector[0], Mapping):
        raise InvalidRequest("several weighted fields are not built yet", code="not_yet", field="vector")


def _parse_target(body: Mapping[str, Any], field: Any, limits: Limits) -> tuple[Floats | None, list[PointId] | None]:
    one, many, ids = map(body.get, ("vector", "vectors", "ids"))
    given = 3 - ((one is None) + (many is None) + (ids is None))
    if not given:
        raise InvalidRequest("a query needs one of 'vector', 'vectors' or 'ids'", code="missing", field="vector")
    if given > 1:
        raise InvalidRequest("give exactly one of 'vector', 'vectors' and 'ids'", field="vector")
    if one is not None:
        return as_vector(one, dim=field.dim, at="vector", metric=field.metric)[np.newaxis], None
    if many is not None:
        matrix = as_matrix(many, dim=field.dim, at="vectors", metric=field.metric, max_rows=limits.queries)
        return matrix, None
    return None, check_ids(ids, at="ids", limits=limits)


def _parse_filters(body: Mapping[str, Any], count: int, schema: Schema, limits: Limits) -> list[Expr | None]:
    whole, filters = body.get("filter"), body.get("filters")
    if filters is None:
        return [_parse_one(whole, "filter", schema, limits)]
    if whole is not None:
        raise InvalidRequest("give either 'filter' or 'filters'", field="filters")
    if not isinstance(filters, (list, tuple)) or len(filters) != count:
        raise InvalidRequest(f"must be a list of {count} filters, one per query", field="filters")
    return parse_filters(filters, "filters", schema=schema, limits=limits)


def parse_filters(filters: Sequence[object], at: str, *, schema: Schema, limits: Limits) -> list[Expr | None]:
    """Each of a list of filters; None for one that passes everything."""
    known: dict[bytes, Expr | None] = {}
    return [_parse_known(f, f"{at}[{n}]", schema, limits, known) for n, f in enumerate(filters)]


def _parse_known(body: object, at: str, schema: Schema, limits: Limits, known: dict[bytes, Expr | None]) -> Expr | None:
    """Parse a filter of a batch, equal ones once: a batch of thousands holds a few hundred different ones."""
    try:
        text = orjson.dumps(body)
    except TypeError:  # not JSON: what is wrong with it is the parser's to say
        return _parse_one(body, at, schema, limits)
    if text not in known:
        known[text] = _parse_one(body, at, schema, limits)
    return known[text]


def _parse_one(body: object, at: str, schema: Schema, limits: Limits) -> Expr | None:
    if body is None:
        return None
    expr = parse_filter(body, declared=schema.declared, limits=limits, where=at)
    return None if isinstance(expr, Everything) else expr


def parse_filter_of(body: Mapping[str, Any], *, schema: Schema, limits: Limits, key: str = "filter") -> Expr | None:
    """The filter of a request; None when it has none or it passes everything."""
    return _parse_one(body.get(key), key, schema, limits)


def parse_selection(body: Mapping[str, Any]) -> Selection:
    """The ``select`` and ``with`` keys of a request."""
    select = body.get("select", True)
    if type(select) is bool and body.get("with") is None:
        return _EVERYTHING if select else _NOTHING
    if isinstance(select, np.ndarray):
        select = select.tolist()
    if select is None:
        select = True
    if not isinstance(select, bool):
        if not isinstance(select, (list, tuple)) or len(select) > 256:
            raise InvalidRequest("must be true, false or a list of attribute names", field="select")
        select = tuple(check_attribute_name(name, at="select") for name in select)
    extra = body.get("with")
    if extra is None:
        extra = []
    if not isinstance(extra, (list, tuple)) or any(not isinstance(e, str) or e not in _EXTRAS for e in extra):
        raise InvalidRequest("must be a list of 'vectors' and 'text'", field="with")
    return Selection(select, "vectors" in extra, "text" in extra)
