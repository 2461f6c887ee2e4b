"""How many rows may pass a filter, told from posting lengths alone, before any row is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple


class Estimate(NamedTuple):
    """Rows that pass: surely no fewer than ``low``, no more than ``high``, and probably ``likely``."""

    low: int
    likely: float
    high: int

    @property
    def exact(self) -> bool:
        """Whether the count is known."""
        return self.low == self.high


def exactly(count: int) -> Estimate:
    """A count that is known."""
    return Estimate(count, float(count), count)


def both(parts: Sequence[Estimate], n: int) -> Estimate:
    """Rows of ``n`` that pass every part, taken to be independent."""
    high = min(part.high for part in parts)
    low = max(0, sum(part.low for part in parts) - n * (len(parts) - 1))
    likely = prod(part.likely / n for part in parts) * n if n else 0.0
    return _within(low, likely, high)


def either(parts: Sequence[Estimate], n: int) -> Estimate:
    """Rows of ``n`` that pass any part, taken to be independent."""
    high = min(n, sum(part.high for part in parts))
    low = max(part.low for part in parts)
    likely = (1 - prod(1 - part.likely / n for part in parts)) * n if n else 0.0
    return _within(low, likely, high)


def rest(part: Estimate, n: int) -> Estimate:
    """Rows of ``n`` that do not pass the part."""
    return Estimate(n - part.high, n - part.likely, n - part.low)


def _within(low: int, likely: float, high: int) -> Estimate:
    return Estimate(low, min(max(likely, float(low)), float(high)), high)
