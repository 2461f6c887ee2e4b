"""What counts as far above the others: thresholds for the hub measures of a collection's items."""

from __future__ import annotations

from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]

# Of clean items six in ten thousand are above the first, three in ten thousand above the second threshold.
_QUANTILES = (0.9994, 0.9997)
_TAIL = (0.90, 0.98, 0.9998)


def thresholds(measures: Floats) -> tuple[float, float]:
    """A threshold for each measure ``(n, 2)``.

    The empirical quantile, unless the tail below it says that this cannot be: items that were planted before the
    fit lift a quantile, but not the power law that the items between 90 and 98 % follow.
    """
    if not len(measures):
        return float("inf"), float("inf")
    values = measures.astype(np.float64)
    margin = min(float(np.quantile(values[:, 0], _QUANTILES[0])), _power_law(values[:, 0]))
    # The mean similarity is nearer to a bell curve: beyond six deviations of its middle half nothing is clean.
    low, middle, high = np.quantile(values[:, 1], (0.25, 0.5, 0.75))
    bell = float(middle + 6 * (high - low) / 1.349)
    mean = min(float(np.quantile(values[:, 1], _QUANTILES[1])), max(bell, float(high)))
    return margin, mean


def hub_scores(measures: Floats, limits: tuple[float, float]) -> Doubles:
    """How far each item is: 1 at its threshold, by the measure that is farther. ``(n,)``."""
    margin = measures[:, 0].astype(np.float64) / max(limits[0], 1e-9)
    # A similarity may be negative: the second measure only says whether it is above, and adds by how much.
    mean = np.where(measures[:, 1] > limits[1], 1.0 + np.abs(measures[:, 1] - limits[1]), 0.0)
    return np.maximum(margin, mean)


def _power_law(values: Doubles) -> float:
    low, high, wanted = _TAIL
    first, second = np.quantile(values, (low, high))
    if first <= 0 or second <= first:
        return float("inf")
    slope = np.log(second / first) / np.log((1 - low) / (1 - high))
    return float(second * ((1 - high) / (1 - wanted)) ** slope)
