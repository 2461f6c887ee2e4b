"""What several filters of one shape come to together, and what is chosen where none keeps enough in hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearfield_index.execution.cost import Calibration, Prices
from nearfield_index.execution.curves import DEPTHS, Curve, Reach, Setting
from nearfield_index.quality.calibration import load, save, worst_of


def test_a_filter_that_ended_early_does_not_cut_the_others_short() -> None:
    easy = (Setting(1, 0.9, 10.0), Setting(2, 1.0, 30.0))
    hard = (Setting(1, 0.5, 20.0), Setting(2, 0.8, 25.0), Setting(4, 0.97, 40.0))
    assert worst_of([easy, hard]) == (Setting(1, 0.5, 20.0), Setting(2, 0.8, 30.0), Setting(4, 0.97, 40.0))
    assert worst_of([hard, easy]) == worst_of([easy, hard])


@pytest.mark.parametrize(("best", "effort"), [(0.999, 8), (0.98, 8), (0.96, None)])
def test_lists_that_reach_the_target_with_little_to_spare_are_taken_at_their_best(
    best: float, effort: int | None
) -> None:
    curve = Curve(0.1, 10, "run", (Setting(4, 0.9, 10.0), Setting(8, best, 20.0)))
    sweeps = (Reach(8, 10.0, tuple(1.0 for _ in DEPTHS)),)
    known = Calibration("queries", 300, Prices(1, 1, 1, 1, 1), curves=(curve,), sweeps=sweeps)
    found = known.setting(selectivity=0.1, k=10, target=0.95, shapes=("random", "run"))
    assert (None if found is None else found.effort) == effort


def test_what_was_never_priced_is_kept_as_such(tmp_path: Path) -> None:
    """As of calibrations older than a price, which are kept again with those of a new fit."""
    unpriced = Calibration("queries", 300, Prices(1, 1, 1, 1, 1))
    save(tmp_path / "calibration.json", {"v": unpriced})
    kept = load(tmp_path / "calibration.json")
    assert kept == {"v": unpriced}
    assert kept["v"].pick_us(100, 0.5) == float("inf")
