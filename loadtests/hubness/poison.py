"""Planted poison: items crafted to be near many queries, among clean new ones; what the monitor finds, and its price.

The attacker knows the queries that will be asked (the test split) and the items, not the bank. The items are dealt into
folds: each fold in turn is held back while thresholds are set from the others, and then judged as clean new points, so
that every item is judged once by thresholds that have not seen it. Poison is worth finding when it takes lists of ten:
beside all of it, the report tells how much was found of what takes more than 99.9 % of clean items do, and half as
much again.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from loadtests.hubness.crafted import KINDS, crafted, entries, lists
from loadtests.hubness.engines import filled, finished
from loadtests.hubness.sets import Floats, TwoViews, unit
from loadtests.tables import decimal, percent, table
from nearfield_index.engine import Engine

_SEED = 7
_MUCH = 1.5
_INSIDE = 0.01
MEASURES = ("reach", "lean", "centre")


@dataclass
class _Tally:
    """Over all folds: by share of the collection whether each planted item was found; its lists, in units of what
    99.9 % of clean items stay under; which measures fired."""

    found: dict[float, list[bool]] = field(default_factory=dict)
    taken: list[float] = field(default_factory=list)
    fired: list[tuple[bool, ...]] = field(default_factory=list)

    def row(self, kind: str) -> list[Any]:
        taken, fired = np.array(self.taken), np.array(self.fired)
        found = np.array([any(each) for each in self.fired])
        much = [_share(found[taken > least]) for least in (1.0, _MUCH)]
        shares = [_share(np.array(each)) for each in self.found.values()]
        by = [_share(fired[:, number]) for number in range(len(MEASURES))]
        return [kind, decimal(float(np.median(taken)), 2), _share(taken > 1.0), *shares, _share(found), *much, *by]


class _Attack:
    """Against one collection: poison of every kind, and how many lists of ten each item of it takes."""

    def __init__(self, base: TwoViews, metric: str) -> None:
        self.kinds = [*KINDS, *(["item three times as long"] if metric == "dot" else [])]
        self._base, self._metric = base, metric
        self._asked = _columns(base.queries[np.concatenate([base.val, base.test])], metric, query=True)
        items = _columns(base.items, metric)
        self._entry = entries(self._asked, items)
        self._most = max(1.0, float(np.quantile(lists(items, self._asked, self._entry), 0.999)))

    def made(self, kind: str, count: int, seed: int) -> Floats:
        """Poison of the usual length: under dot that of items, under l2 that of queries."""
        items, asked = self._base.items, self._base.queries[self._base.test]
        if kind not in KINDS:
            return 3 * items[np.random.default_rng(seed).choice(len(items), count)]
        found = crafted(kind, unit(asked), items, count, seed)
        if self._metric == "cosine":
            return found
        return found * np.float32(np.linalg.norm(items if self._metric == "dot" else asked, axis=1).mean())

    def lists(self, made: Floats) -> list[float]:
        """The lists that each takes, of all queries that are not in the bank, by what 99.9 % of items stay under."""
        return [float(each) / self._most for each in lists(_columns(made, self._metric), self._asked, self._entry)]

    def plant(self, engine: Engine, kind: str, share: float, fold: int, tally: _Tally) -> None:
        """Write poison, look which of it was flagged, and delete it again."""
        count = max(1, round(share * len(self._base.items)))
        made = self.made(kind, count, seed=_SEED + 101 * fold + round(1e5 * share))
        ids = [f"{kind} {share} {n}" for n in range(count)]
        engine.write_points("c", {"ids": ids, "vectors": {"vector": made}})
        alerts = _alerts(engine)
        engine.delete_points("c", {"ids": ids})
        fired = [_fired(alerts.get(each)) for each in ids]
        tally.found[share] += [any(each) for each in fired]
        tally.fired += fired
        tally.taken += self.lists(made)

    def inside(self, place: Path | None) -> dict[str, list[bool]]:
        """One per cent of the collection is poison of all kinds when the fit comes: what the fit flags."""
        count = max(1, round(_INSIDE * len(self._base.items) / len(self.kinds)))
        with tempfile.TemporaryDirectory(dir=place) as directory, Engine.open(directory) as engine:
            filled(engine, self._base, metric=self._metric)
            for kind in self.kinds:
                ids = [f"{kind} {n}" for n in range(count)]
                engine.write_points("c", {"ids": ids, "vectors": {"vector": self.made(kind, count, _SEED)}})
            _fit(engine, self._base)
            alerts = _alerts(engine)
        return {kind: [f"{kind} {n}" in alerts for n in range(count)] for kind in self.kinds}


def run(
    views: TwoViews, *, shares: tuple[float, ...], place: Path | None, metric: str = "cosine", folds: int = 4
) -> list[str]:
    """Lines of a report."""
    views = _lengthened(views, metric)
    order = np.random.default_rng(_SEED).permutation(len(views.items))
    tallies: dict[str, _Tally] = {}
    flagged: list[tuple[bool, ...]] = []
    inside: dict[str, list[bool]] = {}
    costs = []
    for fold, held in enumerate(np.array_split(order, folds)):
        base, clean = replace(views, items=views.items[np.sort(np.setdiff1d(order, held))]), views.items[held]
        attack = _Attack(base, metric)
        with tempfile.TemporaryDirectory(dir=place) as directory, Engine.open(directory) as engine:
            filled(engine, base, metric=metric)
            before = _cost(engine, clean)
            engine.delete_points("c", {"ids": [f"clean {n}" for n in range(len(held))]})
            _fit(engine, base)
            costs.append((before, _cost(engine, clean)))
            alerts = _alerts(engine)
            flagged += [_fired(alerts.get(f"clean {n}")) for n in range(len(held))]
            for kind in attack.kinds:
                tally = tallies.setdefault(kind, _Tally({share: [] for share in shares}))
                for share in shares:
                    attack.plant(engine, kind, share, fold, tally)
        inside = inside or attack.inside(place)
    none = np.array(flagged)
    false = "".join(f", {name} {int(none[:, n].sum())}" for n, name in enumerate(MEASURES))
    rows = [[*tally.row(kind), _share(np.array(inside[kind]))] for kind, tally in tallies.items()]
    heads = ["poison", "lists", "above", *(f"at {percent(share)}" for share in shares)]
    heads += ["found", "of those above", f"above {_MUCH:g}", *MEASURES, "inside"]
    before, after = (float(np.mean([cost[n] for cost in costs])) for n in (0, 1))
    sizes = f"{len(views.items):,} items in {folds} folds, {len(views.bank_vectors):,} bank queries"
    return [
        f"### {views.name}, {metric}: {sizes}",
        "",
        f"Clean items flagged: {_share(none.any(axis=1))} ({int(none.any(axis=1).sum())}{false}).",
        "",
        *table(heads, rows),
        f"An upsert costs {decimal(before, 0)} us of CPU a point without a fit and {decimal(after, 0)} us with one.",
        "",
    ]


def _columns(vectors: Floats, metric: str, *, query: bool = False) -> Floats:
    """So that an inner product orders as the metric does: l2 wants a column more."""
    if metric != "l2":
        return vectors
    more = np.ones(len(vectors)) if query else -0.5 * (vectors**2).sum(axis=1)
    return np.concatenate([vectors, more[:, None].astype(np.float32)], axis=1)


def _lengthened(views: TwoViews, metric: str) -> TwoViews:
    """Items and queries of several lengths, where lengths count."""
    if metric == "cosine":
        return views
    random = np.random.default_rng(_SEED)
    items, queries = (
        each * np.exp(spread * random.normal(size=(len(each), 1))).astype(np.float32)
        for each, spread in ((views.items, 0.4), (views.queries, 0.2))
    )
    return replace(views, items=items, queries=queries)


def _fit(engine: Engine, base: TwoViews) -> None:
    finished(engine, engine.optimize("c"))
    finished(engine, engine.fit_hubness("c", {"bank": {"vectors": base.bank_vectors}, "method": "sinkhorn"}))


def _alerts(engine: Engine) -> dict[Any, dict[str, Any]]:
    return {alert["id"]: alert for alert in engine.quality("c")["hub_alerts"]}


def _fired(alert: dict[str, Any] | None) -> tuple[bool, ...]:
    return tuple(alert is not None and alert["measures"][name] > 1 for name in MEASURES)


def _share(flags: Any) -> str:
    return f"{100 * float(flags.mean()):.3g} %" if len(flags) else "-"


def _cost(engine: Engine, vectors: Any) -> float:
    """CPU microseconds a point of upserting clean points (which stay)."""
    start = process_time()
    for first in range(0, len(vectors), 500):
        block = vectors[first : first + 500]
        ids = [f"clean {first + n}" for n in range(len(block))]
        engine.write_points("c", {"ids": ids, "vectors": {"vector": block}})
    return (process_time() - start) * 1e6 / len(vectors)
