"""The packaged data is whole, and the judge of the demo notices every kind of wrong answer."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from nearfield_server.demo import show
from nearfield_server.demo.dataset import FOLDER, Dataset, load
from nearfield_server.demo.questions import Question, faults, questions, without


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load()


def right_answer(data: Dataset, question: Question) -> list[list[dict[str, Any]]]:
    """What an exact search would reply."""
    lists = []
    for vector, allowed in zip(question.vectors, question.allowed, strict=True):
        scores = np.where(allowed, data.vectors @ vector, -np.inf)
        rows = np.argsort(-scores, kind="stable")[: question.k]
        lists.append([{"id": data.ids[row], "score": float(scores[row])} for row in rows])
    return lists


def test_the_data_is_whole_and_small(data: Dataset) -> None:
    assert data.vectors.shape == (9_000, 256)
    assert data.vectors.dtype == np.float32
    assert len(data.row_of) == len(data.points) == 9_000
    assert data.query_vectors.shape == (200, 256)
    assert len(set(data.query_texts)) == 200
    np.testing.assert_allclose(1.0, np.linalg.norm(data.vectors, axis=1), atol=1e-5)
    packaged = [path for path in FOLDER.iterdir() if path.suffix in (".npy", ".gz")]
    assert sum(path.stat().st_size for path in packaged) <= 3_000_000


def test_every_point_has_the_attributes_that_the_questions_filter_by(data: Dataset) -> None:
    assert {str} == {type(value) for value in data.column("section")}
    assert {int} == {type(value) for value in data.column("installed_size")}
    assert {list} == {type(value) for value in data.column("tags")}
    assert all(data.texts)


def test_a_right_answer_has_no_faults(data: Dataset) -> None:
    for question in questions(data):
        assert [] == faults(data, question, right_answer(data, question)), question.name


def test_the_filtered_question_has_more_matches_than_it_asks_for(data: Dataset) -> None:
    for question in questions(data):
        assert all(allowed.sum() > question.k for allowed in question.allowed), question.name


def test_a_deleted_point_in_the_answer_is_a_fault(data: Dataset) -> None:
    first = questions(data)[0]
    answer = right_answer(data, first)
    again = without(first, data.row_of[answer[0][0]["id"]])
    assert any("deleted" in fault for fault in faults(data, again, answer))
    assert [] == faults(data, again, right_answer(data, again))


def test_wrong_scores_order_counts_and_repeats_are_faults(data: Dataset) -> None:
    first = questions(data)[0]
    hits = right_answer(data, first)[0]
    higher = [{**hits[0], "score": hits[0]["score"] + 0.01}, *hits[1:]]
    assert any("cosine" in fault for fault in faults(data, first, [higher]))
    assert any("order" in fault for fault in faults(data, first, [hits[::-1]]))
    assert any("twice" in fault for fault in faults(data, first, [[hits[0], *hits[:-1]]]))
    assert faults(data, first, [hits[:-1]])
    assert faults(data, first, [])


def test_far_points_are_a_fault_even_with_honest_scores(data: Dataset) -> None:
    first = questions(data)[0]
    scores = data.vectors @ first.vectors[0]
    far = [{"id": data.ids[row], "score": float(scores[row])} for row in np.argsort(scores)[:5][::-1]]
    assert any("neighbours" in fault for fault in faults(data, first, [far]))


def test_an_unknown_text_is_refused(data: Dataset) -> None:
    with pytest.raises(KeyError):
        data.query("no such query")


def test_a_long_body_goes_to_a_file_and_a_short_one_into_the_line(tmp_path: Path) -> None:
    written = io.StringIO()
    console = Console(file=written, width=40)
    url = "http://127.0.0.1:7333/v1/collections/debian/query"
    show.curl(console, url, {"ids": ["0ad"], "k": 5}, tmp_path, "short")
    show.curl(console, url, {"vector": [0.5] * 256, "k": 5}, tmp_path, "long")
    short, long = written.getvalue().splitlines()
    assert short.endswith("""-d '{"ids":["0ad"],"k":5}'""")
    assert long.endswith(f"-d @{tmp_path}/long.json")
    assert {"vector": [0.5] * 256, "k": 5} == json.loads((tmp_path / "long.json").read_bytes())


def test_how_names_the_plan_and_the_estimate() -> None:
    meta = {
        "ms": 1.25,
        "plans": [{"plan": "exact", "selectivity": 0.05}],
        "recall": {"target": 0.95, "estimate": 1.0},
    }
    line = show.how(meta)
    assert "exact" in line
    assert "5% of the rows" in line
    assert "1.000" in line
    assert show.how({"ms": 0.5}) == "0.5 ms in the engine"
