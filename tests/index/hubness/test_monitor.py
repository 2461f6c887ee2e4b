"""Hubs as they arrive: alerts, quarantine, release; what patches, deletes, restarts and crashes do to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedded import crash_image, finished
from nearfield_index.engine import Engine
from nearfield_index.hubness.thresholds import hub_scores, thresholds

DIM = 16
RANDOM = np.random.default_rng(2)
X = RANDOM.standard_normal((1_500, DIM)).astype(np.float32)
Q = (RANDOM.standard_normal((600, DIM)) + 0.5).astype(np.float32)
POISON = (Q[:50].mean(axis=0) + 0.05 * RANDOM.standard_normal((5, DIM))).astype(np.float32)
NAMES = [f"p{n}" for n in range(len(POISON))]


def opened(path: Path, *, quarantine: bool) -> Engine:
    engine = Engine.open(path)
    engine.create_collection("c", {"dim": DIM})
    engine.write_points("c", {"ids": list(range(len(X))), "vectors": {"vector": X}})
    finished(engine, engine.fit_hubness("c", {"bank": {"vectors": Q}, "method": "is", "quarantine": quarantine}))
    return engine


def plant(engine: Engine) -> None:
    engine.write_points("c", {"ids": NAMES, "vectors": {"vector": POISON}, "attributes": {"n": [1] * len(NAMES)}})


def flagged(engine: Engine, source: str = "upsert") -> set[Any]:
    return {alert["id"] for alert in engine.quality("c")["hub_alerts"] if alert["source"] == source}


def found(engine: Engine) -> set[Any]:
    """What the queries find, raw: poison takes all."""
    hits = engine.query("c", {"vectors": Q[100:140], "k": 10, "hubness": "off", "select": False})["results"]
    return {hit["id"] for each in hits for hit in each}


def test_poison_is_flagged_and_clean_points_are_not(tmp_path: Path) -> None:
    with opened(tmp_path / "d", quarantine=False) as engine:
        clean = RANDOM.standard_normal((1_000, DIM)).astype(np.float32)
        engine.write_points("c", {"ids": [f"c{n}" for n in range(1_000)], "vectors": {"vector": clean}})
        plant(engine)
        seen = flagged(engine)
        assert set(NAMES) <= seen
        assert len(seen - set(NAMES)) <= 5
        assert set(NAMES) & found(engine)
        assert engine.stats()["collections"][0]["hubness"]["flagged"] == len(seen)
        assert flagged(engine, "fit") <= set(range(len(X)))


def test_quarantine_keeps_points_but_not_in_results(tmp_path: Path) -> None:
    with opened(tmp_path / "d", quarantine=True) as engine:
        plant(engine)
        assert not set(NAMES) & found(engine)
        assert engine.count_points("c", {})["count"] == len(X) + len(NAMES)
        assert len(engine.get_points("c", {"ids": NAMES})["points"]) == len(NAMES)
        assert all(alert["quarantined"] for alert in engine.quality("c")["hub_alerts"] if alert["id"] in NAMES)
        finished(engine, engine.optimize("c"))
        assert not set(NAMES) & found(engine)


def test_what_is_released_stays_out_of_quarantine(tmp_path: Path) -> None:
    with opened(tmp_path / "d", quarantine=True) as engine:
        plant(engine)
        assert engine.release_points("c", {"ids": ["p0", "p1", "nobody"]}) == {"released": 2}
        assert {"p0", "p1"} <= found(engine)
        engine.patch_points("c", {"ids": NAMES, "set": {"n": 2}})
        assert {"p0", "p1"} <= found(engine)
        assert not {"p2", "p3", "p4"} & found(engine)
        assert flagged(engine) >= {"p2", "p3", "p4"}
        engine.write_points("c", {"ids": ["p0"], "vectors": {"vector": POISON[:1] + 0.01}})  # another vector
        assert "p0" not in found(engine)


def test_quarantine_survives_restart_and_crash(tmp_path: Path) -> None:
    engine = opened(tmp_path / "d", quarantine=True)
    plant(engine)
    engine.release_points("c", {"ids": ["p4"]})
    image = crash_image(tmp_path / "d", tmp_path / "image")
    engine.close()
    for place in (tmp_path / "d", image):
        with Engine.open(place) as again:
            assert set(NAMES) & found(again) == {"p4"}
            assert {"p0", "p1", "p2", "p3"} <= flagged(again)


def test_a_lost_quarantine_file_costs_no_more_than_the_tail_can_tell(tmp_path: Path) -> None:
    engine = opened(tmp_path / "d", quarantine=True)
    plant(engine)
    engine.close()
    (file,) = (tmp_path / "d").glob("collections/*/hubness/quarantine.json")
    file.write_bytes(b"not json")
    with Engine.open(tmp_path / "d") as again:
        assert not set(NAMES) & found(again)  # judged again on replay


def test_deleted_points_leave_the_quarantine_and_a_drop_empties_it(tmp_path: Path) -> None:
    with opened(tmp_path / "d", quarantine=True) as engine:
        plant(engine)
        engine.delete_points("c", {"ids": ["p0"]})
        assert engine.stats()["collections"][0]["hubness"]["quarantined"] == len(NAMES) - 1
        engine.drop_hubness("c")
        assert set(NAMES) - {"p0"} <= found(engine)
        assert engine.quality("c")["hub_alerts"] == []


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01])
def test_thresholds_hold_with_poison_inside(share: float) -> None:
    """Clean items follow a law; those planted before the fit do not lift the threshold above themselves."""
    clean = np.stack([RANDOM.pareto(2.0, 20_000), RANDOM.normal(0.2, 0.02, 20_000)], axis=1).astype(np.float32)
    planted = np.full((int(share * 20_000), 2), (2_000.0, 0.6), np.float32)
    limits = thresholds(np.concatenate([clean, planted]))
    assert (hub_scores(clean, limits) > 1).mean() <= 0.002
    assert (hub_scores(planted, limits) > 1).all()
