"""Filtered queries: the predicates, the tuning of the other side, both workloads on tiny data, and their report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loadtests import corpora, metrics, predicates, report, samples
from loadtests.__main__ import main
from loadtests.filtered_faiss import FilteredFaiss, bitmap, cheapest, id_list
from loadtests.truth import Judge, nearest
from loadtests.workloads.hybrid import SHAPES, Cell, plan_name


def run(workload: str, out: Path, *more: str) -> samples.Run:
    """Run a workload; its one file of samples."""
    assert main(["run", workload, "--out", str(out), "--work", str(out), *more]) == 0
    (path,) = out.glob("*.jsonl")
    done = samples.read(path)
    assert done.complete
    assert [each.name for each in out.iterdir()] == [path.name]  # the engines' data are gone
    return done


COLUMNS = {
    "size": np.array([1, 5, 9, 5]),
    "kind": predicates.nulled(np.array(["a", "b", "", None], dtype=object)),
    "tags": predicates.nulled(np.array([["x", "y"], [], ["y"], None], dtype=object)),
}


def leaf(field: str, op: str, value: object = None) -> dict[str, object]:
    return {"field": field, "op": op} if value is None else {"field": field, "op": op, "value": value}


@pytest.mark.parametrize(
    ("predicate", "rows", "where"),
    [
        (leaf("kind", "eq", "a"), [0], {"kind": {"eq": "a"}}),
        (leaf("kind", "in", ["a", "b"]), [0, 1], {"kind": {"in": ["a", "b"]}}),
        (leaf("kind", "is_null"), [2, 3], {"kind": {"exists": False}}),
        (leaf("tags", "not_null"), [0, 2], {"tags": {"exists": True}}),
        (leaf("tags", "contains", "y"), [0, 2], {"tags": {"any": ["y"]}}),
        (leaf("size", "lt", 5), [0], {"size": {"lt": 5}}),
        (leaf("size", "lte", 5), [0, 1, 3], {"size": {"lte": 5}}),
        (leaf("size", "gt", 5), [2], {"size": {"gt": 5}}),
        (leaf("size", "gte", 5), [1, 2, 3], {"size": {"gte": 5}}),
        (leaf("size", "between", [1, 5]), [0, 1, 3], {"size": {"gte": 1, "lte": 5}}),
        ({"not": leaf("kind", "eq", "a")}, [1, 2, 3], {"$not": {"kind": {"eq": "a"}}}),
        (
            {"and": [leaf("size", "eq", 5), leaf("kind", "is_null")]},
            [3],
            {"$and": [{"size": {"eq": 5}}, {"kind": {"exists": False}}]},
        ),
        (
            {"or": [leaf("size", "eq", 9), leaf("kind", "eq", "a")]},
            [0, 2],
            {"$or": [{"size": {"eq": 9}}, {"kind": {"eq": "a"}}]},
        ),
    ],
)
def test_a_predicate_and_its_filter(predicate: dict[str, object], rows: list[int], where: dict[str, object]) -> None:
    assert np.flatnonzero(predicates.matches(predicate, COLUMNS)).tolist() == rows
    assert predicates.to_filter(predicate) == where


def test_an_unknown_operator_is_refused() -> None:
    with pytest.raises(ValueError, match="like"):
        predicates.matches(leaf("kind", "like", "a"), COLUMNS)


def test_workloads_of_predicates() -> None:
    given = corpora.load("hybrid-2000x8", queries=200).predicates
    assert given is not None
    assert len(given.chosen) == 200
    assert set(given.buckets.tolist()) <= set(range(len(predicates.BUCKETS)))
    for other in (given.permuted(1), given.shuffled(1)):
        assert not np.array_equal(other.chosen, given.chosen)
    assert np.array_equal(np.sort(given.shuffled(1).chosen), np.sort(given.chosen))
    drifted = np.bincount(given.permuted(1).chosen)
    assert np.array_equal(np.sort(drifted[drifted > 0]), np.sort(np.unique(given.chosen, return_counts=True)[1]))


def test_the_real_workload(tmp_path: Path) -> None:
    """Its files, in miniature: ids that are no row numbers, a past half, gaps."""
    import pyarrow
    import pyarrow.parquet

    random = np.random.default_rng(3)
    vectors = random.normal(size=(40, 4))
    np.save(tmp_path / "debian_256.npy", vectors[:30].astype(np.float16))
    np.save(tmp_path / "debian_queries_256.npy", vectors[30:].astype(np.float16))
    text = {name: ["a", "b", ""] * 10 for name in ("section", "priority", "architecture", "multi_arch", "maintainer")}
    more = {"source": ["s"] * 30, "homepage_host": ["h", ""] * 15, "tags": [["t"], [], ["t", "u"]] * 10}
    numbers = {name: list(range(30)) for name in ("installed_size", "size", "n_depends")}
    pyarrow.parquet.write_table(pyarrow.table(text | more | numbers), tmp_path / "debian_attributes.parquet")
    stated = [leaf("tags", "contains", "t"), leaf("homepage_host", "is_null"), leaf("size", "lt", 6)]
    lines = [json.dumps({"id": 7 + number, "predicate": each}) for number, each in enumerate(stated)]
    (tmp_path / "hybrid_debian_predicates.jsonl").write_text("\n".join(lines))
    np.savez(
        tmp_path / "hybrid_debian.npz",
        query=np.array([0, 1, 2, 3, 2]),
        predicate=np.array([7, 7, 9, 8, 9]),
        is_past=np.array([True, True, False, False, True]),
    )
    corpus = corpora.load("hybrid_debian", data=tmp_path, limit=20)
    assert corpus.predicates is not None
    assert len(corpus.queries) == 2
    assert len(corpus.training) == 2  # the third of the past is asked in the test
    filters = [corpus.predicates.filters[number] for number in corpus.predicates.chosen]
    assert filters == [{"size": {"lt": 6}}, {"homepage_host": {"exists": False}}]
    assert corpus.predicates.selectivity.tolist() == [0.3, 0.5]
    assert corpus.attributes["tags"][1] is None


def test_the_judge_agrees_with_the_truth() -> None:
    corpus = corpora.load("clustered-500x8", queries=5)
    rows = np.arange(0, 500, 7)
    mask = np.zeros(500, dtype=bool)
    mask[rows] = True
    truth = nearest(corpus.base, corpus.queries, 10, corpus.metric, alive=mask)
    judge = Judge(corpus.base, corpus.queries, corpus.metric)
    assert all(np.array_equal(judge.nearest(number, rows, 10), truth[number]) for number in range(5))
    assert judge.nearest(0, rows[:3], 10).tolist().count(-1) == 7
    assert judge.nearest(0, rows[:0], 10).tolist() == [-1] * 10


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_faiss_behind_a_filter(metric: str) -> None:
    corpus = corpora.load("clustered-500x8", queries=5)
    theirs = FilteredFaiss(corpus.base, metric, kinds=("hnsw", "ivf", "flat"), say=lambda text: None)
    mask = np.arange(500) % 3 == 0
    truth = nearest(corpus.base, corpus.queries, 10, metric, alive=mask)
    queries = theirs.prepared(corpus.queries)
    for kind in ("hnsw", "ivf", "flat"):
        selector = id_list(mask) if kind == "flat" else bitmap(mask)
        for number in range(5):
            found = theirs.search(kind, queries[number : number + 1], 10, theirs.efforts(kind)[-1], selector)
            assert set(found.tolist()) == set(truth[number].tolist())


def test_the_cheapest_effort() -> None:
    efforts = list(range(100, 130))
    for wanted in efforts:
        assert cheapest(efforts, lambda effort, least=wanted: effort >= least) == wanted
    assert cheapest(efforts, lambda effort: False) is None
    assert cheapest([0], lambda effort: True) == 0


def test_ranges_of_a_cell() -> None:
    order = np.random.default_rng(1).permutation(1000)
    cell = Cell("random", 0.1, np.argsort(order).astype(np.int32), order)
    first, second = cell.spans(50, 1), cell.spans(50, 2)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, cell.spans(50, 1))
    assert first.min() >= 0
    assert first.max() < 1000
    assert np.allclose(first[:, 1] - first[:, 0] + 1, 100, atol=1)


def test_break_even() -> None:
    assert metrics.break_even({1: 9.0, 10: 5.0, 100: 2.0}, 6.0) == 10
    assert metrics.break_even({1: 9.0, 10: 8.0}, 6.0) is None
    assert metrics.break_even({1: 5.0, 10: 8.0, 100: 4.0}, 6.0) == 100


def test_names_of_plans() -> None:
    assert plan_name({"plan": "hnsw", "effort": 64}) == "hnsw 64"
    assert plan_name({"plan": "exact", "effort": 0}) == "exact"


def test_hybrid(tmp_path: Path) -> None:
    done = run(
        "hybrid",
        tmp_path,
        *("--target", "nearfield-embedded", "--dataset", "clustered-1500x8", "--queries", "15", "--repeat", "2"),
        *("--shapes", *SHAPES, "--selectivity", "0.001", "0.1", "0.9"),
    )
    cells = done.of("cell")
    ours = [record for record in cells if record["arm"] == "nearfield"]
    assert len(ours) == 3 * 3 * 2
    assert all(metrics.recall(record) >= 0.94 for record in ours)
    assert all(metrics.wrong(record) == 0 for record in cells)
    assert all(metrics.recall(record) > 0.999 for record in cells if record["arm"] == "flat")
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / report.REPORT).read_text()
    assert text.count("| clusters | 0.1 % |") == 1
    assert "Wrong ids, of anybody: 0." in text


def test_hybrid_needs_a_nearfield(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--target", "faiss", "--dataset", "clustered-100x4", "--out", str(tmp_path)]
    assert main(["run", "hybrid", *tiny]) == 2
    assert "--target" in capsys.readouterr().err


def test_batch(tmp_path: Path) -> None:
    done = run("batch", tmp_path, "--dataset", "hybrid-1500x8", "--queries", "60", "--mixes", "given", "drift")
    arms = done.of("arm")
    assert {record["arm"] for record in arms} == {"faiss", "grouped", "single", "batch", "rest", "rest batch"}
    assert {record["workload"] for record in arms} == {"given", "drift"}
    assert all(metrics.wrong(record) == 0 for record in arms)
    assert all(metrics.recall(record) >= 0.94 for record in arms if record["queries"] == 60)
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / report.REPORT).read_text()
    assert text.count("#### ") == 2
    assert "In process a batch costs less" in text


def test_layout(tmp_path: Path) -> None:
    dataset = ["--dataset", "hybrid-2500x8", "--queries", "60", "--mixes", "given", "uncorrelated"]
    done = run("layout", tmp_path, *dataset)
    arms = done.of("arm")
    assert {(record["mix"], record["arm"], record["layout"]) for record in arms} == {
        (mix, arm, layout)
        for mix in ("given", "uncorrelated")
        for arm in ("planned", "exact", "batch")
        for layout in ("without", "with")
    }
    assert all(np.mean(record["recall"]) == 1.0 for record in arms if record["arm"] == "exact")
    assert done.of("laid out")[0]["result"]["layouts"][0]["leaves"] > 1
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / report.REPORT).read_text()
    assert "uncorrelated:" in text
    assert text.count("| all |") == 2


def test_batch_needs_predicates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "batch", "--dataset", "clustered-100x4", "--out", str(tmp_path)]) == 2
    assert "hybrid_debian" in capsys.readouterr().err
