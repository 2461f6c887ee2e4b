"""Hubs as they arrive: alerts, quarantine, release; what patches, deletes, restarts and crashes do to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedded import crash_image, finished
from nearfield_index.engine import Engine
from nearfield_index.hubness.thresholds import MEASURES, UNSET, thresholds

Measures = np.ndarray[Any, np.dtype[np.float32]]

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


def test_an_alert_tells_what_gave_the_point_away(tmp_path: Path) -> None:
    with opened(tmp_path / "d", quarantine=False) as engine:
        plant(engine)
        alerts = {alert["id"]: alert for alert in engine.quality("c")["hub_alerts"]}
        for name in NAMES:
            measures = alerts[name]["measures"]
            assert set(measures) == set(MEASURES)
            assert alerts[name]["hub_score"] == max(measures.values()) == measures[alerts[name]["measure"]]
            assert alerts[name]["hub_score"] > alerts[name]["threshold"] == 1.0


def test_thresholds_stay_over_a_restart_and_a_rotation(tmp_path: Path) -> None:
    engine = opened(tmp_path / "d", quarantine=False)
    engine.close()
    with Engine.open(tmp_path / "d") as again:
        plant(again)
        before = {a["id"]: a["measures"] for a in again.quality("c")["hub_alerts"] if a["id"] in NAMES}
        assert set(before) == set(NAMES)
        again.delete_points("c", {"ids": NAMES})
        finished(again, again.rotate_hubness("c", {"vectors": Q[:100] + 0.01}))
        plant(again)
        after = {a["id"]: a["measures"] for a in again.quality("c")["hub_alerts"] if a["id"] in NAMES}
        assert set(after) == set(NAMES)
        assert after["p0"]["centre"] == pytest.approx(before["p0"]["centre"], rel=0.2)


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01])
@pytest.mark.parametrize("items", [2_000, 20_000])
def test_thresholds_hold_with_poison_inside(share: float, items: int) -> None:
    """Clean items follow laws with long tails and short ones; what was planted before does not lift a threshold
    above itself."""
    random = np.random.default_rng(5)

    def clean(count: int) -> Measures:
        laws = (random.pareto(2.0, count), random.normal(0.2, 0.02, count), random.uniform(-5, -4, count))
        return np.stack(laws, axis=1).astype(np.float32)

    for column, far in enumerate((2_000.0, 0.6, -1.0)):
        planted = clean(int(share * items))
        planted[:, column] = far
        marks = thresholds(np.concatenate([clean(items), planted]))
        assert (marks.scores(clean(100_000)) > 1).any(axis=1).mean() <= 0.002
        assert (marks.scores(planted)[:, column] > 1).all()


@pytest.mark.parametrize("items", [30, 38, 60, 120, 400])
def test_the_farthest_of_a_few_clean_items_is_clean(items: int) -> None:
    """One of four thousand is to be above: of a few, hardly ever the farthest. New ones are rarely above, and what is
    far beyond all of them is."""
    random = np.random.default_rng(6)

    def clean(count: int) -> Measures:
        laws = (random.lognormal(0.0, 1.0, count), random.normal(0.2, 0.02, count), random.logistic(-5.0, 0.2, count))
        return np.stack(laws, axis=1).astype(np.float32)

    far = np.diag([1e5, 0.8, 4.0]).astype(np.float32)
    own, new = [], []
    for _ in range(200):
        measures = clean(items)
        marks = thresholds(measures)
        own.append((marks.scores(measures) > 1).any())
        new.append((marks.scores(clean(1_000)) > 1).mean(axis=0).max())
        assert (np.diag(marks.scores(far)) > 1).all()
    assert np.mean(own) <= 0.1
    assert np.mean(new) <= (0.015 if items < 50 else 0.006)


@settings(derandomize=True, database=None, deadline=None)
@given(
    laws=st.tuples(*[st.sampled_from(["normal", "lognormal", "uniform", "alike", "halves"])] * 3),
    items=st.integers(1, 3_000),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-1e3, 1e3),
    seed=st.integers(0, 99),
)
def test_scores_say_what_the_limits_say(laws: Any, items: int, scale: float, shift: float, seed: int) -> None:
    """Whatever measures look like: finite scores, above 1 exactly beyond a limit, and few of the items themselves."""
    random = np.random.default_rng(seed)
    columns = []
    for number, law in enumerate(laws):
        drawn = {
            "normal": lambda: random.normal(size=items),
            "lognormal": lambda: random.lognormal(sigma=1.5, size=items),
            "uniform": lambda: random.uniform(size=items),
            "alike": lambda: np.zeros(items),
            "halves": lambda: random.integers(0, 2, items).astype(float),
        }[law]()
        columns.append(np.abs(drawn) * scale if number == 0 else drawn * scale + shift)  # reach is never negative
    measures = np.stack(columns, axis=1).astype(np.float32)
    marks = thresholds(measures)
    scores = marks.scores(measures)
    assert np.isfinite(scores).all()
    assert np.array_equal(scores > 1, measures > np.array(marks.limits))
    assert (scores > 1).mean(axis=0).max() <= 0.02
    assert not (UNSET.scores(measures) > 1).any()


@pytest.mark.parametrize("items", [0, 1, 29])
def test_nothing_stands_out_of_few_items(items: int) -> None:
    assert thresholds(RANDOM.normal(size=(items, 3)).astype(np.float32)) == UNSET
