"""Searching under a scorer, embedded: budgets, answers, filters, batches; rerankers through every kind of trouble."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedded import JOB_SECONDS, crash_image, finished
from nearfield_index.engine import Engine, EngineOptions
from nearfield_index.errors import Conflict, InvalidRequest, NotFound, ScorerFailed, TooLarge
from scoring import Synthetic

ITEMS, QUERIES = 600, 60
ANCHORS = range(40)
TESTS = range(40, 60)


class Troubled(Synthetic):
    """A synthetic scorer as an engine scorer, held back and spoilt on demand."""

    def __init__(self, items: int = ITEMS, **limits: Any) -> None:
        super().__init__(items, QUERIES)
        self.limits = {"retry_wait_s": 0.0, "max_in_flight": 2, **limits}
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Semaphore(0)
        self.fault: Any = None

    def score(self, pairs: Any, *, timeout_s: float) -> list[float]:
        self.calls += 1
        self.asked.update(pairs)
        self.arrived.release()
        self.gate.wait(JOB_SECONDS)
        values = [self.one(query, text) for query, text in pairs]
        return values if self.fault is None else self.fault(values)


@pytest.fixture
def scorer() -> Troubled:
    return Troubled()


@pytest.fixture
def engine(tmp_path: Path, scorer: Troubled) -> Iterator[Engine]:
    with opened(tmp_path / "data", scorer) as made:
        fill(made, scorer)
        yield made
        scorer.gate.set()


def opened(path: Path, scorer: Any) -> Engine:
    return Engine.open(path, options=EngineOptions(scorers={"s": scorer}, sample_rate=0.0))


def fill(engine: Engine, scorer: Synthetic, name: str = "c") -> None:
    engine.create_collection(name, {"dim": scorer.vectors.shape[1], "metric": "dot"})
    rows = range(len(scorer.texts))
    body = {
        "ids": list(rows),
        "vectors": scorer.vectors,
        "text": scorer.texts,
        "attributes": {"even": [n % 2 == 0 for n in rows], "part": [n // 100 for n in rows]},
    }
    engine.write_points(name, body)


def ask(engine: Engine, scorer: Synthetic, query: int, *, k: int = 10, more: Any = None, **rerank: Any) -> Any:
    who = {} if "reranker" in rerank or "scorer" in rerank else {"scorer": "s"}
    body = {
        "vector": scorer.queries[query],
        "k": k,
        "rerank": {**who, "query": scorer.query_texts[query], **rerank},
        **(more or {}),
    }
    reply = engine.query("c", body)
    return [hit["id"] for hit in reply["results"][0]], reply


def anchors(scorer: Synthetic, rows: Any = ANCHORS) -> dict[str, Any]:
    rows = list(rows)
    return {"texts": [scorer.query_texts[n] for n in rows], "vectors": scorer.queries[rows]}


def fitted(engine: Engine, scorer: Synthetic, name: str = "r") -> None:
    finished(engine, engine.put_reranker("c", name, {"scorer": "s", "anchors": anchors(scorer)}))


def test_a_budget_of_everything_is_the_true_order(engine, scorer):
    for query in (40, 41):
        found, reply = ask(engine, scorer, query, k=20, budget=ITEMS)
        assert found == scorer.best(query, 20)
        assert reply["meta"]["rerank"]["calls"] == ITEMS
        hits = reply["results"][0]
        np.testing.assert_allclose([h["score"] for h in hits], scorer.scores[query][found])
        np.testing.assert_allclose(
            [h["base_score"] for h in hits], scorer.vectors[found] @ scorer.queries[query], rtol=1e-4
        )
        assert hits[0]["attributes"]["even"] == (found[0] % 2 == 0)


@pytest.mark.parametrize("method", ["rerank", "axn", "anncur", "adacur", "joint"])
@pytest.mark.parametrize(("budget", "rounds"), [(1, 5), (7, 5), (40, 5), (50, 1), (100, 7), (599, 5)])
def test_the_budget_is_never_passed_and_always_used(engine, scorer, method, budget, rounds):
    if method not in ("rerank", "axn"):
        fitted(engine, scorer)
    scorer.asked.clear()
    who = {} if method in ("rerank", "axn") else {"reranker": "r"}
    found, reply = ask(engine, scorer, 45, k=1, method=method, budget=budget, rounds=rounds, **who)
    mine = {pair: n for pair, n in scorer.asked.items() if pair[0] == "query 45"}
    assert len(mine) == sum(mine.values()) == budget
    told = reply["meta"]["rerank"]
    assert (told["calls"], told["cached"], told["partial"]) == (budget, 0, False)
    assert told["rounds"] <= (1 if method == "rerank" else rounds if method != "anncur" else 2)
    best = max(mine, key=lambda pair: scorer.one(*pair))
    assert found == [int(best[1].split()[1])]


def test_adaptive_methods_beat_a_fixed_list(engine, scorer):
    fitted(engine, scorer)

    def recall(**rerank: Any) -> float:
        right = [len(set(ask(engine, scorer, q, budget=60, **rerank)[0]) & set(scorer.best(q, 10))) for q in TESTS]
        return sum(right) / (10 * len(right))

    rerank, axn = recall(method="rerank"), recall(method="axn")
    adacur, joint = recall(reranker="r", method="adacur"), recall(reranker="r")
    assert axn > rerank
    assert joint > axn
    assert min(adacur, joint) > 0.9


def test_filters_deletes_and_the_point_itself(engine, scorer):
    engine.delete_points("c", {"filter": {"part": 0}})
    where = {"filter": {"even": True}}
    left = [n for n in range(100, ITEMS) if n % 2 == 0]
    found, reply = ask(engine, scorer, 50, more=where, budget=500)
    assert found == scorer.best(50, 10, left)
    assert reply["meta"]["rerank"]["calls"] == len(left)
    assert reply["meta"]["rerank"]["partial"] is False

    few = {"filter": {"$id": {"in": [101, 103, 5, 999]}}}
    assert ask(engine, scorer, 50, more=few, budget=30)[0] == scorer.best(50, 2, [101, 103])
    assert ask(engine, scorer, 50, more={"filter": {"part": 77}}, budget=30)[0] == []

    body = {"ids": [200], "k": 10, "rerank": {"scorer": "s", "query": "query 50", "budget": 600}}
    own = [hit["id"] for hit in engine.query("c", body)["results"][0]]
    assert own == scorer.best(50, 10, [n for n in range(100, ITEMS) if n != 200])


def test_a_batch_goes_in_step_and_shares_calls(tmp_path):
    scorer = Troubled(max_in_flight=1, max_batch=1000)
    with opened(tmp_path / "data", scorer) as engine:
        fill(engine, scorer)
        body = {
            "vectors": scorer.queries[40:50],
            "k": 5,
            "rerank": {"scorer": "s", "query": scorer.query_texts[40:50], "budget": 50},
            "filters": [{"even": n % 2 == 0} for n in range(10)],
            "explain": True,
        }
        reply = engine.query("c", body)
        assert scorer.calls == 5
        assert reply["meta"]["rerank"]["calls"] == 500
        assert [each["asked"] for each in reply["meta"]["rerank"]["per_round"]] == [100] * 5
        for number, hits in enumerate(reply["results"]):
            assert all((hit["id"] % 2 == 0) == (number % 2 == 0) for hit in hits)
        scorer.gate.set()


def test_offset_minimum_and_cache(engine, scorer):
    whole, first = ask(engine, scorer, 42, k=20, budget=100)
    rest, second = ask(engine, scorer, 42, k=10, more={"offset": 10}, budget=100)
    assert rest == whole[10:]
    assert (first["meta"]["rerank"]["cached"], second["meta"]["rerank"]["cached"]) == (0, 100)
    assert second["meta"]["rerank"]["calls"] == 0
    least = first["results"][0][4]["score"]
    assert ask(engine, scorer, 42, k=20, more={"min_score": least}, budget=100)[0] == whole[:5]


def test_points_without_text_cost_nothing_and_are_named(engine, scorer):
    engine.write_points("c", {"ids": list(range(300)), "vectors": scorer.vectors[:300]})
    found, reply = ask(engine, scorer, 43, budget=300)
    assert found == scorer.best(43, 10, range(300, ITEMS))
    assert any("without text" in warning for warning in reply["meta"]["warnings"])


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_other_metrics(tmp_path, metric):
    scorer = Troubled()
    with opened(tmp_path / "data", scorer) as engine:
        engine.create_collection("c", {"dim": scorer.vectors.shape[1], "metric": metric})
        engine.write_points("c", {"ids": list(range(ITEMS)), "vectors": scorer.vectors, "text": scorer.texts})
        fitted(engine, scorer)
        plain = engine.query("c", {"vector": scorer.queries[41], "k": 50})["results"][0]
        rescored = ask(engine, scorer, 41, k=50, method="rerank", budget=50)[1]["results"][0]
        assert {hit["id"] for hit in plain} == {hit["id"] for hit in rescored}
        by_id = {hit["id"]: hit["score"] for hit in plain}
        np.testing.assert_allclose(
            [hit["base_score"] for hit in rescored], [by_id[hit["id"]] for hit in rescored], rtol=1e-4
        )
        assert len(set(ask(engine, scorer, 41, reranker="r", budget=80)[0]) & set(scorer.best(41, 10))) >= 8


def test_large_collections_look_at_a_shortlist(tmp_path, monkeypatch):
    """The same answers with the bound lowered, so that shortlists, probes and clustered latents are at work."""
    monkeypatch.setattr("nearfield_index.execution.shortlist.WHOLE", 100)
    monkeypatch.setattr("nearfield_index.execution.shortlist._NEAR", 150)
    monkeypatch.setattr("nearfield_index.execution.shortlist._POPULAR", 50)
    monkeypatch.setattr("nearfield_index.execution.shortlist._PROBED", 20)
    monkeypatch.setattr("nearfield_index.ranking.latents._CLUSTERED", 100)
    scorer = Troubled(2_000)
    with opened(tmp_path / "data", scorer) as engine:
        fill(engine, scorer)
        finished(engine, engine.optimize("c"))
        engine.write_points("c", {"ids": [0], "vectors": scorer.vectors[:1], "text": scorer.texts[:1]})
        fitted(engine, scorer)
        for rerank in ({}, {"method": "rerank"}, {"reranker": "r"}, {"reranker": "r", "method": "anncur"}):
            right = 0
            for query in TESTS:
                scorer.asked.clear()
                where = {"filter": {"even": True}} if query % 2 else {}
                found, reply = ask(engine, scorer, query, budget=60, more={**where, "explain": True}, **rerank)
                told = reply["meta"]["rerank"]
                assert told["calls"] + told["cached"] == 60
                assert len(found) == len(set(found)) == 10
                assert not query % 2 or all(n % 2 == 0 for n in found)
                assert all(each["candidates"] < 800 for each in told["per_round"])
                among = [n for n in range(2_000) if not query % 2 or n % 2 == 0]
                right += len(set(found) & set(scorer.best(query, 10, among)))
            assert right / (10 * len(TESTS)) > (0.7 if rerank == {"reranker": "r"} else 0.4)


@pytest.mark.parametrize(
    ("rerank", "kind", "field"),
    [
        ({"query": "q"}, InvalidRequest, "rerank.scorer"),
        ({"scorer": "s", "reranker": "r", "query": "q"}, InvalidRequest, "rerank.scorer"),
        ({"scorer": "other", "query": "q"}, NotFound, "rerank.scorer"),
        ({"scorer": "http://127.0.0.1/", "query": "q"}, InvalidRequest, "rerank.scorer"),
        ({"reranker": "other", "query": "q"}, NotFound, "reranker"),
        ({"scorer": "s"}, InvalidRequest, "rerank.query"),
        ({"scorer": "s", "query": " "}, InvalidRequest, "rerank.query"),
        ({"scorer": "s", "query": 3}, InvalidRequest, "rerank.query"),
        ({"scorer": "s", "query": ["a", "b"]}, InvalidRequest, "rerank.query"),
        ({"scorer": "s", "query": "\ud800"}, InvalidRequest, "rerank.query"),
        ({"scorer": "s", "query": "x" * 20_000}, TooLarge, "rerank.query"),
        ({"scorer": "s", "query": "q", "method": "magic"}, InvalidRequest, "rerank.method"),
        ({"scorer": "s", "query": "q", "method": "joint"}, InvalidRequest, "rerank.method"),
        ({"scorer": "s", "query": "q", "budget": 9}, InvalidRequest, "rerank.budget"),
        ({"scorer": "s", "query": "q", "budget": True}, InvalidRequest, "rerank.budget"),
        ({"scorer": "s", "query": "q", "budget": 10_001}, InvalidRequest, "rerank.budget"),
        ({"scorer": "s", "query": "q", "rounds": 0}, InvalidRequest, "rerank.rounds"),
        ({"scorer": "s", "query": "q", "prior": 1}, InvalidRequest, "rerank.prior"),
        ({"scorer": "s", "query": "q", "url": "http://x"}, InvalidRequest, "rerank.url"),
        ("s", InvalidRequest, "rerank"),
    ],
)
def test_mistakes_name_their_field(engine, scorer, rerank, kind, field):
    with pytest.raises(kind) as caught:
        engine.query("c", {"vector": scorer.queries[0], "k": 10, "rerank": rerank})
    assert caught.value.field == field
    assert not scorer.asked


# ---------------------------------------------------------------------- a scorer in trouble


@pytest.mark.parametrize(("factor", "shift"), [(1e-200, 0.0), (1e200, 0.0), (1.0, 1e9), (0.0, 3.0)])
def test_scores_of_any_size(engine, scorer, factor, shift):
    scorer.scores *= factor
    scorer.scores += shift
    found, reply = ask(engine, scorer, 48, budget=80)
    assert reply["meta"]["rerank"]["calls"] == 80
    scores = [hit["score"] for hit in reply["results"][0]]
    assert scores == sorted((scorer.scores[48][n] for n in found), reverse=True)


def test_a_slow_scorer_gives_what_was_scored_by_then(engine, scorer):
    ask(engine, scorer, 40, budget=20)  # twenty pairs are known and cost no waiting
    scorer.gate.clear()
    found, reply = ask(engine, scorer, 40, more={"timeout_ms": 60}, budget=100)
    assert reply["meta"]["rerank"]["partial"] is True
    assert any("slow" in warning for warning in reply["meta"]["warnings"])
    assert reply["meta"]["ms"] < 20_000
    known = [int(text.split()[1]) for query, text in scorer.asked if query == "query 40"]
    assert set(found) <= set(known)
    found, reply = ask(engine, scorer, 41, more={"timeout_ms": 30}, budget=50)
    assert (found, reply["meta"]["rerank"]["partial"]) == ([], True)


def test_a_scorer_that_is_gone_is_an_error_and_the_service_goes_on(engine, scorer):
    def gone(values: Any) -> Any:
        raise ConnectionRefusedError("nobody there")

    scorer.fault = gone
    with pytest.raises(ScorerFailed, match="nothing was scored"):
        ask(engine, scorer, 40, budget=50)
    assert engine.query("c", {"vector": scorer.queries[40], "k": 3})["results"][0]
    scorer.fault = None
    assert len(ask(engine, scorer, 40, budget=50)[0]) == 10


def test_a_scorer_that_dies_on_the_way_gives_a_partial_answer(engine, scorer):
    def die(values: Any) -> Any:
        if scorer.calls > 2:
            raise ConnectionResetError("gone")
        return values

    scorer.fault = die
    scorer.calls = 0
    found, reply = ask(engine, scorer, 44, budget=50)
    assert len(found) == 10
    assert reply["meta"]["rerank"]["partial"] is True
    assert any("failed" in warning for warning in reply["meta"]["warnings"])


@pytest.mark.parametrize("wrong", ["short", "nan", "flaky"])
def test_nonsense_never_passes_the_budget_and_never_shows(engine, scorer, wrong):
    def fault(values: list[float]) -> Any:
        if wrong == "nan":
            return [float("nan") if n % 5 == 0 else value for n, value in enumerate(values)]
        if scorer.calls % 3 == 0:
            return values[:-1] if wrong == "short" else 1 / 0
        return values

    scorer.fault = fault
    for query in (46, 47):
        found, reply = ask(engine, scorer, query, budget=60)
        mine = sum(n for pair, n in scorer.asked.items() if pair[0] == f"query {query}")
        told = reply["meta"]["rerank"]
        assert mine == told["calls"] <= 60
        assert len(found) == 10
        scores = [hit["score"] for hit in reply["results"][0]]
        np.testing.assert_allclose(scores, sorted(scorer.scores[query][found], reverse=True))
        assert told["partial"] == (len([p for p in scorer.asked if p[0] == f"query {query}"]) < 60 or wrong == "nan")


# ---------------------------------------------------------------------- rerankers


def test_the_price_is_told_before_and_after(engine, scorer):
    estimate = engine.put_reranker("c", "r", {"scorer": "s", "anchors": anchors(scorer), "dry_run": True})["estimate"]
    assert (estimate["calls_left"], estimate["anchors"], estimate["points"]) == (40 * ITEMS, 40, ITEMS)
    assert estimate["seconds_left"] > 0
    assert engine.list_rerankers("c") == {"rerankers": []}
    assert sum(scorer.asked.values()) <= 64
    fitted(engine, scorer)
    told = engine.get_reranker("c", "r")
    assert (told["state"], told["ready"], told["calls_left"], told["scored"]) == ("ready", True, 0, ITEMS)
    assert sum(scorer.asked.values()) == 40 * ITEMS  # what the estimate asked was kept


def test_anchors_from_the_log_and_chosen_from_an_upload(engine, scorer):
    with pytest.raises(InvalidRequest) as caught:
        engine.put_reranker("c", "r", {"scorer": "s", "anchors": {"log": 10}})
    assert caught.value.code == "log_too_short"
    for query in range(20):
        ask(engine, scorer, query, budget=10)
    finished(engine, engine.put_reranker("c", "r", {"scorer": "s", "anchors": {"log": 15}}))
    assert engine.get_reranker("c", "r")["anchors"] == 15
    body = {"scorer": "s", "anchors": {**anchors(scorer), "count": 12}}
    finished(engine, engine.put_reranker("c", "chosen", body))
    assert engine.get_reranker("c", "chosen")["anchors"] == 12
    assert [each["name"] for each in engine.list_rerankers("c")["rerankers"]] == ["chosen", "r"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scorer": "nobody"}, "scorer"),
        ({"scorer": "s"}, "anchors"),
        ({"scorer": "s", "field": "other"}, "field"),
        ({"scorer": "s", "anchors": {}}, "anchors"),
        ({"scorer": "s", "anchors": {"texts": ["a", "b"]}}, "anchors"),
        ({"scorer": "s", "anchors": {"texts": ["a", "b"], "vectors": np.ones((3, 16))}}, "anchors.vectors"),
        ({"scorer": "s", "anchors": {"texts": ["a", ""], "vectors": np.ones((2, 16))}}, "anchors.texts[1]"),
        ({"scorer": "s", "anchors": {"texts": ["a"], "vectors": np.ones((1, 16))}}, "anchors.texts"),
        ({"scorer": "s", "anchors": {"log": 1}}, "anchors.log"),
        ({"scorer": "s", "url": "http://x"}, "body.url"),
    ],
)
def test_mistakes_in_a_fit_name_their_field(engine, body, field):
    with pytest.raises((InvalidRequest, NotFound)) as caught:
        engine.put_reranker("c", "r", body)
    assert caught.value.field == field
    assert engine.list_rerankers("c") == {"rerankers": []}


def test_new_and_changed_points(engine, scorer):
    engine.delete_points("c", {"filter": {"part": 5}})
    fitted(engine, scorer)
    before = sum(scorer.asked.values())
    late = list(range(500, ITEMS))
    engine.write_points("c", {"ids": late, "vectors": scorer.vectors[500:], "text": scorer.texts[500:]})
    engine.patch_points("c", {"filter": {"part": 0}, "set": {"part": 10}})
    told = engine.get_reranker("c", "r")
    assert (told["scored"], told["points"], told["calls_left"]) == (400, ITEMS, 200 * 40)
    guessed = [len(set(ask(engine, scorer, q, reranker="r", budget=60)[0]) & set(scorer.best(q, 10))) for q in TESTS]
    assert np.mean(guessed) > 7.5  # latents by regression until they are scored
    spent = sum(scorer.asked.values())
    finished(engine, engine.put_reranker("c", "r", {"scorer": "s"}))
    assert sum(scorer.asked.values()) - spent <= 100 * 40  # patched points kept their scores
    assert engine.get_reranker("c", "r")["calls_left"] == 0
    assert before
    scored = [len(set(ask(engine, scorer, q, reranker="r", budget=60)[0]) & set(scorer.best(q, 10))) for q in TESTS]
    assert np.mean(scored) >= np.mean(guessed)


def started(engine: Engine, scorer: Troubled, name: str = "r") -> dict[str, Any]:
    """A job that has had some points scored and waits for the scorer."""
    scorer.limits["max_batch"] = 8
    job = engine.put_reranker("c", name, {"scorer": "s", "anchors": anchors(scorer)})
    for _ in range(100):
        assert scorer.arrived.acquire(timeout=JOB_SECONDS)
    scorer.gate.clear()
    assert scorer.arrived.acquire(timeout=JOB_SECONDS)
    return job


def ended(engine: Engine, job: dict[str, Any]) -> dict[str, Any]:
    assert engine._catalog.maintenance.jobs.get(job["id"]).wait(JOB_SECONDS)
    return engine.get_job(job["id"])


def test_a_cancelled_job_keeps_what_was_scored_and_goes_on_when_asked(tmp_path):
    scorer = Troubled(max_batch=8, max_in_flight=1, cache_entries=0)
    with opened(tmp_path / "data", scorer) as engine:
        fill(engine, scorer)
        job = started(engine, scorer)
        with pytest.raises(Conflict) as caught:
            ask(engine, scorer, 40, reranker="r")
        assert caught.value.code == "reranker_not_ready"
        assert engine.put_reranker("c", "r", {"scorer": "s", "anchors": anchors(scorer)})["id"] == job["id"]
        with pytest.raises(Conflict):
            engine.put_reranker("c", "r", {"scorer": "s", "anchors": anchors(scorer, range(5))})
        engine.cancel_job(job["id"])
        assert ended(engine, job)["state"] == "cancelled"  # though the scorer still holds its call
        kept = engine.get_reranker("c", "r")
        assert (kept["state"], kept["ready"]) == ("cancelled", False)
        assert 0 < kept["scored"] < ITEMS
        scorer.gate.set()
    with opened(tmp_path / "data", scorer) as engine:  # a restart leaves a cancelled job alone
        assert engine.get_reranker("c", "r")["state"] == "cancelled"
        assert engine.list_jobs()["jobs"] == []
        scorer.asked.clear()
        finished(engine, engine.put_reranker("c", "r", {"scorer": "s"}))
        assert sum(scorer.asked.values()) <= (ITEMS - kept["scored"]) * 40
        assert engine.get_reranker("c", "r")["ready"]
        assert ask(engine, scorer, 40, reranker="r")[0]


def test_a_job_survives_a_crash_and_goes_on_by_itself(tmp_path):
    scorer = Troubled(max_batch=8, max_in_flight=1, cache_entries=0)
    with opened(tmp_path / "data", scorer) as engine:
        fill(engine, scorer)
        started(engine, scorer)
        scored = engine.get_reranker("c", "r")["scored"]
        crash_image(tmp_path / "data", tmp_path / "crashed")
        scorer.gate.set()
    scorer.asked.clear()
    with opened(tmp_path / "crashed", scorer) as engine:
        job = engine.list_jobs()["jobs"][0]
        finished(engine, job)
        told = engine.get_reranker("c", "r")
        assert (told["state"], told["scored"]) == ("ready", ITEMS)
        assert 0 < sum(scorer.asked.values()) <= (ITEMS - scored) * 40
    with opened(tmp_path / "data", scorer) as engine:  # and so it does after an orderly stop
        for job in engine.list_jobs()["jobs"]:
            finished(engine, job)
        assert engine.get_reranker("c", "r")["state"] == "ready"


def test_a_scorer_that_dies_mid_job(tmp_path):
    scorer = Troubled(max_batch=8, retries=1)
    with opened(tmp_path / "data", scorer) as engine:
        fill(engine, scorer)
        budget = 2_000

        def die(values: Any) -> Any:
            if sum(scorer.asked.values()) > budget:
                raise ConnectionRefusedError("gone")
            return values

        scorer.fault = die
        job = engine.put_reranker("c", "r", {"scorer": "s", "anchors": anchors(scorer)})
        final = ended(engine, job)
        assert final["state"] == "failed"
        assert "kept" in final["error"]
        told = engine.get_reranker("c", "r")
        assert (told["state"], told["ready"]) == ("failed", False)
        assert 0 < told["scored"] <= budget / 40
        assert told["error"]
        scorer.fault = None
        finished(engine, engine.put_reranker("c", "r", {"scorer": "s"}))
        assert engine.get_reranker("c", "r")["error"] is None
        assert ask(engine, scorer, 40, reranker="r")[0]


def test_points_that_cannot_be_scored_do_not_stop_the_rest(engine, scorer):
    bad = scorer.scores[:, 7].copy()
    scorer.scores[:, 7] = np.nan
    fitted(engine, scorer)
    told = engine.get_reranker("c", "r")
    assert (told["scored"], told["ready"]) == (ITEMS - 1, True)
    assert "1 points" in told["error"]
    scorer.scores[:, 7] = bad


def test_a_reranker_belongs_to_its_field(engine, scorer):
    engine.alter_collection("c", {"vectors": {"other": {"dim": 3, "metric": "l2"}}})
    fitted(engine, scorer)
    body = {"vector": [1, 2, 3], "field": "other", "rerank": {"reranker": "r", "query": "query 1"}}
    with pytest.raises(InvalidRequest, match="fitted on the vector field vector"):
        engine.query("c", body)
    plain = body | {"rerank": {"scorer": "s", "query": "query 1"}}
    assert engine.query("c", plain)["results"] == [[]]  # nothing has such a vector
    given = {"texts": ["query 1", "query 2"], "vectors": np.ones((2, 3))}
    with pytest.raises(InvalidRequest, match="a fit needs"):
        engine.put_reranker("c", "o", {"scorer": "s", "field": "other", "anchors": given})
    engine.write_points("c", {"ids": list(range(20)), "vectors": {"other": np.ones((20, 3))}})  # without text
    job = engine.put_reranker("c", "o", {"scorer": "s", "field": "other", "anchors": given})
    assert "a fit needs" in ended(engine, job)["error"]


def test_a_refit_replaces_and_a_drop_removes(engine, scorer, tmp_path):
    fitted(engine, scorer)
    folder = next((tmp_path / "data" / "collections").glob("*/rerankers/r"))
    assert len([p for p in folder.iterdir() if p.is_dir()]) == 1
    finished(engine, engine.put_reranker("c", "r", {"scorer": "s", "anchors": anchors(scorer, range(20, 40))}))
    assert engine.get_reranker("c", "r")["anchors"] == 20
    assert len([p for p in folder.iterdir() if p.is_dir()]) == 1
    scorer.version = "synthetic-2"
    assert any("version" in w for w in ask(engine, scorer, 40, reranker="r")[1]["meta"]["warnings"])
    finished(engine, engine.put_reranker("c", "r", {"scorer": "s"}))
    assert engine.get_reranker("c", "r")["scorer_version"] == "synthetic-2"
    assert engine.drop_reranker("c", "r") == {"dropped": True}
    assert not folder.exists()
    with pytest.raises(NotFound):
        ask(engine, scorer, 40, reranker="r")
    with pytest.raises(NotFound):
        engine.get_reranker("c", "r")


def test_damaged_files_are_never_served(tmp_path, scorer):
    with opened(tmp_path / "data", scorer) as engine:
        fill(engine, scorer)
        fitted(engine, scorer)
        expected = ask(engine, scorer, 40, reranker="r", budget=60)[0]
    (latents,) = (tmp_path / "data" / "collections").glob("*/rerankers/r/*/latents-*")
    raw = bytearray(latents.read_bytes())
    raw[len(raw) // 2] ^= 255
    latents.write_bytes(raw)
    scorer.asked.clear()
    with opened(tmp_path / "data", scorer) as engine:  # fitted again from the kept scores, without a call
        for job in engine.list_jobs()["jobs"]:
            finished(engine, job)
        assert not scorer.asked
        assert ask(engine, scorer, 40, reranker="r", budget=60)[0] == expected
    (head,) = (tmp_path / "data" / "collections").glob("*/rerankers/r/reranker.json")
    head.write_bytes(head.read_bytes()[:-20] + b"x" * 20)
    with opened(tmp_path / "data", scorer) as engine:
        assert engine.list_rerankers("c") == {"rerankers": []}
        assert any("reranker r" in finding for c in engine.check()["collections"] for finding in c["findings"])
        fitted(engine, scorer)
        assert ask(engine, scorer, 40, reranker="r", budget=60)[0] == expected


def test_dropping_the_collection_ends_its_job(tmp_path):
    scorer = Troubled(max_batch=8, max_in_flight=1)
    with opened(tmp_path / "data", scorer) as engine:
        fill(engine, scorer)
        job = started(engine, scorer)
        engine.drop_collection("c")
        assert ended(engine, job)["state"] == "cancelled"
        scorer.gate.set()


# ---------------------------------------------------------------------- training material


def test_scored_pairs_can_be_read_back(engine, scorer):
    ask(engine, scorer, 40, budget=30)
    ask(engine, scorer, 41, budget=20)
    seen, cursor = [], None
    while True:
        page = engine.scored_pairs("c", {"limit": 7} | ({"cursor": cursor} if cursor else {}))
        seen += page["pairs"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == 50
    assert {(p["query"], p["text"]) for p in seen} == set(scorer.asked)
    assert all(p["score"] == scorer.one(p["query"], p["text"]) and p["text"] == f"item {p['id']}" for p in seen)
    assert {(p["scorer"], p["version"]) for p in seen} == {("s", "synthetic-1")}
    fitted(engine, scorer)
    total, cursor = 0, None
    while True:
        page = engine.scored_pairs("c", {"reranker": "r", "limit": 10_000} | ({"cursor": cursor} if cursor else {}))
        total += len(page["pairs"])
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert total == 40 * ITEMS
    with pytest.raises(InvalidRequest):
        engine.scored_pairs("c", {"cursor": "nonsense"})
