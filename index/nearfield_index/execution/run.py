"""Running queries over a view: group by filter, let each part answer, merge."""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np

from nearfield_index.backends.base import Rows
from nearfield_index.backends.space import queried
from nearfield_index.execution.batch import Group, Report, Search, check_deadline, search_part
from nearfield_index.execution.cost import Calibrations
from nearfield_index.execution.plan import Plan
from nearfield_index.execution.topk import Candidates, merge
from nearfield_index.filters.expr import Expr
from nearfield_index.schema import Metric
from nearfield_index.segments.part import FindKeys
from nearfield_index.segments.view import View
from nearfield_index.threads import CORES, PARALLEL


def run(
    view: View, search: Search, metric: Metric, calibrations: Calibrations, find_keys: FindKeys
) -> tuple[Candidates, Report]:
    """The best ``search.k`` of each query, and the report of how they were found."""
    queries = queried(search.vectors, metric)
    count = len(queries)
    faiss.omp_set_num_threads(CORES if count >= PARALLEL else 1)
    report = Report()
    if not count:
        return Candidates.none(0), report
    groups = _group(search.filters, count)
    largest: list[Plan | None] = [None] * len(groups)
    found = []
    for number, part in enumerate(view.searched):
        here = part.part.fields.get(search.field)
        if here is None or len(here) == 0:
            continue
        if search.bias is not None:
            here = here.biased(search.bias)
        check_deadline(search.deadline)
        calibration = calibrations.get((part.part.name, search.calibrated))
        plans, rows, scored = search_part(part, here, groups, queries, search, calibration, find_keys, report)
        found.append((number, rows, scored))
        largest = [_larger(old, new) for old, new in zip(largest, plans, strict=True)]
    report.groups = [(group.members, plan) for group, plan in zip(groups, largest, strict=True) if plan is not None]
    return merge(found, view.parts, search.k) if found else Candidates.none(count), report


def _larger(old: Plan | None, new: Plan) -> Plan:
    return new if old is None or new.rows.likely > old.rows.likely else old


def _group(filters: Sequence[Expr | None], count: int) -> list[Group]:
    """Queries by canonical filter: equal predicates share what is made for them."""
    if len(filters) == 1:
        return [Group(filters[0], np.arange(count))]
    members: dict[Expr | None, list[int]] = {}
    known: dict[int, list[int]] = {}
    for number, expr in enumerate(filters):
        mine = known.get(id(expr))  # one object for equal texts, which spares a look at the whole tree
        if mine is None:
            mine = known[id(expr)] = members.setdefault(expr, [])
        mine.append(number)
    return [Group(expr, _rows(numbers)) for expr, numbers in members.items()]


def _rows(numbers: list[int]) -> Rows:
    return np.array(numbers, dtype=np.int64)
