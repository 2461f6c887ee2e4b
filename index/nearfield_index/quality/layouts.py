"""Whether and how a collection's segments are laid out for its workload, what came of it, and whether it still fits."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from threading import Lock
from typing import Any

from nearfield_index.backends.base import Lists
from nearfield_index.bitmap import Bitmap
from nearfield_index.execution.cost import Calibration, Calibrations
from nearfield_index.quality import gain
from nearfield_index.quality.workload import ENOUGH, Entry, WorkloadLog, drift, histogram
from nearfield_index.segments.layout import Layout, Proposal, Propose, propose
from nearfield_index.segments.live import LiveSegments
from nearfield_index.segments.part import LivePart
from nearfield_index.segments.segment import Segment
from nearfield_index.storage.columns import Columns

_log = logging.getLogger(__name__)

Json = dict[str, Any]
Check = Callable[[], None]
"""Called between steps of long work; raises to stop it."""

# To make another in place of one there is, it must save so much more.
_AGAIN = 0.05
_DRIFTED = 0.3
_EVENTS = 20
_TEMPLATES_SHOWN = 10
# Drift is looked at whenever so many more entries were logged.
_WATCH_EVERY = 64


class LayoutPolicy:
    """Goes by the workload log and the segments of now."""

    def __init__(self, live: LiveSegments, log: WorkloadLog) -> None:
        self._live = live
        self._log = log
        self._lock = Lock()
        self._logged = 0
        self._warned: str | None = None
        self._events: deque[Json] = deque(maxlen=_EVENTS)

    # ------------------------------------------------------------------ building

    def due(
        self, names: Collection[str], calibrations: Calibrations, *, least: float, check: Check
    ) -> tuple[list[str], list[Json]]:
        """Those of the indexed segments ``names`` that another layout would save at least this share of the time, and
        what it would do for the others that were looked at."""
        entries = self._entries()
        found: list[str] = []
        others: list[Json] = []
        if not entries:
            return found, others
        workload = self._log.workload()
        for segment, _ in self._live.view.segments:
            if segment.name not in names or segment.head.state != "indexed":
                continue
            if segment.layout is not None and segment.layout["workload"] == workload.digest:
                continue
            field = self._field(segment)
            lists = None if field is None else segment.fields[field].lists
            if field is not None and lists is not None:
                known = calibrations.get((segment.name, field))
                proposal = propose(segment.columns, lists, workload, check=check)
                expected = None if proposal is None else self._expected(proposal, known)
                if expected is not None and gain.is_worth(expected, least + (_AGAIN if segment.layout else 0.0)):
                    found.append(segment.name)
                else:
                    others.append({"segment": segment.name, "expected_gain": expected})
        return found, others

    def proposer(
        self,
        replaced: Sequence[Segment],
        calibrations: Calibrations,
        *,
        least: float,
        check: Check,
        refused: Callable[[Json], None],
    ) -> Propose | None:
        """What the writer asks for a layout of a segment in place of others; None while too little is logged. Where one
        of them had a layout, the new one gets one whatever it saves. ``refused`` is told what one would have saved
        that is not made."""
        entries = self._entries()
        if not entries:
            return None
        known = None
        for segment in sorted(replaced, key=lambda s: -s.count):
            field = self._field(segment)
            known = known or (None if field is None else calibrations.get((segment.name, field)))
        least = 0.0 if any(segment.layout for segment in replaced) else least
        workload = self._log.workload()

        def ask(columns: Columns, lists: Lists) -> tuple[Layout, Json] | None:
            proposal = propose(columns, lists, workload, check=check)
            if proposal is None:
                return None
            expected = self._expected(proposal, known)
            if not gain.is_worth(expected, least):
                refused(expected)
                return None
            return proposal.layout, {
                "workload": workload.digest,
                "templates": histogram([entry.template for entry in entries]),
                "logged": len(entries),
                "seen": self._log.seen,
                "built_at": time.time(),
                "expected": expected,
            }

        return ask

    def _expected(self, proposal: Proposal, calibration: Calibration | None) -> Json:
        return gain.expected(proposal, calibration, self._live.schema.index.recall)

    def measure(
        self, before: Sequence[LivePart], segment: Segment, calibrations: Calibrations, *, check: Check
    ) -> Json | None:
        """Ask logged queries of the old parts and of the segment to come, and keep what they took beside it."""
        field = self._field(segment)
        if field is None or segment.layout is None:
            return None
        measured = gain.measured(
            before,
            LivePart(segment, Bitmap.none(segment.count)),
            self._log.entries(),
            field=field,
            metric=self._live.schema.vectors[field].metric,
            recall=self._live.schema.index.recall,
            calibrations=calibrations,
            check=check,
        )
        if measured is not None:
            gain.save(segment.directory / "gain.json", measured)
        return told(segment)

    def ignored(self) -> str | None:
        """Why no layout goes by what is logged, if that is so."""
        held = len(self._log)
        return f"{held} filter{'' if held == 1 else 's'}, {ENOUGH} wanted" if 0 < held < ENOUGH else None

    def _entries(self) -> list[Entry]:
        entries = self._log.entries()
        return entries if len(entries) >= ENOUGH else []

    def _field(self, segment: Segment) -> str | None:
        """The field that all rows of the segment follow."""
        return next((name for name in self._live.schema.vectors if name in segment.fields), None)

    # ------------------------------------------------------------------ watching

    def watch(self, collection: str) -> None:
        """An entry was logged: look now and then whether the workload has left the layout behind."""
        with self._lock:
            self._logged += 1
            if self._logged % _WATCH_EVERY:
                return
        segment = self._largest()
        if segment is None or segment.name == self._warned:
            return
        apart, samples = self._drift(segment)
        if apart is None or apart <= _DRIFTED:
            return
        self._warned = segment.name
        event = {"at": time.time(), "segment": segment.name, "drift": round(apart, 4), "samples": samples}
        self._events.append(event)
        _log.warning("the workload of %s has left its layout behind, optimize makes a new one: %s", collection, event)

    def _largest(self) -> Segment | None:
        laid_out = [segment for segment, _ in self._live.view.segments if segment.layout is not None]
        return max(laid_out, key=lambda segment: segment.count, default=None)

    def _drift(self, segment: Segment) -> tuple[float | None, int]:
        """How far the templates logged since the layout was made are from those it was made for; of how many."""
        layout = segment.layout
        assert layout is not None
        since = layout["seen"] if layout["seen"] <= self._log.seen else 0  # the log was lost, and is all new
        fresh = [entry.template for entry in self._log.entries() if entry.number > since]
        return (drift(layout["templates"], fresh) if len(fresh) >= ENOUGH else None), len(fresh)

    def to_wire(self) -> Json:
        """What ``/quality`` shows: what is logged, the largest layout, and how well the two still fit."""
        entries = self._log.entries()
        shares = list(histogram([entry.template for entry in entries]).items())[:_TEMPLATES_SHOWN]
        segment = self._largest()
        layout = None
        if segment is not None:
            apart, samples = self._drift(segment)
            layout = {"segment": segment.name, **(told(segment) or {})}
            layout |= {"drift": None if apart is None else round(apart, 4), "drift_samples": samples}
            if apart is not None and apart > _DRIFTED:
                layout["hint"] = "optimize lays the rows out anew"
        return {
            "logged": len(entries),
            "seen": self._log.seen,
            "templates": [{"template": name, "share": round(share, 4)} for name, share in shares],
            "layout": layout,
            "events": [*self._events],
        }


def told(segment: Segment) -> Json | None:
    """A segment's layout in short: leaves, what it was expected to save, what it was measured to."""
    layout = segment.layout
    if layout is None:
        return None
    return {
        "leaves": len(layout["leaves"]),
        "logged": layout["logged"],
        "expected_gain": layout["expected"],
        "measured_gain": gain.load(segment.directory / "gain.json"),
        "built_at": layout["built_at"],
    }
