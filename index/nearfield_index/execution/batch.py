"""One part answers a batch: each filter group is planned on its own, and what can be shared is.

Groups that walk a graph share one call of it per effort, whatever their filters, for the filter comes last. Groups
that are scanned copy their rows once, where they do not follow each other anyway, and are one matrix product each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from nearfield_index.backends.base import Floats, Rows
from nearfield_index.backends.coded import VALUES, CodedIvf, blocks
from nearfield_index.backends.gpu.health import DeviceFailed
from nearfield_index.errors import DeadlineExceeded
from nearfield_index.execution.asked import Asked
from nearfield_index.execution.beside import wider
from nearfield_index.execution.clusters import sweep, through_clusters
from nearfield_index.execution.cost import Calibration
from nearfield_index.execution.curves import depth_of
from nearfield_index.execution.exact import Rank, exact_rows, fetched, precise, uncertain
from nearfield_index.execution.graph import walk
from nearfield_index.execution.pick import pick
from nearfield_index.execution.plan import Plan, plan_part
from nearfield_index.execution.topk import Doubles, best, put
from nearfield_index.filters.compiled import Compiled
from nearfield_index.filters.expr import Expr
from nearfield_index.segments.part import BiasUse, FieldPart, FindKeys, LivePart

_GRID = 4  # efforts are rounded up to multiples, so that more groups share a walk
_LOOK = 512  # queries that are answered between two looks at the deadline, where there is one


class Search(NamedTuple):
    """One batch against one field: raw ``vectors`` ``(n, dim)``, ``filters`` one for all or one each."""

    field: str
    vectors: Floats
    filters: Sequence[Expr | None]
    k: int
    recall: float
    deadline: float | None = None
    bias: BiasUse | None = None
    """Rank by score less the bias of a hubness fit."""
    explain: bool = False
    """Also find out what only ``explain`` shows."""

    @property
    def calibrated(self) -> str:
        """The name under which such searches are calibrated: those of a fit on their own, for its bias as fitted;
        a stronger one never is."""
        if self.bias is None:
            return self.field
        return f"{self.field}@{self.bias.version}" if self.bias.variant == 0 and self.bias.strength <= 1.0 else ""


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
    partitions: tuple[int, int] | None = None
    """Of a segment laid out for its workload, when explained: how many partitions hold rows that pass, of how many."""

    def to_wire(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "segment": self.segment,
            "plan": plan.kind,
            "device": "cpu" if plan.on is None else plan.on.name,
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
            **({} if self.partitions is None else {"partitions": [*self.partitions]}),
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
    def all_exact(self) -> bool:
        """Whether every part was scanned."""
        return all(r.plan.kind in ("exact", "none") for r in self.ran)

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


class _Way(NamedTuple):
    """How groups go together: through a graph, or through coded lists; with which effort, to how many rows found, and
    in how many lists to look for how many rows beside a walk."""

    coded: bool
    effort: int
    width: int
    beside: tuple[int, int] | None = None


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
    if len(groups) == 1:
        start = time.perf_counter()
        lone = len(groups[0].members) == 1
        planned = _plan(part, here, groups[0], search, calibration, find_keys, lone=lone)
        rows, scored, ran = _alone(part, here, planned, queries, search, calibration)
        report.ran.append(ran._replace(seconds=time.perf_counter() - start))
        return [ran.plan], here.part_rows(rows), scored
    batch = _Batch(part, here, queries, search, report)
    plans: list[Plan] = []
    walks: dict[_Way, list[_Planned]] = {}
    scanned: list[Group] = []
    for group in groups:
        check_deadline(search.deadline)
        planned = _plan(part, here, group, search, calibration, find_keys)
        plans.append(planned.plan)
        if planned.plan.on is not None:
            batch.alone(planned, calibration)
        elif planned.plan.kind == "exact":
            batch.scan(planned)
            scanned.append(group)
        elif (way := _way(here, planned.plan, search.k)) is not None:
            walks.setdefault(way, []).append(planned)
        else:
            batch.alone(planned, calibration)
    if scanned:
        batch.settle(scanned, find_keys)
    for way, together in walks.items():
        assert calibration is not None
        batch.walk(together, way, calibration)
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
        start = time.perf_counter()
        (_, members), passing, plan = planned
        within = None if passing is None else passing.bitmap
        width = self.rows.shape[1]
        if within is not None and within.count <= width:
            self.rows[members, : within.count] = within.rows()
        else:
            for some in _turns(len(members), self._search.deadline):
                asked = self._queries[members[some]]
                self._inner[members[some]], self.rows[members[some]] = self._here.scan(asked, width, within)
        partitions = _partitions(self._here, plan, passing) if self._search.explain else None
        self._ran(plan, len(members), time.perf_counter() - start, 1.0, partitions=partitions)

    def settle(self, scanned: Sequence[Group], find_keys: FindKeys) -> None:
        """Score what was scanned in float64, all at once, and look again where float32 cannot tell."""
        check_deadline(self._search.deadline)
        k, here = self._search.k, self._here
        members = np.concatenate([group.members for group in scanned])
        asked = self._queries[members]
        self.scored[members] = precise(here, asked, self.rows[members])
        unsure = np.zeros(len(self.rows), dtype=np.bool_)
        unsure[members[uncertain(here, asked, k, self._inner[members], self.scored[members])]] = True
        if unsure.any():
            rank = _ranking(self._part, here)
            for expr, mine in scanned:
                again = mine[unsure[mine]]
                if len(again):
                    passing = _passing(self._part, here, expr, find_keys)
                    within = None if passing is None else passing.bitmap
                    put(self.rows, self.scored, again, *exact_rows(here, self._queries[again], k, within, rank))

    def alone(self, planned: _Planned, calibration: Calibration | None) -> None:
        """Answer a group by its own plan."""
        start = time.perf_counter()
        members = planned.group.members
        rows, scored, ran = _alone(self._part, self._here, planned, self._queries[members], self._search, calibration)
        put(self.rows, self.scored, members, rows, scored)
        self._report.ran.append(ran._replace(seconds=time.perf_counter() - start))

    def walk(self, together: Sequence[_Planned], way: _Way, calibration: Calibration) -> None:
        """Groups of one way share it; their filters then choose from what was found."""
        width = way.width if self._search.deadline is None else max(way.width, VALUES // _LOOK)
        block = max(1, VALUES // width)
        waiting = [
            each._replace(group=each.group._replace(members=each.group.members[some]))
            for each in together
            for some in blocks(len(each.group.members), width)
        ]
        while waiting:
            check_deadline(self._search.deadline)
            taken = [waiting.pop()]
            size = len(taken[0].group.members)
            while waiting and size + len(waiting[-1].group.members) <= block:
                taken.append(waiting.pop())
                size += len(taken[-1].group.members)
            self._walk(taken, way, calibration)

    def _walk(self, taken: Sequence[_Planned], way: _Way, calibration: Calibration) -> None:
        start = time.perf_counter()
        here, k, target = self._here, self._search.k, self._search.recall
        members = np.concatenate([each.group.members for each in taken])
        queries = self._queries[members]
        ends = np.cumsum([len(each.group.members) for each in taken])
        several = [
            Asked(here, calibration, each.passing, queries, k, target, slice(end - len(each.group.members), end))
            for each, end in zip(taken, ends.tolist(), strict=True)
        ]
        if way.coded:
            walked = sweep(several, width=way.width, effort=way.effort)
        else:
            walked = walk(several, way.effort, beside=way.beside)
        again, exact = (_by_group(which, ends) for which in (walked.again, walked.exact))
        share = (time.perf_counter() - start) / len(members)
        recall = np.add.reduceat(walked.recall, [asked.some.start for asked in several]).tolist()
        for number, each in enumerate(taken):
            size = len(each.group.members)
            self._ran(each.plan, size, share * size, recall[number] / size, again[number], exact[number])
        self.rows[members, :k], self.scored[members, :k] = walked.rows, walked.scored

    def _ran(
        self,
        plan: Plan,
        queries: int,
        seconds: float,
        recall: float,
        again: int = 0,
        exact: int = 0,
        partitions: tuple[int, int] | None = None,
    ) -> None:
        name = self._part.part.name
        self._report.ran.append(Ran(name, plan, queries, seconds, recall, again, exact, partitions))


def _plan(
    part: LivePart,
    here: FieldPart,
    group: Group,
    search: Search,
    calibration: Calibration | None,
    find_keys: FindKeys,
    *,
    lone: bool = False,
) -> _Planned:
    passing = _passing(part, here, group.expr, find_keys)
    queries = len(group.members)
    plan = plan_part(here, calibration, passing, k=search.k, target=search.recall, queries=queries, lone=lone)
    return _Planned(group, passing, plan)


def _way(here: FieldPart, plan: Plan, k: int) -> _Way | None:
    """The way on which a group may go with others; None where its filter must be known beforehand."""
    effort = -(-plan.effort // _GRID) * _GRID
    lists = here.clusters
    if here.backend is not None and here.backend.is_graph and plan.kind == here.backend.kind:
        beside = _beside(here, plan, k)
        return _Way(False, effort, effort if beside is None else max(effort, beside[1]), beside)
    if isinstance(lists, CodedIvf) and plan.kind == lists.kind and not (plan.heeded or plan.picked):
        width = lists.candidates_of(k, plan.selectivity)
        return _Way(True, effort, wider(here, width))
    return None


def _beside(here: FieldPart, plan: Plan, k: int) -> tuple[int, int] | None:
    """In how many lists a planned walk looks beside itself, and for how many rows."""
    if not plan.beside or not isinstance(here.clusters, CodedIvf):
        return None
    return plan.beside, wider(here, here.clusters.width_of(ceil(depth_of(k, plan.selectivity))))


def _count(which: Sequence[Rows]) -> int:
    return sum(len(each) for each in which)


def _by_group(which: Sequence[Rows], ends: Rows) -> list[int]:
    """How many of some queries, told by number, belong to each of the groups that end there."""
    if not which:
        return [0] * len(ends)
    groups = np.searchsorted(ends, np.concatenate(which), side="right")
    counts: list[int] = np.bincount(groups, minlength=len(ends)).tolist()
    return counts


def _passing(part: LivePart, here: FieldPart, expr: Expr | None, find_keys: FindKeys) -> Compiled | None:
    """The filter over the rows of the field's matrix; None when every one is alive and passes."""
    passing = part.passing(expr, find_keys)
    return None if passing is None else here.translate(passing)


def _ranking(part: LivePart, here: FieldPart) -> Rank:
    """Best first, ties as everywhere."""
    return lambda rows, scored, k: best(part.part, rows, scored, k, at=here.part_rows)


def _partitions(here: FieldPart, plan: Plan, passing: Compiled | None) -> tuple[int, int] | None:
    """How many partitions of a layout hold rows that pass, and of how many; a graph knows none."""
    if here.leaves is None or plan.kind not in ("exact", "ivf"):
        return None
    return here.leaves_touched(passing), len(here.leaves) - 1


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
    if plan.on is not None:
        try:
            rows, scored, short = plan.on.answer(here, passing, plan, queries, search.k, _ranking(part, here))
            return rows, scored, Ran(part.part.name, plan, len(queries), 0.0, plan.recall, exact=short)
        except DeviceFailed:  # it says so itself; the query is answered all the same
            check_deadline(search.deadline)
            assert plan.instead is not None
            planned = planned._replace(plan=plan.instead)
    if search.deadline is None or len(queries) <= _LOOK:
        return _on_cpu(part, here, planned, queries, search, calibration)
    turns = _turns(len(queries), search.deadline)
    parts = [_on_cpu(part, here, planned, queries[some], search, calibration) for some in turns]
    each_rows, each_scored, ran = zip(*parts, strict=True)
    recall = sum(each.recall * each.queries for each in ran) / len(queries)
    again, exact = sum(each.again for each in ran), sum(each.exact for each in ran)
    whole = ran[0]._replace(queries=len(queries), recall=recall, again=again, exact=exact)
    return np.concatenate(each_rows), np.concatenate(each_scored), whole


def _on_cpu(
    part: LivePart,
    here: FieldPart,
    planned: _Planned,
    queries: Floats,
    search: Search,
    calibration: Calibration | None,
) -> tuple[Rows, Doubles, Ran]:
    """The same by a plan that no device has a part in, all at once."""
    _, passing, plan = planned
    partitions = _partitions(here, plan, passing) if search.explain else None
    ran = Ran(part.part.name, plan, len(queries), 0.0, plan.recall, partitions=partitions)
    if plan.kind == "none":
        return np.full((len(queries), 0), -1, dtype=np.int64), np.empty((len(queries), 0)), ran
    if plan.kind == "exact" or calibration is None:
        within = None if passing is None else passing.bitmap
        return *exact_rows(here, queries, search.k, within, _ranking(part, here)), ran
    asked = Asked(here, calibration, passing, queries, search.k, search.recall)
    if plan.picked:
        walked = pick(asked, effort=plan.effort, recall=plan.recall)
    elif here.clusters is not None and plan.kind == here.clusters.kind:
        walked = through_clusters(
            asked, effort=plan.effort, recall=plan.recall, together=plan.together, heeded=plan.heeded
        )
    else:
        walked = walk([asked], plan.effort, beside=_beside(here, plan, search.k))
    recall = float(walked.recall[0] if len(walked.recall) == 1 else walked.recall.mean())
    return (
        walked.rows,
        walked.scored,
        ran._replace(recall=recall, again=_count(walked.again), exact=_count(walked.exact)),
    )


def _turns(count: int, deadline: float | None) -> Iterator[slice]:
    """Slices of ``count`` queries, all at once where there is no deadline; before each there is a look at it."""
    size = count if deadline is None else _LOOK
    for start in range(0, count, size):
        check_deadline(deadline)
        yield slice(start, start + size)


def check_deadline(deadline: float | None) -> None:
    """Raise :class:`DeadlineExceeded` past it."""
    if deadline is not None and time.monotonic() > deadline:
        raise DeadlineExceeded("the query's timeout_ms ran out", field="timeout_ms")
