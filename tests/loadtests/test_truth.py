"""The judge of recall against the plainest evaluation, and the corpora it judges with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtests import corpora, truth


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("share", [None, 0.3, 0.01, 0.0])
def test_nearest_is_what_sorting_everything_gives(metric: str, share: float | None) -> None:
    random = np.random.default_rng(1)
    base = random.normal(size=(300, 9)).astype(np.float32)
    queries = random.normal(size=(7, 9)).astype(np.float32)
    alive = None if share is None else random.random(300) < share
    rows = np.arange(300) if alive is None else np.flatnonzero(alive)
    found = truth.nearest(base, queries, 20, metric, alive=alive)
    for query, ids in zip(queries.astype(float), found, strict=True):
        wide = base.astype(float)
        lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(query)
        score = -((wide - query) ** 2).sum(axis=1) if metric == "l2" else wide @ query / lengths
        best = rows[np.argsort(-score[rows])][:20]
        assert ids.tolist() == best.tolist() + [-1] * (20 - len(best))


def test_ties_count_repeats_and_ghosts_do_not() -> None:
    base = np.array([[1, 0], [1, 0], [0.9, 0.1], [0, 1]], dtype=np.float32)
    queries = np.array([[1, 0]] * 5, dtype=np.float32)
    answers = [[0, 1], [1, 1], [0, 2], [0, 9], [0, -1]]
    one = truth.judged(base, queries, answers, np.array([[0, 1]] * 5), "cosine")
    assert one["right"] == [2, 1, 1, 1, 1]
    assert one["wrong"] == [0, 0, 0, 1, 0]
    tied = truth.judged(base, queries[:1], [[1]], np.array([[0]]), "cosine")
    assert tied["right"] == [1]


def test_the_dead_are_wrong_and_padding_is_not_owed() -> None:
    base = np.eye(3, dtype=np.float32)
    alive = np.array([True, False, True])
    exact = truth.nearest(base, base[:1], 3, "l2", alive=alive)
    assert exact.tolist() == [[0, 2, -1]]
    told = truth.judged(base, base[:1], [[0, 1, 2]], exact, "l2", alive=alive)
    assert told == {"right": [2], "possible": [2], "wrong": [1]}


def test_the_built_in_corpus_is_the_same_every_time() -> None:
    first, again = (corpora.load("clustered-500x8", queries=30) for _ in range(2))
    assert first.base.shape == (500, 8)
    assert first.queries.shape == (30, 8)
    assert np.array_equal(first.base, again.base)
    assert first.truth is not None
    assert first.truth.shape == (30, corpora.DEPTH)
    assert not set(map(bytes, first.queries)) & set(map(bytes, first.training))


def test_a_limit_cuts_the_base_and_its_truth() -> None:
    whole, cut = corpora.load("clustered-500x8"), corpora.load("clustered-500x8", limit=200)
    assert len(cut.base) == len(cut.attributes["bucket"]) == 200
    assert cut.truth is not None
    assert cut.truth.max() < 200
    assert np.array_equal(cut.truth, truth.nearest(whole.base[:200], whole.queries, corpora.DEPTH, "cosine"))


def test_a_filter_is_part_of_the_truth() -> None:
    corpus = corpora.load("clustered-500x8", where=("bucket", "3"))
    assert corpus.truth is not None
    real = corpus.truth[corpus.truth >= 0]
    assert (corpus.attributes["bucket"][real] == 3).all()
    assert corpora.typed(corpus, "bucket", "3") == ("bucket", 3)


def test_real_sets_are_read_from_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    base, queries = random.integers(0, 255, (50, 784), np.uint8), random.integers(0, 255, (9, 784), np.uint8)
    exact = truth.nearest(base.astype(np.float32), queries.astype(np.float32), 20, "l2")
    np.savez(tmp_path / "fashion_mnist_784_euclidean.npz", train=base, queries=queries, gt_ids=exact)
    monkeypatch.setenv(corpora.DATA_VARIABLE, str(tmp_path))
    corpus = corpora.load("fashion_mnist_784_euclidean", queries=5)
    assert (len(corpus.base), len(corpus.queries), len(corpus.training)) == (50, 5, 4)
    assert corpus.truth is not None
    assert corpus.truth.tolist() == exact[:5].tolist()
    monkeypatch.delenv(corpora.DATA_VARIABLE)
    with pytest.raises(FileNotFoundError, match="--data"):
        corpora.load("fashion_mnist_784_euclidean")
