"""What was measured about a segment's field: recall and time per setting, and the price of a scanned row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

_REMEMBERED = 512

PRODUCT_QUERIES = 16
"""From so many queries on, an exact answer is a matrix product."""


@dataclass(frozen=True)
class Setting:
    """One effort of a backend with the recall (a cautious estimate) and microseconds a query it came to."""

    effort: int
    recall: float
    us: float


@dataclass(frozen=True)
class Curve:
    """Settings, cheap to expensive, measured at ``k`` for filters that pass ``selectivity`` of the rows.

    ``shape`` says which rows: ``all``, a ``random`` set, or a ``run`` of neighbouring clusters (a filter that goes
    with the vectors, which a graph finds much harder).
    """

    selectivity: float
    k: int
    shape: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Calibration:
    """Measured on ``source`` (``queries`` or ``rows``): curves, and microseconds of an exact scan a row.

    ``scan_us`` holds for the whole matrix read in order, ``gather_us`` for rows picked out of it, both for one
    query; ``product_us`` for each query of a batch, which shares one matrix product.
    """

    source: str
    samples: int
    scan_us: float
    gather_us: float
    product_us: float
    curves: tuple[Curve, ...]
    _known: dict[tuple[float, int, float, bool], Setting | None] = field(
        default_factory=dict, compare=False, repr=False
    )

    @cached_property
    def least_us(self) -> float:
        """What the cheapest setting of all costs a query."""
        return min((s.us for curve in self.curves for s in curve.settings), default=0.0)

    def exact_us(self, rows: int, *, whole: bool, queries: int) -> float:
        """What an exact answer over ``rows`` costs a query, in microseconds."""
        if queries >= PRODUCT_QUERIES:
            return rows * self.product_us
        return rows * (self.scan_us if whole else self.gather_us)

    def setting(self, *, selectivity: float, k: int, target: float, clustered: bool = False) -> Setting | None:
        """The cheapest setting that reaches the target; None when none was seen to.

        A filter is judged by the next more selective curve that was measured, a k by the next larger one, a
        ``clustered`` filter by the worse of both shapes. Rows are easier than queries: calibrated on them, half
        of the allowed loss is kept in hand, 0.01 at most.
        """
        asked = (selectivity, k, target, clustered)
        if asked not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[asked] = self._find(selectivity, k, target, clustered)
        return self._known[asked]

    def _find(self, selectivity: float, k: int, target: float, clustered: bool) -> Setting | None:
        if self.source != "queries":
            target += min(0.01, (1 - target) / 2)
        shapes = ("random", "run") if clustered else ("random",)
        found = [self._cheapest(shape, selectivity, k, target) for shape in shapes]
        reached = [setting for setting in found if setting is not None]
        return max(reached, key=lambda s: s.effort) if len(reached) == len(shapes) else None

    def _cheapest(self, shape: str, selectivity: float, k: int, target: float) -> Setting | None:
        fitting = [c for c in self.curves if c.shape in ("all", shape) and c.selectivity <= selectivity and c.k >= k]
        if not fitting:
            return None
        curve = max(fitting, key=lambda c: (c.selectivity, -c.k))
        return next((s for s in curve.settings if s.recall >= target), None)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Calibration:
        curves = tuple(
            Curve(c["selectivity"], c["k"], c["shape"], tuple(Setting(**s) for s in c["settings"]))
            for c in raw["curves"]
        )
        return cls(raw["source"], raw["samples"], raw["scan_us"], raw["gather_us"], raw["product_us"], curves)


Calibrations = Mapping[tuple[str, str], Calibration]
"""By (segment, field)."""


def summary(calibration: Calibration, targets: Sequence[float] = (0.9, 0.95, 0.99)) -> dict[str, object]:
    """What ``describe`` shows: the setting per recall target for k = 10 without a filter."""
    chosen = {str(t): calibration.setting(selectivity=1.0, k=10, target=t) for t in targets}
    return {
        "source": calibration.source,
        "samples": calibration.samples,
        "settings": {t: None if s is None else {"effort": s.effort, "us": round(s.us)} for t, s in chosen.items()},
    }
