"""Running queries over a view: group by filter, plan each part, search, rescore from the rows, merge."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import faiss
import numpy as np

from nearfield_index.backends.base import Floats, Rows
from nearfield_index.backends.space import original, queried
from nearfield_index.bitmap import Bitmap
from nearfield_index.errors import DeadlineExceeded
from nearfield_index.execution.cost import PRODUCT_QUERIES, Calibrations
from nearfield_index.execution.plan import Plan, plan_part
from nearfield_index.execution.topk import Candidates, merge
from nearfield_index.filters.expr import Expr
from nearfield_index.schema import Metric
from nearfield_index.segments.part import BiasUse, FieldPart, FindKeys, LivePart
from nearfield_index.segments.view import View
from nearfield_index.threads import CORES

_SLACK = 4
_LARGEST_FETCH = 4_096
_DOUBLES = 8 * 1024 * 1024  # values of a block


@dataclass(frozen=True)
class Search:
    """One batch against one field: raw ``vectors`` ``(n, dim)``, ``filters`` one for all or one each."""

    field: str
    vectors: Floats
    filters: Sequence[Expr | None]
    k: int
    recall: float
    deadline: float | None = None
    bias: BiasUse | None = None
    """Rank by score less the bias of a hubness fit."""

    @property
    def calibrated(self) -> str:
        """The name under which this kind of search is calibrated."""
        return self.field if self.bias is None else calibrated_name(self.field, self.bias)


def calibrated_name(field: str, use: BiasUse) -> str:
    """Normalised searches are calibrated on their own, for the bias as it was fitted; stronger ones never."""
    return f"{field}@{use.version}" if use.variant == 0 and use.strength <= 1.0 else ""


class Ran(NamedTuple):
    """How one part answered one filter group."""

    segment: str
    plan: Plan
    queries: int
    seconds: float
    fallbacks: int

    def to_wire(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "segment": self.segment,
            "plan": plan.kind,
            "effort": plan.effort,
            "queries": self.queries,
            "rows": plan.rows,
            "selectivity": round(plan.selectivity, 6),
            "recall": round(plan.recall, 4),
            "estimated_us": None if plan.estimated_us is None else round(plan.estimated_us, 1),
            "us": round(self.seconds * 1e6 / max(1, self.queries), 1),
            "exact_fallbacks": self.fallbacks,
            "reason": plan.reason,
        }


@dataclass
class Report:
    """What was done: how each part answered each filter group, by group the queries and the largest part's plan."""

    ran: list[Ran] = field(default_factory=list)
    groups: list[tuple[Rows, Plan]] = field(default_factory=list)

    @property
    def plans(self) -> list[dict[str, Any]]:
        """As ``explain`` shows it."""
        return [ran.to_wire() for ran in self.ran]

    @property
    def recall(self) -> float:
        """The expected recall: that of the plans, weighted by the rows they chose from."""
        total = sum(r.plan.rows * r.queries for r in self.ran)
        return sum(r.plan.rows * r.queries * r.plan.recall for r in self.ran) / total if total else 1.0

    @property
    def all_exact(self) -> bool:
        """Whether every part was scanned."""
        return all(r.plan.kind in ("exact", "none") for r in self.ran)

    @property
    def exact_rows(self) -> int:
        """Rows scanned exactly."""
        return sum(r.plan.rows * r.queries for r in self.ran if r.plan.kind == "exact")

    def plan_of(self, query: int) -> Plan | None:
        """The plan of the largest part that a query was answered from."""
        return next((plan for members, plan in self.groups if query in members), None)


def run(
    view: View, search: Search, metric: Metric, calibrations: Calibrations, find_keys: FindKeys
) -> tuple[Candidates, Report]:
    """The best ``search.k`` of each query with exact scores, and the report of how they were found."""
    queries = queried(search.vectors, metric)
    faiss.omp_set_num_threads(CORES if len(queries) >= PRODUCT_QUERIES else 1)
    report = Report()
    groups = _group(search.filters, len(queries))
    answers: list[tuple[Rows, Candidates]] = []
    for expr, members in groups:
        mine = queries[members] if len(groups) > 1 else queries
        found: list[Candidates] = []
        largest: Plan | None = None
        for number, part in enumerate(view.searched):
            here = part.part.fields.get(search.field)
            if here is None or len(here) == 0:
                continue
            if search.bias is not None:
                here = here.biased(search.bias)
            _check_deadline(search.deadline)
            found.append(_search_part(number, part, here, expr, mine, search, calibrations, find_keys, report))
            plan = report.ran[-1].plan
            largest = plan if largest is None or plan.rows > largest.rows else largest
        if largest is not None:
            report.groups.append((members, largest))
        answers.append((members, merge(found or [Candidates.none(len(mine))], search.k)))
    return _gather(answers, len(queries), search.k), report


def _group(filters: Sequence[Expr | None], count: int) -> list[tuple[Expr | None, Rows]]:
    """Queries by canonical filter: equal predicates share their bitmaps and their matrix products."""
    if len(filters) == 1:
        return [(filters[0], np.arange(count))]
    members: dict[str, list[int]] = {}
    exprs: dict[str, Expr | None] = {}
    for number, expr in enumerate(filters):
        key = "" if expr is None else expr.key
        members.setdefault(key, []).append(number)
        exprs[key] = expr
    return [(exprs[key], np.array(numbers)) for key, numbers in members.items()]


def _search_part(
    number: int,
    part: LivePart,
    here: FieldPart,
    expr: Expr | None,
    queries: Floats,
    search: Search,
    calibrations: Calibrations,
    find_keys: FindKeys,
    report: Report,
) -> Candidates:
    start = time.perf_counter()
    passing = part.passing(expr, find_keys)
    within = None if passing is None else here.translate(passing)
    calibration = calibrations.get((part.part.name, search.calibrated))
    plan = plan_part(here, calibration, within, k=search.k, target=search.recall, queries=len(queries))
    fallback = 0
    if plan.kind == "none":
        rows, scored = np.full((len(queries), 0), -1, dtype=np.int64), np.empty((len(queries), 0))
    elif plan.kind == "exact" or here.backend is None:
        rows, scored = exact_rows(here, queries, search.k, within)
    else:
        _, rows = here.backend.search(queries, search.k + _SLACK, effort=plan.effort, within=within)
        scored = here.scores(queries, rows, precise=False)
        enough = min(search.k, plan.rows)
        # Rows come best first and padded with -1 last.
        short = np.flatnonzero(rows[:, enough - 1] < 0)
        fallback = len(short)
        if fallback:  # the graph lost its way among filtered rows: never fewer hits than there are
            wide = rows.shape[1]
            rows[short], scored[short] = _padded(*exact_rows(here, queries[short], search.k, within), wide)
    report.ran.append(Ran(part.part.name, plan, len(queries), time.perf_counter() - start, fallback))
    return _candidates(number, part, here.part_rows(rows), scored)


def _candidates(number: int, part: LivePart, rows: Rows, scored: Any) -> Candidates:
    """Scored rows of a part with what a merge needs of them."""
    pks, ties = part.part.pks, part.part.ties
    if rows.size and rows.min() >= 0:
        return Candidates(scored, np.full_like(rows, number), rows, pks[rows], ties[rows])
    real = rows >= 0
    at = np.maximum(rows, 0)
    return Candidates(
        scored,
        np.where(real, number, -1),
        rows,
        np.where(real, pks[at], -1),
        np.where(real, ties[at], np.iinfo(np.int64).max),
    )


def exact_rows(here: FieldPart, queries: Floats, k: int, within: Bitmap | None) -> tuple[Rows, Any]:
    """The true top k with float64 scores: ``(rows, scores)``, at least k columns wide where there are rows.

    The scan is in float32, so it fetches a few more and accepts only when no row it did not fetch could still
    belong: where near ties leave that open it fetches more, and past 4,096 it computes every row in float64.
    """
    available = len(here) if within is None else within.count
    fetch = min(available, k + max(_SLACK, k // 4))
    found, rows = here.scan(queries, fetch, within)
    scored = here.scores(queries, rows, precise=True)
    while fetch < available:
        open_ = _uncertain(here, queries, k, found, scored)
        if not len(open_):
            break
        if fetch >= _LARGEST_FETCH:
            rows[open_] = _best_in_doubles(here, queries[open_], fetch, within)
            scored[open_] = here.scores(queries[open_], rows[open_], precise=True)
            break
        fetch = min(available, fetch * 4)
        wider, wider_rows = here.scan(queries[open_], fetch, within)
        found, rows, scored = (_widen(a, fetch, fill) for a, fill in ((found, -np.inf), (rows, -1), (scored, -np.inf)))
        found[open_], rows[open_] = wider, wider_rows
        scored[open_] = here.scores(queries[open_], wider_rows, precise=True)
        # Rows certified before keep -inf in the new columns, which certifies them again.
    return rows, scored


def _uncertain(here: FieldPart, queries: Floats, k: int, found: Floats, scored: Any) -> Rows:
    """Queries for which a row outside of those fetched might still be among the best k."""
    kth = -np.partition(-scored, k - 1, axis=1)[:, k - 1 : k]
    inner = here.as_inner(kth, queries)[:, 0]
    bound = found[:, -1].astype(np.float64) + here.rounding(queries)
    return np.flatnonzero((inner < bound) & np.isfinite(found[:, -1]))


def _best_in_doubles(here: FieldPart, queries: Floats, k: int, within: Bitmap | None) -> Rows:
    """The top k by float64 inner products over every row: for vectors that float32 cannot tell apart."""
    passing = np.arange(len(here)) if within is None else within.rows()
    asked = original(queries, here.metric).astype(np.float64)
    best = np.full((len(queries), k), -np.inf)
    at = np.full((len(queries), k), -1, dtype=np.int64)
    block = max(1, _DOUBLES // max(asked.shape))
    for start in range(0, len(passing), block):
        rows = passing[start : start + block]
        vectors = original(here.matrix[rows], here.metric).astype(np.float64)
        inner = asked @ vectors.T
        if here.metric is Metric.L2:
            inner -= np.einsum("ij,ij->i", vectors, vectors) / 2
        bias = here.bias_at(rows)
        if bias is not None:
            inner -= bias
        both = np.concatenate([best, inner], axis=1)
        chosen = np.argsort(-both, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(both, chosen, 1)
        where = np.concatenate([at, np.broadcast_to(rows, inner.shape)], axis=1)
        at = np.take_along_axis(where, chosen, 1)
    return at


def _widen(array: Any, columns: int, fill: float) -> Any:
    return np.pad(array, ((0, 0), (0, columns - array.shape[1])), constant_values=fill)


def _padded(rows: Rows, scored: Any, columns: int) -> tuple[Rows, Any]:
    if rows.shape[1] >= columns:
        order = np.argsort(-scored, axis=1, kind="stable")[:, :columns]
        return np.take_along_axis(rows, order, 1), np.take_along_axis(scored, order, 1)
    return _widen(rows, columns, -1), _widen(scored, columns, -np.inf)


def _gather(answers: list[tuple[Rows, Candidates]], count: int, k: int) -> Candidates:
    """The groups' answers back in the order of the queries, ``(count, k)``."""
    if len(answers) == 1 and answers[0][1].scores.shape == (count, k):
        return answers[0][1]
    out = Candidates(
        np.full((count, k), -np.inf),
        np.full((count, k), -1, dtype=np.int64),
        np.full((count, k), -1, dtype=np.int64),
        np.full((count, k), -1, dtype=np.int64),
        np.full((count, k), -1, dtype=np.int64),
    )
    for members, found in answers:
        width = found.scores.shape[1]
        for target, source in (
            (out.scores, found.scores),
            (out.parts, found.parts),
            (out.rows, found.rows),
            (out.pks, found.pks),
            (out.ties, found.ties),
        ):
            target[members, :width] = source
    return out


def _check_deadline(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() > deadline:
        raise DeadlineExceeded("the query's timeout_ms ran out", field="timeout_ms")
