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
class ScanPrices:
    """What a way to scan costs: of all rows (``whole``), behind filters that pass half of them (``masked``) and one in
    fifty (``sparse``). ``picks``: it costs what passes, however much; else a mask costs the same, whatever it hides."""

    whole: Line
    masked: Line
    sparse: Line
    picks: bool = False

    def us(self, queries: int, passing: float | None, share: float) -> float:
        """Of a call, with ``passing`` rows (None: all)."""
        if passing is None:
            return self.whole.at(queries)
        if share > SPARSE_SHARE:
            return self.masked.at(queries, passing if self.picks else None)
        return self.sparse.at(queries, passing)


@dataclass(frozen=True)
class DevicePrices:
    """Of exact answers: by FAISS (``flat``), and by PyTorch with the rows picked out first (``gathered``). None where
    the rows do not lie there so."""

    flat: ScanPrices | None = None
    gathered: ScanPrices | None = None

    def scan_us(self, queries: int, passing: float | None, share: float) -> float:
        """The cheapest exact answer of a call (``passing`` rows; None: all)."""
        return min([scan.us(queries, passing, share) for scan in (self.flat, self.gathered) if scan], default=np.inf)

    def picked(self, queries: int, passing: float | None, share: float) -> bool:
        """Whether that is ``gathered``."""
        scan = self.gathered
        return scan is not None and scan.us(queries, passing, share) <= self.scan_us(queries, passing, share)


SPARSE_SHARE = 0.1
"""Behind a filter that passes less, cuVS goes another way: it multiplies only what passes, query by query."""


@dataclass(frozen=True)
class DeviceField(FieldPart):
    """The same rows, scanned on the device. Scores still come from the rows here."""

    flat_on: GpuFlat | None = None
    gathered_on: Gathered | None = None
    prices: DevicePrices = DevicePrices()

    @classmethod
    def of(cls, part: FieldPart, **more: Any) -> DeviceField:
        """That of a field as the CPU has it."""
        return cls(**{each.name: getattr(part, each.name) for each in fields(part)} | more)

    def scan(self, queries: Floats, k: int, within: Bitmap | None) -> tuple[Floats, Rows]:
        """Exact top-k; raises :class:`DeviceFailed`."""
        on: Searcher | None = self.flat_on or self.gathered_on
        if self.gathered_on is not None and on is not self.gathered_on:
            part = within if within is not None and within.count < len(self) else None
            passing, share = (None, 1.0) if part is None else (part.count, part.share)
            on = self.gathered_on if self.prices.picked(len(queries), passing, share) else on
        if on is None:
            return super().scan(queries, k, within)
        return on.search(queries, k, effort=0, within=within)

    def rounding(self, queries: Floats) -> Doubles:
        """Wider than float32 has it where this device was seen to be further off."""
        errors = [on.error for on in (self.flat_on, self.gathered_on) if on is not None]
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
