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
from nearfield_index.bitmap import Bitmap
from nearfield_index.errors import DeadlineExceeded
from nearfield_index.execution.cost import Calibration
from nearfield_index.execution.exact import exact_rows, fetched, uncertain
from nearfield_index.execution.graph import as_scores, passes, poor, sift, walk, walk_again
from nearfield_index.execution.plan import Plan, plan_part, shapes_of, togetherness
from nearfield_index.execution.topk import Doubles, best
from nearfield_index.filters.compiled import Compiled
from nearfield_index.filters.expr import Expr
from nearfield_index.segments.part import FieldPart, FindKeys, LivePart

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
    here: FieldPart | None = None
    passing: Compiled | None = None

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
            **self._partitions(),
        }

    def _partitions(self) -> dict[str, Any]:
        """How many partitions of a layout hold rows that pass, and of how many; a graph knows none."""
        if self.here is None or self.here.leaves is None or self.plan.kind not in ("exact", "ivf"):
            return {}
        return {"partitions": [self.here.leaves_touched(self.passing), len(self.here.leaves) - 1]}


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
        return plans, here.part_rows(rows), scored
    batch = _Batch(part, here, queries, search, report)
    walks: dict[int, list[_Planned]] = {}
    for each in planned:
        if each.plan.kind == "exact":
            batch.scan(each)
        elif here.backend is not None and here.backend.is_graph and each.plan.kind == here.backend.kind:
            walks.setdefault(-(-each.plan.effort // _GRID) * _GRID, []).append(each)
        else:
            batch.alone(each, calibration)
    batch.settle(planned)
    for effort, together in walks.items():
        assert calibration is not None
        batch.walk(together, effort, calibration)
    return plans, here.part_rows(batch.rows), batch.scored


class _Batch:
    """The answers of one part to groups of queries on their way: matrix rows and scores, ``(n, fetched(k))``."""

    def __init__(self, part: LivePart, here: FieldPart, queries: Floats, search: Search, report: Report) -> None:
        self._part = part
        self._here = here
        self._queries = queries
        self._search = search
        self._report = report
        shape = (len(queries), fetched(search.k))
        self.rows = np.full(shape, -1, dtype=np.int64)
        self.scored = np.full(shape, -np.inf)
        self._inner = np.full(shape, -np.inf, dtype=np.float32)

    def scan(self, planned: _Planned) -> None:
        """Fetch the best rows of a group in float32, and leave the rest to :meth:`settle`."""
        check_deadline(self._search.deadline)
        start = time.perf_counter()
        (_, members), passing, plan = planned
        within = None if passing is None else passing.bitmap
        width = self.rows.shape[1]
        if within is not None and within.count <= width:
            self.rows[members, : within.count] = within.rows()
        else:
            asked = self._queries[members]
            self._inner[members], self.rows[members] = self._here.scan(asked, width, within)
        self._ran(plan, len(members), start, 1.0, passing=passing)

    def settle(self, planned: Sequence[_Planned]) -> None:
        """Score what was scanned in float64, all at once, and look again where float32 cannot tell."""
        scanned = [each for each in planned if each.plan.kind == "exact"]
        if not scanned:
            return
        k, here = self._search.k, self._here
        members = np.concatenate([each.group.members for each in scanned])
        asked = self._queries[members]
        self.scored[members] = scores(asked, here.matrix, self.rows[members], here.metric, precise=True)
        unsure = members[uncertain(here, asked, k, self._inner[members], self.scored[members])]
        if len(unsure):
            for (_, mine), passing, _ in scanned:
                again = np.intersect1d(mine, unsure)
                if len(again):
                    within = None if passing is None else passing.bitmap
                    self._put(again, *exact_rows(here, self._queries[again], k, within))

    def alone(self, planned: _Planned, calibration: Calibration | None) -> None:
        """Answer a group by its own plan."""
        check_deadline(self._search.deadline)
        start = time.perf_counter()
        members = planned.group.members
        rows, scored, ran = _alone(self._part, self._here, planned, self._queries[members], self._search, calibration)
        self._put(members, rows, scored)
        self._report.ran.append(ran._replace(seconds=time.perf_counter() - start))

    def _put(self, members: Rows, rows: Rows, scored: Doubles) -> None:
        rows, scored = best(self._part.part, rows, scored, self._search.k)
        self.rows[members], self.scored[members] = -1, -np.inf
        self.rows[members, : rows.shape[1]], self.scored[members, : rows.shape[1]] = rows, scored

    def walk(self, together: Sequence[_Planned], effort: int, calibration: Calibration) -> None:
        """Groups of one effort share the walk; their filters then choose from what it found."""
        assert self._here.backend is not None
        k = self._search.k
        block = max(1, _FOUND_VALUES // effort)
        waiting = list(together)
        while waiting:
            check_deadline(self._search.deadline)
            start = time.perf_counter()
            taken = [waiting.pop()]
            size = len(taken[0].group.members)
            while waiting and size + len(waiting[-1].group.members) <= block:
                taken.append(waiting.pop())
                size += len(taken[-1].group.members)
            members = np.concatenate([each.group.members for each in taken])
            asked = self._queries[members]
            inner, found = self._here.backend.search(asked, effort, effort=effort, within=None)
            ends = np.cumsum([len(each.group.members) for each in taken]).tolist()
            bounds = list(zip([0, *ends], ends, strict=False))
            passed = np.concatenate(
                [passes(found[a:b], each.passing) for each, (a, b) in zip(taken, bounds, strict=True)]
            )
            walked = sift(self._here, asked, inner, found, passed, k, calibration.found(effort))
            filtered = np.repeat([each.passing is not None for each in taken], np.diff([0, *ends]))
            lacking = poor(walked, filtered, k, self._search.recall)
            again = np.searchsorted(lacking, [0, *ends]).tolist()
            share = (time.perf_counter() - start) / size
            for number, (each, (a, b)) in enumerate(zip(taken, bounds, strict=True)):
                start = time.perf_counter() - share * (b - a)
                before = walked.again, walked.exact
                if again[number] < again[number + 1]:
                    walk_again(
                        self._here,
                        calibration,
                        each.passing,
                        asked,
                        lacking[again[number] : again[number + 1]],
                        walked,
                        k=k,
                        target=self._search.recall,
                        effort=effort,
                        width=effort,
                    )
                recall = float(walked.recall[a:b].mean())
                self._ran(each.plan, b - a, start, recall, walked.again - before[0], walked.exact - before[1])
            self.rows[members, :k], self.scored[members, :k] = walked.rows, walked.scored

    def _ran(
        self,
        plan: Plan,
        queries: int,
        start: float,
        recall: float,
        again: int = 0,
        exact: int = 0,
        passing: Compiled | None = None,
    ) -> None:
        seconds = time.perf_counter() - start
        name = self._part.part.name
        self._report.ran.append(Ran(name, plan, queries, seconds, recall, again, exact, self._here, passing))


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
    """One group by its own plan: matrix rows with their scores."""
    _, passing, plan = planned
    ran = Ran(part.part.name, plan, len(queries), 0.0, plan.recall, here=here, passing=passing)
    if plan.kind == "none":
        return np.full((len(queries), 0), -1, dtype=np.int64), np.empty((len(queries), 0)), ran
    if plan.kind == "exact" or calibration is None:
        return *exact_rows(here, queries, search.k, None if passing is None else passing.bitmap), ran
    if here.clusters is not None and plan.kind == here.clusters.kind:
        rows, scored, short = _through_clusters(here, passing, plan, queries, search.k)
        return rows, scored, ran._replace(exact=short)
    walked = walk(here, calibration, passing, queries, k=search.k, target=search.recall, effort=plan.effort)
    told = ran._replace(recall=float(walked.recall.mean()), again=walked.again, exact=walked.exact)
    return walked.rows, walked.scored, told


def _through_clusters(
    here: FieldPart, passing: Compiled | None, plan: Plan, queries: Floats, k: int
) -> tuple[Rows, Doubles, int]:
    """The nearest clusters look at passing rows only; a query that finds too few of them is answered exactly."""
    assert here.clusters is not None
    within: Bitmap | Compiled | None = passing
    if passing is not None and "run" in shapes_of(togetherness(passing, here.by_cluster)):
        within = passing.bitmap  # tells which clusters are worth a look
    found, rows = here.clusters.search(queries, k, effort=plan.effort, within=within)
    scored = as_scores(here, queries, rows, found)
    enough = min(k, len(here) if passing is None else passing.count)
    short = np.flatnonzero(rows[:, enough - 1] < 0)  # rows come best first and padded with -1 last
    if len(short):
        again, values = exact_rows(here, queries[short], k, None if passing is None else passing.bitmap)
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]
        rows[short], scored[short] = -1, -np.inf
        rows[short, : order.shape[1]] = np.take_along_axis(again, order, 1)
        scored[short, : order.shape[1]] = np.take_along_axis(values, order, 1)
    return rows, scored, len(short)


def check_deadline(deadline: float | None) -> None:
    """Raise :class:`DeadlineExceeded` past it."""
    if deadline is not None and time.monotonic() > deadline:
        raise DeadlineExceeded("the query's timeout_ms ran out", field="timeout_ms")
