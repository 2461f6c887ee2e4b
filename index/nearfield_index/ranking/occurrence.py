"""How unevenly answers are spread over the items: ``N_k``, the queries that have an item among their best k."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Occurrence:
    """Hubness of one set of answers, over all items (those never retrieved count).

    ``skewness`` of N_k; ``robin_hood``: the share of answers that would have to move for all to be equal;
    ``antihubs``: share of items never retrieved; ``hub_share``: share of answers that go to items retrieved at least
    twice as often as expected; ``max``; ``queries``, ``items``, ``k`` and the expected count ``mean``, without which
    the others cannot be read (a mean under 5 says little).
    """

    skewness: float
    robin_hood: float
    antihubs: float
    hub_share: float
    max: int
    queries: int
    items: int
    k: int
    mean: float

    def to_wire(self) -> dict[str, float | int]:
        return {name: round(value, 6) for name, value in asdict(self).items()}


def counts(rows: Rows, items: int) -> Rows:
    """``N_k`` of each item; ``rows`` ``(queries, k)``, -1 where a query has fewer answers."""
    return np.bincount(rows[rows >= 0].ravel(), minlength=items)


def occurrence(rows: Rows, items: int) -> Occurrence:
    """The measures of answers ``rows`` ``(queries, k)`` among ``items`` items."""
    found = counts(rows, items).astype(np.float64)
    queries, k = rows.shape
    total, mean = found.sum(), found.mean() if items else 0.0
    away = found - mean
    deviation = float(np.sqrt((away * away).mean())) if items else 0.0
    many = found >= max(2 * mean, 1e-12)
    return Occurrence(
        skewness=float((away**3).mean() / deviation**3) if deviation > 0 else 0.0,
        robin_hood=float(np.abs(away).sum() / (2 * total)) if total else 0.0,
        antihubs=float((found == 0).mean()) if items else 0.0,
        hub_share=float(found[many].sum() / total) if total else 0.0,
        max=int(found.max(initial=0)),
        queries=queries,
        items=items,
        k=k,
        mean=float(mean),
    )
