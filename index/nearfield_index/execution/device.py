"""A segment's field on a GPU: what it costs there by measurement, when that is cheaper, and how it answers.

Device plans join the cost model of the CPU: a calibration may hold a :class:`DeviceFace`, and the planner asks it once
for something cheaper than what it has found. Exact plans only change who scans: candidates are scored in float64 and
certified here, as ever. Where the device fails within a query, the CPU's plan, which is kept, answers it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from nearfield_index.backends.base import Floats, Rows, Searcher
from nearfield_index.backends.gpu.device import Device
from nearfield_index.backends.gpu.flat import GpuFlat, single_error
from nearfield_index.backends.gpu.gathered import Gathered
from nearfield_index.bitmap import Bitmap
from nearfield_index.execution.cost import Calibration
from nearfield_index.execution.curves import Setting
from nearfield_index.execution.exact import Rank, exact_rows
from nearfield_index.execution.plan import Plan
from nearfield_index.execution.topk import put
from nearfield_index.filters.compiled import Compiled
from nearfield_index.segments.part import FieldPart
from nearfield_index.threads import CORES, PARALLEL

Doubles = np.ndarray[Any, np.dtype[np.float64]]

# A plan moves to the device only where that clearly pays: prices there are wall-clock and were taken undisturbed.
_WORTH = 1.25


@dataclass(frozen=True)
class Line:
    """Wall-clock microseconds of a call: of itself, of each query, at so many ``rows`` that pass."""

    call_us: float
    query_us: float
    rows: int

    def at(self, queries: int, rows: float | None = None) -> float:
        """What a call of so many queries costs; where ``rows`` are given, in proportion to them."""
        scale = 1.0 if rows is None else rows / max(1, self.rows)
        return self.call_us * max(scale, 0.5) + queries * self.query_us * scale


@dataclass(frozen=True)
class DevicePrices:
    """``whole``: a scan without a filter; ``masked`` and ``sparse``: behind filters that pass half of the rows and one
    in fifty; ``gathered``: rows picked out first. None where there is no index for it."""

    whole: Line | None = None
    masked: Line | None = None
    sparse: Line | None = None
    gathered: Line | None = None

    def scan_us(self, queries: int, passing: float | None, share: float) -> float:
        """The cheapest exact answer of a call (``passing`` rows; None: all)."""
        return min(self._flat_us(queries, passing, share), self.gather_us(queries, passing))

    def gather_us(self, queries: int, passing: float | None) -> float:
        """That with the rows picked out first, where there are any to pick."""
        if self.gathered is None or passing is None:
            return np.inf
        return self.gathered.at(queries, passing)

    def _flat_us(self, queries: int, passing: float | None, share: float) -> float:
        line = self.whole if passing is None else self.masked if share > SPARSE_SHARE else self.sparse
        if line is None:
            return np.inf
        return line.at(queries, passing if line is self.sparse else None)


SPARSE_SHARE = 0.1
"""Behind a filter that passes less, cuVS goes another way: it multiplies only what passes, query by query."""


@dataclass(frozen=True)
class DeviceField(FieldPart):
    """The same rows, scanned on the device. Scores still come from the rows here."""

    whole_on: GpuFlat | None = None
    gather_on: Gathered | None = None
    prices: DevicePrices = DevicePrices()

    @classmethod
    def of(cls, part: FieldPart, **more: Any) -> DeviceField:
        """That of a field as the CPU has it."""
        return cls(**{each.name: getattr(part, each.name) for each in fields(part)} | more)

    def scan(self, queries: Floats, k: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        """Exact top-k; raises :class:`DeviceFailed`."""
        on: Searcher | None = self.whole_on or self.gather_on
        if self.gather_on is not None and within is not None and within.count < len(self):
            share, passing = within.share, within.count
            whole_us = self.prices.scan_us(len(queries), passing, share)
            if self.prices.gather_us(len(queries), passing) <= whole_us:
                on = self.gather_on
        if on is None:
            return super().scan(queries, k, within)
        return on.search(queries, k, effort=0, within=within)

    def rounding(self, queries: Floats) -> Doubles:
        """Wider than float32 has it where this device was seen to be further off."""
        errors = [on.error for on in (self.whole_on, self.gather_on) if on is not None]
        usual = single_error(self.matrix.shape[1])
        return super().rounding(queries) * max([1.0, *(error / usual for error in errors)])


@dataclass(frozen=True)
class DeviceFace:
    """All that is known of a field on a device: ``index`` finds neighbours there, ``curves`` say which recall its
    settings reach, and what a call costs (None: no index, only scans)."""

    device: Device
    field: DeviceField
    index: Searcher | None = None
    curves: Calibration | None = None

    @property
    def name(self) -> str:
        return self.device.name

    def cheaper(self, plan: Plan, passing: Compiled | None, *, k: int, target: float, queries: int) -> Plan:
        """A plan for the device where one is clearly cheaper than ``plan``, else ``plan``."""
        if plan.kind == "none" or plan.estimated_us is None or not self.device.usable:
            return plan
        here_us = plan.estimated_us * queries / (CORES if queries >= PARALLEL else 1)
        best_us, kind, setting = self._exact_us(plan, passing, queries), "exact", Setting(0, 1.0, 0.0)
        found = self._setting(plan, passing, k=k, target=target)
        if self.index is not None and found is not None:
            us = found.us * queries + (0.0 if self.curves is None else self.curves.prices.call_us)
            if us < best_us:
                best_us, kind, setting = us, self.index.kind, found
        if best_us * _WORTH >= here_us:
            return plan
        return plan._replace(
            kind=kind,
            effort=setting.effort,
            recall=setting.recall,
            estimated_us=best_us / queries,
            reason=f"cheaper on {self.name} than {plan.kind} here",
            on=self,
            instead=plan,
        )

    def _exact_us(self, plan: Plan, passing: Compiled | None, queries: int) -> float:
        rows = None if passing is None else plan.rows.likely
        return self.field.prices.scan_us(queries, rows, plan.selectivity)

    def _setting(self, plan: Plan, passing: Compiled | None, *, k: int, target: float) -> Setting | None:
        if self.curves is None or target >= 1.0:
            return None
        shapes = ("random",) if passing is None else ("random", "run")
        return self.curves.setting(selectivity=plan.selectivity, k=k, target=target, shapes=shapes)

    def answer(
        self, here: FieldPart, passing: Compiled | None, plan: Plan, queries: Floats, k: int, rank: Rank
    ) -> tuple[Rows, Doubles, int]:
        """Rows with their scores, and how many queries the index gave too few for, which were scanned ``here``.

        Raises :class:`DeviceFailed`; nothing is half done then.
        """
        within = None if passing is None else passing.bitmap
        if self.index is None or plan.kind != self.index.kind:
            return *exact_rows(self.field, queries, k, within, rank), 0
        _, rows = self.index.search(queries, k, effort=plan.effort, within=within)
        scored = here.scores(queries, rows, precise=False)
        enough = min(k, len(here) if within is None else within.count)
        short = np.flatnonzero((rows >= 0).sum(axis=1) < enough)
        if len(short):
            put(rows, scored, short, *exact_rows(here, queries[short], k, within, rank))
        return rows, scored, len(short)
