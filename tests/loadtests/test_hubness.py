"""The load tests of hubness on the built-in set: they run, and say what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtests.hubness import cost, sets
from loadtests.hubness.__main__ import main
from loadtests.hubness.crafted import KINDS, crafted, entries, lists


def test_the_built_in_set_is_disjoint_and_has_hubs() -> None:
    views = sets.built_in()
    parts = np.concatenate([views.bank, views.val, views.test])
    assert len(np.unique(parts)) == len(parts) == len(views.queries)
    best = np.argsort(-(views.queries @ views.items.T), axis=1)[:, 0]
    assert np.bincount(best, minlength=len(views.items))[: len(views.items) // 100].sum() > len(views.queries) / 4


def test_every_method_is_listed_with_its_recall(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["recall", "built-in", "--place", str(tmp_path)]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    found = {row[0].strip(): float(row[3]) for row in rows[2:]}
    assert set(found) == {"raw", "is", "dual_is", "nnn", "csls", "sinkhorn", "auto"}
    assert found["auto"] > found["raw"] + 10
    assert found["auto"] == pytest.approx(max(found.values()), abs=3)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_poison_is_found(capsys: pytest.CaptureFixture[str], tmp_path: Path, metric: str) -> None:
    assert main(["poison", "built-in", "--place", str(tmp_path), "--folds", "2", "--metric", metric]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    head, found = rows[0], {row[0]: row for row in rows[2:]}
    assert set(KINDS) <= set(found)
    assert ("item three times as long" in found) == (metric == "dot")
    above = head.index("above 1.5")
    assert all(row[above] in ("-", "100 %") for row in found.values())
    assert found["mean of 50"][head.index("found")] == "100 %"
    assert found["mean of all"][head.index("inside")] == "100 %"


def test_crafted_items_take_the_lists_they_are_said_to_take() -> None:
    views = sets.built_in()
    asked = views.queries[views.test]
    entry = entries(asked, views.items)
    inner = asked @ views.items.T
    among = np.argsort(-inner, axis=1)[:, :10]
    taken = np.bincount(among.ravel(), minlength=len(views.items))
    # An item that is there takes every list, but perhaps not those whose last it is.
    last = np.bincount(among[:, -1], minlength=len(views.items))
    found = lists(views.items, asked, entry)
    assert ((found >= taken - last) & (found <= taken)).all()
    for kind in KINDS:
        made = crafted(kind, asked, views.items, 3, seed=1)
        assert made.shape == (3, views.items.shape[1])
        assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    climbed, mean = (
        lists(crafted(kind, asked, views.items, 3, 1), asked, entry) for kind in ("gradient", "mean of 50")
    )
    assert (climbed >= mean - 20).all()


def test_cost_counts_distances_and_codes(tmp_path: Path) -> None:
    views = sets.built_in(items=3_000)
    lines = cost.sweep(views, efforts=(16, 64), queries=50, method="is", place=tmp_path)
    rows = [[cell.strip().replace(",", "", 1) for cell in line.split("|")[1:-1]] for line in lines if "| " in line][1:]
    found = {(row[0], int(row[1])): [float(cell) for cell in row[2:]] for row in rows if row[1].isdigit()}
    assert len(found) == 8


def test_a_fit_tells_its_steps(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["fit", "built-in", "--place", str(tmp_path), "--method", "auto"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert rows[-1][0].strip() == "all"
    assert float(rows[-1][1]) >= sum(float(row[1]) for row in rows[:-1]) - 0.5


def test_an_unknown_set_is_named() -> None:
    with pytest.raises(ValueError, match="known are"):
        sets.load("nothing", None)
    with pytest.raises(FileNotFoundError):
        sets.load("de2en", None)
