"""One part answers a batch: each filter group is planned on its own, and what can be shared is.

Groups that walk a graph share one call of it per effort, whatever their filters, for the filter comes last. Groups
that are scanned copy their rows once, where they do not follow each other anyway, and are one matrix product each.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nearfield_index.backends.base import Floats, Rows
from nearfield_index.backends.space import scores
from nearfield_index.errors import DeadlineExceeded
from nearfield_index.execution.cost import Calibration
from nearfield_index.execution.exact import exact_rows
from nearfield_index.execution.graph import Walked, refine
from nearfield_index.execution.plan import Plan, plan_part
from nearfield_index.execution.topk import Doubles, best
from nearfield_index.filters.compiled import Compiled
from nearfield_index.filters.expr import Expr
from nearfield_index.segments.part import FieldPart, FindKeys, LivePart

_SLACK = 4
_GRID = 16  # efforts are rounded up to multiples, so that more groups share a walk
_FOUND_VALUES = 4_000_000


class Search(NamedTuple):
    """One batch against one field: raw ``vectors`` ``(n, dim)``, ``filters`` one for all or one each."""

    field: str
    vectors: Floats
    filters: Sequence[Expr | None]
    k: int
    recall: float
    deadline: float | None = None


class Group(NamedTuple):
    """Queries (their numbers) under one filter."""

    expr: Expr | None
    members: Rows


class Ran(NamedTuple):
    """How one part answered one filter group: what was planned, and what really happened."""

    segment: str
    plan: Plan
    queries: int
    seconds: float
    recall: float
    again: int = 0
    exact: int = 0

    def to_wire(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "segment": self.segment,
            "plan": plan.kind,
            "effort": plan.effort,
            "queries": self.queries,
            "rows": round(plan.rows.likely),
            "rows_between": [plan.rows.low, plan.rows.high],
            "selectivity": round(plan.selectivity, 6),
            "recall": round(self.recall, 4),
            "estimated_us": None if plan.estimated_us is None else round(plan.estimated_us, 1),
            "exact_us": None if plan.scan_us is None else round(plan.scan_us, 1),
            "us": round(self.seconds * 1e6 / max(1, self.queries), 1),
            "walked_again": self.again,
            "exact_fallbacks": self.exact,
            "reason": plan.reason,
        }


@dataclass
class Report:
    """What was done: how each part answered each filter group, and by group the queries and the largest part's plan."""

    ran: list[Ran] = field(default_factory=list)
    groups: list[tuple[Rows, Plan]] = field(default_factory=list)

    @property
    def plans(self) -> list[dict[str, Any]]:
        """As ``explain`` shows it."""
        return [ran.to_wire() for ran in self.ran]

    @property
    def recall(self) -> float:
        """The expected recall, weighted by the rows that each part chose from."""
        if len(self.ran) == 1:
            return self.ran[0].recall
        total = sum(r.plan.rows.likely * r.queries for r in self.ran)
        return sum(r.plan.rows.likely * r.queries * r.recall for r in self.ran) / total if total else 1.0

    @property
    def exact_rows(self) -> int:
        """Rows scanned exactly."""
        return round(sum(r.plan.rows.likely * r.queries for r in self.ran if r.plan.kind == "exact"))

    def plan_of(self, query: int) -> Plan | None:
        """The plan of the largest part that a query was answered from."""
        return next((plan for members, plan in self.groups if query in members), None)


class _Planned(NamedTuple):
    group: Group
    passing: Compiled | None
    plan: Plan


def search_part(
    part: LivePart,
    here: FieldPart,
    groups: Sequence[Group],
    queries: Floats,
    search: Search,
    calibration: Calibration | None,
    find_keys: FindKeys,
    report: Report,
) -> tuple[list[Plan], Rows, Doubles]:
    """The best rows of one part for every query with their scores, ``(n, k or more)`` in no order, and the plans."""
    planned = [_plan(part, here, group, search, calibration, find_keys) for group in groups]
    plans = [each.plan for each in planned]
    if len(groups) == 1:
        start = time.perf_counter()
        rows, scored, ran = _alone(part, here, planned[0], queries, search, calibration)
        report.ran.append(ran._replace(seconds=time.perf_counter() - start))
        return plans, rows, scored
    rows, scored = np.full((len(queries), search.k), -1, dtype=np.int64), np.full((len(queries), search.k), -np.inf)
    walks: dict[int, list[_Planned]] = {}
    for each in planned:
        if calibration is not None and here.backend is not None and here.backend.is_graph and each.plan.effort:
            walks.setdefault(-(-each.plan.effort // _GRID) * _GRID, []).append(each)
            continue
        check_deadline(search.deadline)
        start = time.perf_counter()
        members = each.group.members
        found, values, ran = _alone(part, here, each, queries[members], search, calibration)
        found, values = best(part.part, found, values, search.k)
        rows[members, : found.shape[1]], scored[members, : found.shape[1]] = found, values
        report.ran.append(ran._replace(seconds=time.perf_counter() - start))
    for effort, together in walks.items():
        assert calibration is not None
        _walk_together(part, here, together, effort, queries, search, calibration, rows, scored, report)
    return plans, rows, scored


def _plan(
    part: LivePart,
    here: FieldPart,
    group: Group,
    search: Search,
    calibration: Calibration | None,
    find_keys: FindKeys,
) -> _Planned:
    passing = part.passing(group.expr, find_keys)
    within = None if passing is None else here.translate(passing)
    return _Planned(
        group,
        within,
        plan_part(here, calibration, within, k=search.k, target=search.recall, queries=len(group.members)),
    )


def _alone(
    part: LivePart,
    here: FieldPart,
    planned: _Planned,
    queries: Floats,
    search: Search,
    calibration: Calibration | None,
) -> tuple[Rows, Doubles, Ran]:
    """One group by its own plan: rows of the part with their scores."""
    _, passing, plan = planned
    ran = Ran(part.part.name, plan, len(queries), 0.0, plan.recall)
    if plan.kind == "none":
        return np.full((len(queries), 0), -1, dtype=np.int64), np.empty((len(queries), 0)), ran
    if plan.kind == "exact" or here.backend is None or calibration is None:
        rows, scored = exact_rows(here, queries, search.k, None if passing is None else passing.bitmap)
        return here.part_rows(rows), scored, ran
    if not here.backend.is_graph:
        rows, scored, short = _through_lists(here, passing, plan, queries, search.k)
        return here.part_rows(rows), scored, ran._replace(exact=short)
    width = search.k if passing is None else plan.effort
    found, rows = here.backend.search(queries, width, effort=plan.effort, within=None)
    walked = refine(
        here, calibration, passing, queries, found, rows, k=search.k, target=search.recall, effort=plan.effort
    )
    return here.part_rows(walked.rows), walked.scored, _told(ran, walked)


def _walk_together(
    part: LivePart,
    here: FieldPart,
    together: Sequence[_Planned],
    effort: int,
    queries: Floats,
    search: Search,
    calibration: Calibration,
    rows: Rows,
    scored: Doubles,
    report: Report,
) -> None:
    """Groups of one effort share the walk; their filters then choose from what it found."""
    assert here.backend is not None
    block = max(1, _FOUND_VALUES // effort)
    waiting = list(together)
    while waiting:
        check_deadline(search.deadline)
        start = time.perf_counter()
        taken, size = [waiting.pop()], 0
        size = len(taken[0].group.members)
        while waiting and size + len(waiting[-1].group.members) <= block:
            taken.append(waiting.pop())
            size += len(taken[-1].group.members)
        members = np.concatenate([each.group.members for each in taken])
        asked = queries[members]
        inner, found = here.backend.search(asked, max(effort, search.k), effort=effort, within=None)
        share = (time.perf_counter() - start) / size
        first = 0
        for each in taken:
            start = time.perf_counter()
            last = first + len(each.group.members)
            mine = slice(first, last)
            walked = refine(
                here,
                calibration,
                each.passing,
                asked[mine],
                inner[mine],
                found[mine],
                k=search.k,
                target=search.recall,
                effort=effort,
            )
            rows[each.group.members] = here.part_rows(walked.rows)
            scored[each.group.members] = walked.scored
            ran = Ran(part.part.name, each.plan, last - first, 0.0, each.plan.recall)
            seconds = time.perf_counter() - start + share * (last - first)
            report.ran.append(_told(ran, walked)._replace(seconds=seconds))
            first = last


def _told(ran: Ran, walked: Walked) -> Ran:
    return ran._replace(recall=float(walked.recall.mean()), again=walked.again, exact=walked.exact)


def _through_lists(
    here: FieldPart, passing: Compiled | None, plan: Plan, queries: Floats, k: int
) -> tuple[Rows, Doubles, int]:
    """Inverted lists look at passing rows only; a query that finds too few of them is answered exactly."""
    assert here.backend is not None
    within = None if passing is None else passing.bitmap
    _, rows = here.backend.search(queries, k + _SLACK, effort=plan.effort, within=within)
    scored = scores(queries, here.matrix, rows, here.metric, precise=False)
    enough = min(k, len(here) if within is None else within.count)
    short = np.flatnonzero(rows[:, enough - 1] < 0)  # rows come best first and padded with -1 last
    if len(short):
        found, values = exact_rows(here, queries[short], k, within)
        order = np.argsort(-values, axis=1, kind="stable")[:, : rows.shape[1]]
        rows[short], scored[short] = -1, -np.inf
        rows[short, : order.shape[1]] = np.take_along_axis(found, order, 1)
        scored[short, : order.shape[1]] = np.take_along_axis(values, order, 1)
    return rows, scored, len(short)


def check_deadline(deadline: float | None) -> None:
    """Raise :class:`DeadlineExceeded` past it."""
    if deadline is not None and time.monotonic() > deadline:
        raise DeadlineExceeded("the query's timeout_ms ran out", field="timeout_ms")
