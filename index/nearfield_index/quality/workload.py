"""A bounded log of the filters that a collection is asked, with some of their query vectors; templates and drift.

What it holds is a sample: each query of late is as likely in it as any other. It goes by the default vector field,
which is what rows are laid out by, and leaves out what names ids. ``index.workload: false`` switches it off.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import orjson
import xxhash

from nearfield_index.errors import Corrupt, InvalidRequest, TooLarge
from nearfield_index.execution.query import parse_filters
from nearfield_index.filters.expr import Everything, Expr, Nothing
from nearfield_index.filters.parse import parse_filter
from nearfield_index.filters.unparse import template, to_wire
from nearfield_index.limits import Limits
from nearfield_index.schema import Schema, check_number, check_object
from nearfield_index.segments.layout import Workload
from nearfield_index.storage.arrays import open_arrays, replace_arrays, temporary_of
from nearfield_index.vectors import as_matrix

Floats = np.ndarray[Any, np.dtype[np.float32]]

WORTH = 0.05
"""The share of their time that queries must be expected to save, or a layout is not made."""

ENOUGH = 200
"""Logged queries from which on a layout is made, and drift is believed."""

_SIZE = 1_000
_FILTER_BYTES = 4_096
_PER_CALL = 64
# One entry in so many keeps its vector: enough to measure with, whatever the dimension.
_WITH_VECTOR = 8
# The sample reaches back over about so many queries: past them, an old entry makes room as often as it came in.
_REACH = 20_000
_TEMPLATES = 64
_TEMPLATE_LENGTH = 200
_OTHERS = "others"


@dataclass(frozen=True)
class Entry:
    """One logged query: its filter, the filter's template, the vector where it was kept, its number."""

    expr: Expr
    template: str
    vector: Floats | None
    number: int


class WorkloadLog:
    """At most 1,000 entries whose filters take at most 4 KB; a batch gives at most 64."""

    def __init__(self, schema: Schema) -> None:
        self._lock = Lock()
        self._saving = Lock()
        self._entries: list[Entry] = []
        self._on = True
        self.seen = 0
        """Filtered queries so far; the number of the next entry."""
        self.use_schema(schema)

    def use_schema(self, schema: Schema) -> None:
        """Go on with a changed schema; switching the log off forgets everything."""
        with self._lock:
            self.field = next(iter(schema.vectors))
            if not schema.index.workload and self._on:
                self._entries, self.seen = [], 0
            self._on = schema.index.workload

    def note(self, field: str, filters: Sequence[Expr | None], vectors: Floats) -> bool:
        """Maybe keep queries ``(n, dim)`` with their filters, one for all or one each; returns whether it did."""
        if not self._on or field != self.field or (len(filters) == 1 and filters[0] is None):
            return False
        count = len(vectors)
        chosen = range(count) if count <= _PER_CALL else random.sample(range(count), _PER_CALL)
        kept = False
        for number in chosen:
            expr = filters[number if len(filters) > 1 else 0]
            if expr is not None and (place := self._place()) < _SIZE and is_loggable(expr):
                kept |= self._put(place, expr, vectors[number])
        return kept

    def _place(self) -> int:
        """Where the next entry goes; ``_SIZE`` or more: nowhere."""
        with self._lock:
            self.seen += 1
            if len(self._entries) < _SIZE:
                return len(self._entries)
            return int(random.random() * (self.seen if self.seen < _REACH else _REACH))

    def _put(self, place: int, expr: Expr, vector: Floats | None) -> bool:
        kept = vector.copy() if vector is not None and place % _WITH_VECTOR == 0 else None
        entry = Entry(expr, template_of(expr), kept, self.seen)
        with self._lock:
            if not self._on:
                return False
            if place < len(self._entries):
                self._entries[place] = entry
            elif len(self._entries) < _SIZE:
                self._entries.append(entry)
        return True

    def replace(self, filters: Sequence[Expr], vectors: Floats | None) -> None:
        """Put the caller's own filters (at least one, as loggable), and vectors ``(n, dim)``, in place of the log."""
        chosen = sorted(random.sample(range(len(filters)), _SIZE)) if len(filters) > _SIZE else range(len(filters))
        with self._lock:
            self.seen += len(filters)
            self._entries = [
                Entry(
                    filters[each],
                    template_of(filters[each]),
                    vectors[each].copy() if vectors is not None and place % _WITH_VECTOR == 0 else None,
                    self.seen,
                )
                for place, each in enumerate(chosen)
            ]

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> list[Entry]:
        """What is held."""
        with self._lock:
            return list(self._entries)

    def workload(self) -> Workload:
        """The distinct filters with how often each is held."""
        return Workload(Counter(entry.expr for entry in self.entries()))

    # ------------------------------------------------------------------ over a restart

    def save(self, path: Path) -> None:
        """Keep the log over a restart; what was kept before is gone where there is nothing to keep."""
        with self._saving:
            entries = self.entries() if self._on else []
            if entries:
                self._write(path, entries)
            else:
                for old in (path, temporary_of(path)):
                    old.unlink(missing_ok=True)

    def _write(self, path: Path, entries: Sequence[Entry]) -> None:
        with_vector = [number for number, entry in enumerate(entries) if entry.vector is not None]
        vectors = [entry.vector for entry in entries if entry.vector is not None]
        meta = {
            "field": self.field,
            "seen": self.seen,
            "filters": [to_wire(entry.expr) for entry in entries],
            "numbers": [entry.number for entry in entries],
            "vectors": with_vector,
        }
        arrays: dict[str, Any] = {"vectors": np.stack(vectors)} if vectors else {}
        digest = xxhash.xxh3_64_hexdigest(orjson.dumps(meta))
        replace_arrays(path, arrays, {"log": meta, "xxh3": digest})

    def load(self, path: Path, schema: Schema, limits: Limits) -> None:
        """Take back what :meth:`save` wrote, as far as it is whole and still makes sense; it is only a sample."""
        if not self._on:
            return
        try:
            arrays, meta = open_arrays(path)
            held = meta["log"]
            if meta["xxh3"] != xxhash.xxh3_64_hexdigest(orjson.dumps(held)) or held["field"] != self.field:
                return
            vectors = dict(zip(held["vectors"], arrays.get("vectors", ()), strict=True))
            dim = schema.vectors[self.field].dim
            declared = {name: str(kind) for name, kind in schema.attributes.items()}
            entries = []
            for number, body in enumerate(held["filters"][:_SIZE]):
                expr = _parsed(body, declared, limits)
                vector = vectors.get(number)
                if vector is not None and (vector.shape != (dim,) or not np.isfinite(vector).all()):
                    return
                if expr is not None:
                    own = None if vector is None else np.array(vector, dtype=np.float32)
                    entries.append(Entry(expr, template_of(expr), own, int(held["numbers"][number])))
            self._entries, self.seen = entries, max(int(held["seen"]), len(entries))
        except (OSError, Corrupt, ValueError, KeyError, TypeError, IndexError):
            return


def _parsed(body: Any, declared: Mapping[str, str], limits: Limits) -> Expr | None:
    """A logged filter under the schema of now; None where it no longer fits."""
    try:
        expr = parse_filter(body, declared=declared, limits=limits)
    except InvalidRequest:
        return None
    return expr if is_loggable(expr) else None


def is_loggable(expr: Expr) -> bool:
    """Whether a filter tells anything about rows in general, and is not too long to keep."""
    if isinstance(expr, Everything | Nothing) or expr.point_ids():
        return False
    return len(orjson.dumps(to_wire(expr))) <= _FILTER_BYTES


def parse_workload(
    body: object, *, schema: Schema, limits: Limits
) -> tuple[float, tuple[list[Expr], Floats | None] | None]:
    """The ``workload`` of an optimise request: ``{"filters": [..], "vectors": V, "least_gain": 0.05}``, all optional.

    The gain that a layout must promise, and the filters that may be logged with their vectors. Raises
    :class:`InvalidRequest` naming the part at fault.
    """
    if body is None:
        return WORTH, None
    parts = check_object(body, at="workload", known=frozenset({"filters", "vectors", "least_gain"}))
    least = parts.get("least_gain")
    least = WORTH if least is None else check_number(least, at="workload.least_gain", low=0.0, high=1.0)
    at = "workload.filters"
    if parts.get("filters") is None and parts.get("vectors") is None:
        return least, None
    filters = parts.get("filters")
    if not isinstance(filters, (list, tuple)) or not filters:
        raise InvalidRequest("must be a list of filters, one per query", code="missing", field=at)
    if len(filters) > limits.queries:
        raise TooLarge(f"at most {limits.queries} filters", field=at, hint="send a sample of them")
    vectors = None
    if parts.get("vectors") is not None:
        spec = next(iter(schema.vectors.values()))
        vectors = as_matrix(
            parts["vectors"], dim=spec.dim, at="workload.vectors", metric=spec.metric, max_rows=limits.queries
        )
        if len(vectors) != len(filters):
            raise InvalidRequest("must be as many as there are filters", field="workload.vectors", value=len(vectors))
    exprs = parse_filters(filters, at, schema=schema, limits=limits)
    loggable: dict[Expr, bool] = {}
    kept = [
        number
        for number, expr in enumerate(exprs)
        if expr is not None and (loggable[expr] if expr in loggable else loggable.setdefault(expr, is_loggable(expr)))
    ]
    if not kept:
        raise InvalidRequest(
            "holds no filter that rows could be laid out for",
            field=at,
            hint=f"filters on attributes, of at most {_FILTER_BYTES} bytes each",
        )
    usable = [expr for number in kept if (expr := exprs[number]) is not None]
    return least, (usable, None if vectors is None else vectors[kept])


# ---------------------------------------------------------------------- templates and drift


def template_of(expr: Expr) -> str:
    """The template; long ones end in a digest of the whole."""
    text = template(expr)
    if len(text) <= _TEMPLATE_LENGTH:
        return text
    return f"{text[: _TEMPLATE_LENGTH - 20]}..{xxhash.xxh3_64_hexdigest(text.encode())}"


def histogram(templates: Sequence[str]) -> dict[str, float]:
    """The share of each template, most frequent first; of many, the rest together as ``others``."""
    if not templates:
        return {}
    ranked = Counter(templates).most_common()
    shares = {name: count / len(templates) for name, count in ranked[:_TEMPLATES]}
    if len(ranked) > _TEMPLATES:
        shares[_OTHERS] = sum(count for _, count in ranked[_TEMPLATES:]) / len(templates)
    return shares


def drift(then: Mapping[str, float], now: Sequence[str]) -> float:
    """Total variation distance between the templates of then and of now: 0 the same, 1 nothing in common."""
    known = [name if name in then else _OTHERS for name in now]
    shares = {name: count / len(known) for name, count in Counter(known).items()}
    return sum(abs(then.get(name, 0.0) - shares.get(name, 0.0)) for name in then.keys() | shares.keys()) / 2
