"""Watches new points for hubs: alerts for those far above the collection's own items, and a quarantine for them.

What was flagged, quarantined and released is kept in one small file. A point is judged when it becomes visible, also on
replay after a crash, so that nothing slips through between the commit of a point and the write of that file. A release
holds for the vector that was released: the same id with another vector is judged anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import xxhash

from nearfield_index.errors import Corrupt, NearfieldError
from nearfield_index.hubness.thresholds import MEASURES, Thresholds
from nearfield_index.points import PointId
from nearfield_index.segments.mutable import Judged
from nearfield_index.storage.sealed import read_sealed, write_sealed

_log = logging.getLogger(__name__)

Json = dict[str, Any]
Keys = np.ndarray[Any, np.dtype[np.int64]]
Scores = np.ndarray[Any, np.dtype[np.float64]]


class Watched(Protocol):
    """What the monitor needs of a fit: thresholds of the hub measures, and whether to hold back what exceeds them."""

    @property
    def thresholds(self) -> Thresholds: ...

    @property
    def quarantine(self) -> bool: ...


MOST_ALERTS = 1_000
MOST_HELD = 10_000


class HubMonitor:
    """One collection's alerts and quarantine. Changes come from the collection's write turn; anybody may look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._alerts: dict[PointId, Json] = {}
        self._held: dict[int, tuple[PointId, str]] = {}
        """Id and field by row key."""
        self._released: dict[str, None] = {}
        self.flagged = 0
        """Points flagged since the start, for metrics."""
        self._load()

    @property
    def held(self) -> Keys:
        """Row keys in quarantine, ascending."""
        return np.array(sorted(self._held), dtype=np.int64)

    def judge(self, fits: Mapping[str, Any], judged: Sequence[Judged]) -> bool:
        """Look at new points under the fits in force (:class:`Watched`); returns whether the quarantine grew."""
        changed = grew = False
        for batch in judged:
            fit: Watched | None = fits.get(batch.field)
            if fit is None:
                continue
            scores = fit.thresholds.scores(batch.hub)
            worst = scores.max(axis=1)
            loud = np.flatnonzero(worst > 1.0)
            if len(loud):
                row = int(np.argmax(worst))
                _log.warning(
                    "hub alert: %d new points of field %s, the farthest %r with hub score %.2f (%s)",
                    len(loud),
                    batch.field,
                    batch.ids[row],
                    worst[row],
                    MEASURES[int(np.argmax(scores[row]))],
                )
            for row in loud.tolist():
                key, point_id = int(batch.keys[row]), batch.ids[row]
                if self._is_released(point_id, batch.vectors[row]) or key in self._held:
                    continue
                held = fit.quarantine and len(self._held) < MOST_HELD
                self._flag(point_id, batch.field, scores[row], held, "upsert")
                changed = True
                if held:
                    grew = True
                    self._held[key] = (point_id, batch.field)
        if changed:
            self._save()
        return grew

    def found_by_fit(self, field: str, found: Sequence[tuple[PointId, Scores]]) -> None:
        """Flag points that were there when a fit was made, with their scores by measure; they stay visible."""
        with self._lock:
            self._alerts = {i: a for i, a in self._alerts.items() if a["field"] != field or a["source"] != "fit"}
        for point_id, scores in found[:MOST_ALERTS]:
            if point_id not in self._alerts:
                self._flag(point_id, field, scores, False, "fit")
        self._save()

    def _flag(self, point_id: PointId, field: str, scores: Scores, held: bool, source: str) -> None:
        alert = {
            "id": point_id,
            "field": field,
            "hub_score": round(float(scores.max()), 4),
            "threshold": 1.0,
            "measure": MEASURES[int(np.argmax(scores))],
            "measures": {name: round(float(score), 4) for name, score in zip(MEASURES, scores, strict=True)},
            "at": time.time(),
            "quarantined": held,
            "source": source,
        }
        with self._lock:
            self._alerts.pop(point_id, None)
            self._alerts[point_id] = alert
            while len(self._alerts) > MOST_ALERTS:
                self._alerts.pop(next(iter(self._alerts)))
        self.flagged += source == "upsert"

    def release(self, vectors: Mapping[PointId, Sequence[Any]]) -> int:
        """Let points back into results, as they are now (their vectors by id); returns how many were held."""
        keys = [key for key, (point_id, _) in self._held.items() if point_id in vectors]
        for key in keys:
            del self._held[key]
        for point_id, own in vectors.items():
            for vector in own:
                self._released[_fingerprint(point_id, vector)] = None
        while len(self._released) > MOST_HELD:
            self._released.pop(next(iter(self._released)))
        with self._lock:
            for point_id in vectors:
                self._alerts.pop(point_id, None)
        self._save()
        return len(keys)

    def forget(self, dead: Sequence[int]) -> bool:
        """Drop row keys that died from the quarantine; returns whether any was in it."""
        gone = [key for key in dead if key in self._held] if self._held else []
        for key in gone:
            point_id, _ = self._held.pop(key)
            if not any(other == point_id for other, _ in self._held.values()):  # not merely patched
                with self._lock:
                    self._alerts.pop(point_id, None)
        if gone:
            self._save()
        return bool(gone)

    def clear(self) -> None:
        """Forget everything: there are no fits any more."""
        with self._lock:
            self._alerts, self._held, self._released = {}, {}, {}
        self._save()

    def alerts(self) -> list[Json]:
        """The latest alerts, newest last."""
        with self._lock:
            return [dict(alert) for alert in self._alerts.values()]

    def _is_released(self, point_id: PointId, vector: Any) -> bool:
        return bool(self._released) and _fingerprint(point_id, vector) in self._released

    def _save(self) -> None:
        with self._lock:
            body = {
                "alerts": list(self._alerts.values()),
                "held": [[key, *held] for key, held in self._held.items()],
                "released": list(self._released),
            }
        try:
            self._path.parent.mkdir(exist_ok=True)
            write_sealed(self._path, body)
        except (NearfieldError, OSError) as error:
            _log.error("the quarantine was not kept: %s", error)

    def _load(self) -> None:
        if not self._path.exists():
            return
        try:
            body = read_sealed(self._path)
            self._alerts = {alert["id"]: alert for alert in body["alerts"]}
            self._held = {key: (point_id, name) for key, point_id, name in body["held"]}
            self._released = dict.fromkeys(body["released"])
        except (Corrupt, ValueError, KeyError, TypeError) as error:
            _log.error("the quarantine file cannot be read, it starts empty: %s", error)


def _fingerprint(point_id: PointId, vector: Any) -> str:
    raw = np.ascontiguousarray(vector, dtype=np.float32).tobytes()
    return xxhash.xxh3_64_hexdigest(f"{type(point_id).__name__}\0{point_id}\0".encode() + raw)
