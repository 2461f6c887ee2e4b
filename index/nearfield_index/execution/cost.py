"""What was measured about a segment's field: what a scanned row costs, and what recall each effort reaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import inf, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from nearfield_index.backends.coded import answers_of
from nearfield_index.execution.curves import (
    DEPTHS,
    Curve,
    Reach,
    Setting,
    Tandem,
    around,
    at_depth,
    depth_of,
    rounded_up,
)

if TYPE_CHECKING:
    from nearfield_index.execution.device import DeviceFace

Doubles = np.ndarray[Any, np.dtype[np.float64]]

_REMEMBERED = 512

# A filter this little more selective than one that was measured is taken for it.
_ABOUT = 1.02

# Shares of the allowed loss that are kept in hand: no two sets of queries are alike; nor two filters, of which lists
# must know, least of all where rows keep together.
_OTHERS = 0.1
_SPARE = {"random": 0.15, "run": 0.7}

# Two ways to search miss the same rows so many times as often as by chance.
_ALIKE = 3

# Recall that is as good as a little more.
_AS_GOOD = 0.001

GATHERED_QUERIES = 4
"""From so many queries on, an exact answer copies its rows once and is a matrix product."""

_FIFTH = 0.2

WALKED = 0.2
"""So much passes that a filter which chooses last shows whether its rows keep together."""

# So little passes that it may be heeded, and what a query misses then shows only by what passes near it.
_NARROW = 0.07


@dataclass(frozen=True)
class Prices:
    """Microseconds of an exact scan on one thread: of a call, and of a row.

    ``scan_us``: rows that follow each other, one query. ``gather_us``: rows picked out, one query. ``copy_us`` and
    ``product_us``: rows picked out for many queries, once a row and once a row and query.
    """

    call_us: float
    scan_us: float
    gather_us: float
    copy_us: float
    product_us: float
    bitmap_us: float = 0.0
    """Of making a bitmap from a column, of which a fifth of the rows pass."""
    marked_us: float = 0.0
    """Of making one from a list of rows, a hundredth of all."""
    lone_walk_us: float = 0.0
    lone_sweep_us: float = 0.0
    """More of one query by itself than of one among many: through a graph, and by coded lists."""
    answer_us: float = 0.0
    """Of as many more rows as coded lists find for one more answer."""
    heeding: float = 1.0
    """How many times as long coded lists take that heed a bitmap of few rows, for one query."""
    pick_us: float = inf
    looked_us: float = 0.0
    picked_us: float = 0.0
    """Of picking the rows that pass out of the nearest lists, for one query: of a call, of looking up the list of a row
    that passes, and of one that is picked."""

    def bitmap_of(self, share: float) -> float:
        """Of making a bitmap of such a share of the rows."""
        return self.marked_us + min(1.0, share / _FIFTH) * max(0.0, self.bitmap_us - self.marked_us)


class _Memo:
    """What was asked before, bounded; any thread may ask."""

    def __init__(self) -> None:
        self._held: dict[Any, Any] = {}

    def get(self, key: Any, find: Callable[[], Any]) -> Any:
        found = self._held.get(key, self)  # itself stands for nothing: None is an answer
        if found is self:
            found = find()
            if len(self._held) >= _REMEMBERED:
                self._held = {}
            self._held[key] = found
        return found


@dataclass(frozen=True)
class Calibration:
    """Measured on ``source`` (``queries`` or ``rows``): prices of exact scans, reaches of a graph and of coded lists
    (``sweeps``), curves of lists."""

    source: str
    samples: int
    prices: Prices
    reaches: tuple[Reach, ...] = ()
    curves: tuple[Curve, ...] = ()
    sweeps: tuple[Reach, ...] = ()
    places: tuple[float, ...] = ()
    """Where in the ranking by codes the truly nearest down to each of ``DEPTHS`` come, on the average."""
    tandems: tuple[Tandem, ...] = ()
    device: DeviceFace | None = field(default=None, compare=False, repr=False)
    """The same rows on a GPU, while they lie there; never kept on disk."""
    _known: _Memo = field(default_factory=_Memo, compare=False, repr=False)

    def remembered(self, key: tuple[Any, ...], find: Callable[[], Any]) -> Any:
        """What was found from this calibration under a key before, or is now."""
        return self._known.get(key, find)

    @cached_property
    def least_us(self) -> float:
        """What the cheapest setting of all costs a query."""
        every = [*(r.us for r in self.reaches + self.sweeps), *(s.us for curve in self.curves for s in curve.settings)]
        return min(every, default=0.0)

    def exact_us(self, rows: float, *, contiguous: bool, queries: int) -> float:
        """What an exact answer over ``rows`` costs a query, in microseconds."""
        prices = self.prices
        if queries >= GATHERED_QUERIES:
            return (
                prices.call_us + rows * (0.0 if contiguous else prices.copy_us)
            ) / queries + rows * prices.product_us
        return rows * (prices.scan_us if contiguous else prices.gather_us)

    def at_depth(self, depth: float, target: float, *, least: int = 0) -> Setting | None:
        """The cheapest graph setting that reaches the target at this depth; None when none was seen to.

        ``least`` is an effort that must not be gone below.
        """
        depth = rounded_up(max(depth, DEPTHS[0])) if depth <= DEPTHS[-1] else depth

        def find() -> Setting | None:
            found = at_depth(self.reaches, depth, self._aim(target))
            return found if found is None or found.effort >= least else self._at_effort(least, found)

        setting: Setting | None = self._known.get(("depth", depth, target, least), find)
        return setting

    def _at_effort(self, effort: int, reached: Setting) -> Setting | None:
        """A setting of more effort than one that reaches already; None past what was measured."""
        if not self.reaches or effort > self.reaches[-1].effort:
            return None
        return Setting(effort, reached.recall, self.walk_us(effort))

    def walk_us(self, effort: int) -> float:
        """What a walk through the graph of such an effort costs, in us."""
        return float(np.interp(effort, [r.effort for r in self.reaches], [r.us for r in self.reaches]))

    def found(self, effort: int) -> Doubles:
        """By place in a graph search's own ranking (0 first), how sure one may be that nothing before it is missing.

        Float64, as long as ``effort``: the share of the truly nearest at that place that a search finds.
        """
        sure: Doubles = self._known.get(("found", effort), lambda: self._found(effort))
        return sure

    def _found(self, effort: int) -> Doubles:
        below, above, weight = around(self.reaches, effort)
        if below is None or above is None:
            return np.zeros(effort)
        depths = np.arange(1, effort + 1)
        low, high = (np.interp(depths, DEPTHS[: len(r.recall)], r.recall) for r in (below, above))
        total = depths * (low + weight * (high - low))
        each = np.clip(np.diff(total, prepend=0.0), 0.0, 1.0)
        return np.minimum.accumulate(each)

    def setting(
        self, *, selectivity: float, k: int, target: float, shapes: tuple[str, ...] = ("random",)
    ) -> Setting | None:
        """The cheapest setting of lists that reaches the target; None when none was seen to.

        A filter is judged by the next more selective curve that was measured, a k by the next larger one, and of
        several ``shapes`` the worse counts. Coded lists answer random filters as a graph does, by depth.
        """
        setting: Setting | None = self._known.get(
            (selectivity, k, target, shapes), lambda: self._find(selectivity, k, target, shapes)
        )
        return setting

    def _find(self, selectivity: float, k: int, target: float, shapes: tuple[str, ...]) -> Setting | None:
        found = [self._cheapest(shape, selectivity, k, target) for shape in shapes]
        reached = [setting for setting in found if setting is not None]
        return max(reached, key=lambda s: s.effort) if len(reached) == len(shapes) else None

    def _cheapest(self, shape: str, selectivity: float, k: int, target: float) -> Setting | None:
        aim, spare = self._aim(target), 0.0
        if selectivity < (_NARROW if self.sweeps and shape == "random" else 1.0):
            spare = _SPARE[shape] * (1 - target)
        aim += spare
        if self.sweeps and (shape == "random" or selectivity >= 1.0):
            return self._swept(selectivity, k, aim)
        fitting = [
            c for c in self.curves if c.shape in ("all", shape) and c.selectivity <= _ABOUT * selectivity and c.k >= k
        ]
        if not fitting:
            return None
        curve = max(fitting, key=lambda c: (c.selectivity, -c.k))
        found = next((s for s in curve.settings if s.recall >= aim), None)
        if found is None:  # with half as much in hand it is still better than an exact answer
            least = max(aim - spare / 2, max(s.recall for s in curve.settings) - _AS_GOOD)
            found = next((s for s in curve.settings if s.recall >= least), None)
        if found is None or self.sweeps:
            return found
        # A broader filter has more rows to scan in as many clusters.
        return Setting(found.effort, found.recall, found.us * max(1.0, selectivity / max(curve.selectivity, 1e-9)))

    def _swept(self, selectivity: float, k: int, target: float) -> Setting | None:
        """By coded lists, which scan all rows of a list whatever the filter, for what that costs see :meth:`sieve`."""
        found = at_depth(self.sweeps, depth_of(k, selectivity), target, wide=True)
        if found is None:
            return None
        more = answers_of(k, 1.0) - answers_of(DEPTHS[0], 1.0)
        return Setting(found.effort, found.recall, found.us + max(0, more) * self.prices.answer_us)

    def sieve(self, selectivity: float, k: int, us: float, *, lone: bool) -> tuple[bool, float]:
        """Whether a scan of coded lists that takes ``us`` had better heed a filter, as a bitmap, than have it choose
        among more rows found, and what that costs. ``lone``: a query by itself, for which ``us`` tells that it is one,
        as a query behind a bitmap of its own always is.

        A filter that is not narrow chooses, for what it finds tells how deep the search has looked.
        """
        heeded_us = self.prices.bitmap_of(selectivity) + (self.prices.heeding - 1) * us
        if lone:
            heeded_us = max(0.0, heeded_us - self.prices.lone_sweep_us)
        chosen_us = (answers_of(k, selectivity) - answers_of(k, 1.0)) * self.prices.answer_us
        heeded = selectivity < _NARROW and heeded_us < chosen_us
        return heeded, heeded_us if heeded else chosen_us

    def picking(self, selectivity: float, k: int, target: float) -> Setting | None:
        """The cheapest setting of lists out of which rows that pass are picked.

        What is picked does not show how deep it had to look, so even a broader filter gets what narrow ones have in
        hand.
        """
        aim = target if selectivity < _NARROW else target + _SPARE["random"] * (1 - target)
        return self.setting(selectivity=selectivity, k=k, target=aim)

    def pick_us(self, rows: float, share: float) -> float:
        """What it costs to pick, for one query, those of ``rows`` that lie in such a share of the lists."""
        prices = self.prices
        return prices.pick_us + rows * (prices.looked_us + min(1.0, share) * prices.picked_us)

    def elsewhere_us(self, rows: float, selectivity: float, k: int, target: float) -> tuple[float, bool]:
        """What an answer costs one query that picking ``rows`` has not given it, and whether that is by an exact scan:
        else by lists wherever rows pass."""
        exact_us = self.exact_us(rows, contiguous=False, queries=1)
        lists = self.setting(selectivity=selectivity, k=k, target=target, shapes=("random", "run"))
        if lists is None:
            return exact_us, True
        lists_us = self.prices.heeding * lists.us + self.prices.bitmap_of(selectivity)
        return min(exact_us, lists_us), exact_us <= lists_us

    def sweep_at(self, depth: float, target: float) -> Setting | None:
        """The cheapest setting of coded lists that reaches the target at this depth, or at the deepest measured; None
        when none was seen to."""
        if not self.sweeps:
            return None
        depth = min(rounded_up(max(depth, DEPTHS[0])), DEPTHS[len(self.sweeps[0].recall) - 1])
        setting: Setting | None = self._known.get(
            ("sweep", depth, target), lambda: at_depth(self.sweeps, depth, self._aim(target), wide=True)
        )
        return setting

    def depth_at(self, places: Doubles | float) -> Doubles:
        """How deep in the ranking of all rows those lie whose places in the codes' ranking have these means: float64,
        same shape."""
        known, depths = self._placed
        return np.asarray(np.interp(places, known, depths))

    @cached_property
    def _placed(self) -> tuple[Doubles, Doubles]:
        if not self.places:
            return np.zeros(1), np.zeros(1)
        return np.array(self.places), np.array(DEPTHS[: len(self.places)], dtype=np.float64)

    def recall_at(self, effort: int, depths: Doubles | float) -> Doubles:
        """The recall that coded lists reach at these depths: float64, same shape."""
        measured, recall = self._known.get(("recall", effort), lambda: self._swept_recall(effort))
        return np.asarray(np.interp(depths, measured, recall))

    def _swept_recall(self, effort: int) -> tuple[Doubles, Doubles]:
        """By depth, between what was measured with the next lower and the next higher effort."""
        below, above, weight = around(self.sweeps, effort)
        if below is None or above is None:
            return np.zeros(1), np.zeros(1)
        low, high = np.array(below.recall), np.array(above.recall)
        return np.array(DEPTHS[: len(low)], dtype=np.float64), low + weight * (high - low)

    def beside(self, effort: int, depth: float, target: float) -> tuple[Setting, float] | None:
        """The cheapest setting of coded lists that, beside what a walk of this effort has found, reaches the target at
        this depth, or at the deepest measured; and that depth. None when none was seen to."""
        tandems = self._tandems(effort)
        if not tandems:
            return None
        depth = min(rounded_up(max(depth, DEPTHS[0])), DEPTHS[len(tandems[0].recall) - 1])

        def find() -> Setting | None:
            aim = self._aim(target)
            for tandem in tandems:
                recall = float(np.interp(depth, DEPTHS[: len(tandem.recall)], tandem.recall))
                if recall >= aim:
                    return Setting(tandem.lists, recall, self._look_us(tandem.lists, depth))
            return None

        found: Setting | None = self._known.get(("beside", effort, depth, target), find)
        return None if found is None else (found, depth)

    def tandem(self, selectivity: float, k: int, target: float) -> tuple[Setting, int] | None:
        """The cheapest walk, as a setting, with so many coded lists beside it that both reach the target between them;
        None when none was seen to."""
        depth = depth_of(k, selectivity)

        def find() -> tuple[Setting, int] | None:
            ways = []
            aim = self._aim(target) + (_SPARE["random"] * (1 - target) if selectivity < 1.0 else 0.0)
            for tandem in self.tandems:
                measured = DEPTHS[: len(tandem.recall)]
                # A walk that finds fewer rows than that would tell little of how much passes near a query.
                if depth > min(tandem.effort, measured[-1]):
                    continue
                recall = float(np.interp(depth, measured, tandem.recall))
                if recall >= aim:
                    us = self.walk_us(tandem.effort) + self._look_us(tandem.lists, depth)
                    ways.append((Setting(tandem.effort, recall, us), tandem.lists))
            return min(ways, key=lambda way: way[0].us, default=None)

        found: tuple[Setting, int] | None = self._known.get(("tandem", selectivity, k, target), find)
        return found

    def _look_us(self, lists: int, depth: float) -> float:
        """What a look into so many lists for rows down to such a depth costs a query, in us."""
        us = float(np.interp(lists, [s.effort for s in self.sweeps], [s.us for s in self.sweeps]))
        return us + max(0.0, depth - DEPTHS[0]) * self.prices.answer_us

    def witness(self, selectivity: float, k: int, target: float) -> Setting | None:
        """The cheapest setting of lists that finds enough behind a filter whose rows keep together to reach the target
        beside something else that finds as much; None when none was measured."""

        def find() -> Setting | None:
            wanted = 1 - sqrt((1 - target) / _ALIKE)
            curves = [c for c in self.curves if c.shape == "run" and c.selectivity <= _ABOUT * selectivity and c.k >= k]
            curve = max(curves, key=lambda c: (c.selectivity, -c.k), default=None)
            return None if curve is None else next((s for s in curve.settings if s.recall >= wanted), None)

        found: Setting | None = self._known.get(("witness", selectivity, k, target), find)
        return found

    def in_tandem(self, effort: int, lists: int, depths: Doubles) -> Doubles:
        """The recall of a walk and so many lists between them at these depths: float64, same shape; 0 from the deepest
        measured on, for places in the codes' ranking do not tell how much deeper it is."""
        tandem = next(each for each in self._tandems(effort) if each.lists == lists)
        measured = DEPTHS[: len(tandem.recall)]
        return np.where(depths < measured[-1], np.interp(depths, measured, tandem.recall), 0.0)

    def _tandems(self, effort: int) -> list[Tandem]:
        """What was measured beside the next lower effort, by ascending numbers of lists."""

        def find() -> list[Tandem]:
            below = max((tandem.effort for tandem in self.tandems if tandem.effort <= effort), default=0)
            return [tandem for tandem in self.tandems if tandem.effort == below]

        found: list[Tandem] = self._known.get(("tandems", effort), find)
        return found

    def _aim(self, target: float) -> float:
        """Other queries than those measured lose a little more. Rows are easier than queries: calibrated on them, half
        of the allowed loss is kept in hand, 0.01 at most."""
        return target + (_OTHERS * (1 - target) if self.source == "queries" else min(0.01, (1 - target) / 2))

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "samples": self.samples,
            "prices": asdict(self.prices),
            "reaches": [asdict(reach) for reach in self.reaches],
            "curves": [asdict(curve) for curve in self.curves],
            "sweeps": [asdict(sweep) for sweep in self.sweeps],
            "places": self.places,
            "tandems": [asdict(tandem) for tandem in self.tandems],
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Calibration:
        reaches, sweeps = (
            tuple(Reach(r["effort"], r["us"], tuple(r["recall"])) for r in raw.get(name, ()))
            for name in ("reaches", "sweeps")
        )
        curves = tuple(
            Curve(c["selectivity"], c["k"], c["shape"], tuple(Setting(**s) for s in c["settings"]))
            for c in raw["curves"]
        )
        return cls(
            raw["source"],
            raw["samples"],
            # JSON writes what was never priced, and is infinite, as null.
            Prices(**{name: price for name, price in raw["prices"].items() if price is not None}),
            reaches,
            curves,
            sweeps,
            tuple(raw.get("places", ())),
            tuple(Tandem(j["effort"], j["lists"], tuple(j["recall"])) for j in raw.get("tandems", ())),
        )


Calibrations = Mapping[tuple[str, str], Calibration]
"""By (segment, field)."""


def summary(calibration: Calibration, targets: Sequence[float] = (0.9, 0.95, 0.99)) -> dict[str, object]:
    """What ``describe`` shows: the setting per recall target for k = 10 without a filter."""
    chosen = {
        str(t): calibration.at_depth(10, t)
        if calibration.reaches
        else calibration.setting(selectivity=1, k=10, target=t)
        for t in targets
    }
    return {
        "source": calibration.source,
        "samples": calibration.samples,
        "settings": {t: None if s is None else {"effort": s.effort, "us": round(s.us)} for t, s in chosen.items()},
    }
