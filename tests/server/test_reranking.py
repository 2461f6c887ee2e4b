"""Reranking through the service: real endpoints in every shape, in every kind of trouble, and nothing else held up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import nearfield
from conftest import serving
from nearfield import aio
from nearfield.scorers import ScorerError, make
from nearfield_server.cli import app
from nearfield_server.scorers import build_scorers
from nearfield_server.settings import ScorerSettings, SettingsError, load_settings
from scoring import Endpoint, Synthetic, endpoint

ITEMS = 400
QUICK = {"retry_wait_s": 0.0}


@pytest.fixture
def truth() -> Synthetic:
    return Synthetic(ITEMS, 30)


@pytest.fixture
def scorer(truth: Synthetic) -> Iterator[Endpoint]:
    with endpoint(truth.one) as made:
        yield made


@pytest.fixture
def start(tmp_path: Path, truth: Synthetic) -> Iterator[Callable[..., nearfield.Collection]]:
    """A filled collection of a service with these scorers."""
    with ExitStack() as stack:

        def run(data: str = "data", **scorers: Any) -> nearfield.Collection:
            made = {name: ScorerSettings(**(QUICK | each)) for name, each in scorers.items()}
            url = stack.enter_context(serving(tmp_path / data, scorers=made))
            client = stack.enter_context(nearfield.connect(url, retries=0))
            col = client.create("c", dim=truth.vectors.shape[1], metric="dot")
            col.upsert(
                np.arange(ITEMS), truth.vectors, text=truth.texts, attributes={"odd": (np.arange(ITEMS) % 2).tolist()}
            )
            return col

        yield run


def ask(col: Any, truth: Synthetic, query: int, **rerank: Any) -> nearfield.Hits:
    options = {key: rerank.pop(key) for key in ("k", "where", "timeout_ms", "explain") if key in rerank}
    body = {"query": truth.query_texts[query], **({} if "reranker" in rerank else {"scorer": "s"}), **rerank}
    hits: nearfield.Hits = col.query(truth.queries[query], rerank=body, **options)
    return hits


@pytest.mark.parametrize("kind", ["tei", "cohere", "jina", "pairs"])
def test_every_shape(start, scorer, truth, kind):
    col = start(
        s={"kind": kind, "url": scorer.url, "model": "m"} if kind == "cohere" else {"kind": kind, "url": scorer.url}
    )
    hits = ask(col, truth, 3, k=5, budget=ITEMS)
    assert hits.ids.tolist() == truth.best(3, 5)
    np.testing.assert_allclose(hits.scores, truth.scores[3][hits.ids])
    np.testing.assert_allclose([h.base_score for h in hits], truth.vectors[hits.ids] @ truth.queries[3], rtol=1e-4)
    assert scorer.total() == len(scorer.pairs) == hits.meta["rerank"]["calls"] == ITEMS
    text = httpx2.get(f"{col.client._transport.name}/metrics", trust_env=False).text
    assert f'nearfield_scorer_pairs_total{{scorer="s"}} {ITEMS}.0' in text
    assert max(map(len, scorer.batches)) <= 64
    filtered = ask(col, truth, 4, where={"odd": 1}, budget=50, explain=True)
    assert all(n % 2 for n in filtered.ids)
    assert [each["calls"] for each in filtered.meta["rerank"]["per_round"]] == [10] * 5


@pytest.mark.parametrize("budget", [1, 10, 50, 137])
def test_the_endpoint_never_counts_more_than_the_budget(start, scorer, truth, budget):
    col = start(s={"kind": "tei", "url": scorer.url, "retries": 3})
    for method in ("rerank", "axn"):
        scorer.pairs.clear()
        hits = ask(col, truth, 5, k=1, budget=budget, method=method)
        told = hits.meta["rerank"]
        assert scorer.total() + told["cached"] == budget
    flaky = {"n": 0}

    def spoil(call: int, reply: Any) -> Any:
        flaky["n"] += 1
        return 503 if flaky["n"] % 3 == 0 else reply[:-1] if flaky["n"] % 3 == 1 else reply

    scorer.spoil = spoil
    scorer.pairs.clear()
    try:
        told = ask(col, truth, 6, k=1, budget=budget).meta["rerank"]
    except nearfield.ScorerFailed:
        assert budget == 1
    else:
        assert told["calls"] == scorer.total()
    assert scorer.total() <= budget


def test_concurrent_queries_share_batches(start, scorer, truth):
    col = start(s={"kind": "pairs", "url": scorer.url, "max_in_flight": 1, "max_batch": 400, "linger_s": 0.2})
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda q: ask(col, truth, q, k=5, budget=50), range(16)))
    assert sum(hits.meta["rerank"]["calls"] for hits in found) == scorer.total() == 800
    assert scorer.calls < 40  # alone, the queries would have made 16 x 5 = 80
    for number, hits in enumerate(found):
        np.testing.assert_allclose(hits.scores, truth.scores[number][hits.ids])


def test_a_slow_scorer_holds_up_no_other_search_and_answers_in_part(start, scorer, truth):
    col = start(s={"kind": "tei", "url": scorer.url, "timeout_s": 20})
    scorer.gate.clear()
    with ThreadPoolExecutor(24) as pool:
        waiting = [pool.submit(ask, col, truth, q, k=5, budget=50, timeout_ms=1500) for q in range(24)]
        assert scorer.arrived.acquire(timeout=20)
        plain = col.query(truth.queries[0], k=3)  # more queries wait than there are search permits
        assert len(plain) == 3
        assert col.client.info()["scorers"] == ["s"]
        replies = [each.result(timeout=60) for each in waiting]
    assert all(reply.meta["rerank"]["partial"] for reply in replies)
    assert all(len(reply) == 0 for reply in replies)
    assert any("slow" in warning for warning in replies[0].meta["warnings"])
    scorer.gate.set()


def test_the_deadline_of_the_scorer_bounds_a_query_without_its_own(start, scorer, truth):
    col = start(s={"kind": "tei", "url": scorer.url, "deadline_s": 0.2, "timeout_s": 30})
    scorer.gate.clear()
    assert ask(col, truth, 0, budget=20).meta["rerank"]["partial"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda call, reply: 500,
        lambda call, reply: 404,
        lambda call, reply: b"not json",
        lambda call, reply: {"other": 1},
        lambda call, reply: reply[:-1],
        lambda call, reply: [*reply, reply[0]],
        lambda call, reply: [{"index": 0, "score": 1.0} for _ in reply],
        lambda call, reply: [{"index": each["index"], "score": None} for each in reply],
        lambda call, reply: [{"index": each["index"], "score": "NaN"} for each in reply],
        lambda call, reply: [{"index": each["index"] + 1000, "score": 1.0} for each in reply],
    ],
)
def test_an_endpoint_that_answers_nonsense_is_a_clear_error(start, scorer, truth, spoil):
    col = start(s={"kind": "tei", "url": scorer.url, "retries": 1})
    scorer.spoil = spoil
    with pytest.raises(nearfield.ScorerFailed) as caught:
        ask(col, truth, 0, budget=30)
    assert (caught.value.status, caught.value.code) == (502, "scorer_failed")
    assert scorer.total() <= 30
    scorer.spoil = None
    assert len(ask(col, truth, 0, budget=30)) == 10


def test_an_endpoint_that_is_gone_or_hangs_up(start, scorer, truth):
    col = start(s={"kind": "tei", "url": "http://127.0.0.1:9/rerank"}, h={"kind": "tei", "url": scorer.url})
    with pytest.raises(nearfield.ScorerFailed):
        ask(col, truth, 0, budget=30)

    def hang_up(call: int, reply: Any) -> Any:
        if call % 2:
            raise ConnectionError
        return reply

    scorer.spoil = hang_up
    hits = ask(col, truth, 0, scorer="h", budget=60)
    assert len(hits) == 10
    assert scorer.total() <= 60


def test_a_timeout_is_tried_again(scorer):
    made = make("tei", url=scorer.url)
    scorer.gate.clear()
    with pytest.raises(ScorerError, match="no reply") as caught:
        made.score([("query 0", "item 0")], timeout_s=0.1)
    assert caught.value.retryable
    assert caught.value.sent
    scorer.gate.set()
    made.close()


def test_keys_and_extra_parameters_go_with_the_request(start, truth):
    seen: list[dict[str, Any]] = []
    with endpoint(truth.one) as made:
        answer = made.answer
        made.answer = lambda body: seen.append(body) or answer(body)  # type: ignore[method-assign,func-returns-value]
        scorer = make("cohere", url=made.url, model="rerank-v9", api_key="secret", body={"max_tokens_per_doc": 512})
        assert scorer.score([("query 0", "item 1")], timeout_s=5) == [truth.scores[0, 1]]
        assert scorer._client.headers["authorization"] == "Bearer secret"
        scorer.close()
    assert seen == [
        {"model": "rerank-v9", "query": "query 0", "documents": ["item 1"], "top_n": 1, "max_tokens_per_doc": 512}
    ]


def test_rerankers_over_the_wire(start, scorer, truth, tmp_path):
    col = start(s={"kind": "pairs", "url": scorer.url})
    texts, vectors = truth.query_texts[:20], truth.queries[:20]
    cost = col.reranker_cost("r", "s", texts=texts, anchors=vectors)
    assert cost["calls_left"] == 20 * ITEMS
    job = col.fit_reranker("r", "s", texts=texts, anchors=vectors)
    assert job.state == "done"
    assert scorer.total() == 20 * ITEMS
    assert col.reranker("r")["state"] == "ready"
    assert [each["name"] for each in col.rerankers()] == ["r"]
    right = [len(set(ask(col, truth, q, reranker="r", budget=60).ids) & set(truth.best(q, 10))) for q in range(20, 30)]
    assert np.mean(right) > 8
    assert len(list(col.pairs())) == 600
    assert len(list(col.pairs(reranker="r", page=3_000))) == 20 * ITEMS

    out = tmp_path / "pairs.parquet"
    url = col.client._transport.name
    result = CliRunner().invoke(app, ["reranker", "pairs", "c", str(out), "--url", url])
    assert result.exit_code == 0, result.output
    table = pq.read_table(out)
    assert table.num_rows == 600
    assert table.schema.names == ["query", "id", "text", "score", "scorer", "version"]
    shown = CliRunner().invoke(app, ["reranker", "show", "c", "--url", url])
    assert "ready" in shown.output
    body = f'{{"reranker": "r", "query": "{truth.query_texts[25]}", "budget": 50}}'
    vector = str(truth.queries[25].tolist())
    found = CliRunner().invoke(app, ["query", "c", "--vector", vector, "--rerank", body, "--url", url])
    assert "joint: " in found.output
    again = CliRunner().invoke(app, ["reranker", "fit", "c", "r", "--scorer", "s", "--url", url])
    assert again.exit_code == 0, again.output
    logged = CliRunner().invoke(
        app, ["reranker", "fit", "c", "l", "--scorer", "s", "--log", "10", "--cost", "--url", url]
    )
    assert "4,000 calls left" in logged.output
    dropped = CliRunner().invoke(app, ["reranker", "drop", "c", "r", "--url", url])
    assert dropped.exit_code == 0
    assert col.rerankers() == []
    with pytest.raises(nearfield.NotFound):
        col.reranker("r")


def test_the_awaiting_client_does_the_same(start, scorer, truth):
    col = start(s={"kind": "pairs", "url": scorer.url})

    async def run() -> None:
        async with await aio.connect(col.client._transport.name) as client:
            mine = client.collection("c")
            await mine.fit_reranker("r", "s", texts=truth.query_texts[:10], anchors=truth.queries[:10])
            rerank = {"reranker": "r", "query": [truth.query_texts[n] for n in (20, 21)], "budget": 40}
            many = await mine.query(truth.queries[20:22], k=5, rerank=rerank)
            assert many.ids.shape == (2, 5)
            assert many.meta["rerank"]["calls"] == 80
            assert len([pair async for pair in mine.pairs()]) == 80
            assert (await mine.reranker("r"))["ready"]
            assert await mine.drop_reranker("r")

    asyncio.run(run())


def test_a_job_goes_on_after_the_process_was_killed(start_process, scorer, truth, tmp_path):
    environment = {
        "NEARFIELD_SCORERS__s__KIND": "pairs",
        "NEARFIELD_SCORERS__s__URL": scorer.url,
        "NEARFIELD_SCORERS__s__MAX_BATCH": "16",
        "NEARFIELD_SCORERS__s__MAX_IN_FLIGHT": "1",
        "NEARFIELD_SCORERS__s__RETRY_WAIT_S": "0",
    }
    server = start_process(**environment)
    with nearfield.connect(server.url) as client:
        col = client.create("c", dim=truth.vectors.shape[1], metric="dot")
        col.upsert(np.arange(ITEMS), truth.vectors, text=truth.texts)
        col.fit_reranker("r", "s", texts=truth.query_texts[:20], anchors=truth.queries[:20], wait=False)
        for _ in range(100):
            assert scorer.arrived.acquire(timeout=30)
        scorer.gate.clear()
        assert scorer.arrived.acquire(timeout=30)
        scored = col.reranker("r")["scored"]
        assert 0 < scored < ITEMS
        server.kill()
    scorer.gate.set()
    scorer.pairs.clear()
    server = start_process(**environment)
    with nearfield.connect(server.url) as client:
        col = client.collection("c")
        (job,) = [job for job in client.jobs() if job.kind == "reranker r"]
        assert client.wait(job, timeout=60).state == "done"
        assert col.reranker("r")["scored"] == ITEMS
        assert 0 < scorer.total() <= 20 * (ITEMS - scored)
        assert len(ask(col, truth, 25, reranker="r", budget=40)) == 10


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"kind": "tei"}, "url"),
        ({"kind": "onnx"}, "model"),
        ({"kind": "onnx", "model": "m", "url": "http://x"}, "url"),
        ({"kind": "magic", "url": "http://x"}, "kind"),
        ({"kind": "tei", "url": "http://x", "max_batch": 0}, "max_batch"),
        ({"kind": "tei", "url": "http://x", "options": {"threads": 1}}, "options"),
        ({"kind": "tei", "url": "http://x", "speed": 1}, "speed"),
    ],
)
def test_settings_of_scorers_are_checked(given, named):
    with pytest.raises(SettingsError, match=named):
        load_settings(None, scorers={"s": given})


def test_scorers_from_a_file(tmp_path):
    file = tmp_path / "nearfield.toml"
    file.write_text(
        '[scorers.relevance]\nkind = "tei"\nurl = "http://127.0.0.1:8081/rerank"\nmax_batch = 32\n'
        "max_in_flight = 2\ntimeout_s = 3\nbody = {truncate = true}\n"
    )
    scorer: Any
    (scorer,) = build_scorers(load_settings(file)).values()
    scorer.close()
    assert scorer.limits == {"one_query": True, "max_batch": 32, "max_in_flight": 2, "timeout_s": 3.0}
    file.write_text('[scorers.x]\nkind = "tei"\nurl = "ftp://host"\n')
    with pytest.raises(SettingsError, match=r"scorers\.x"):
        build_scorers(load_settings(file))
    file.write_text('[scorers.x]\nkind = "onnx"\nmodel = "nowhere"\n')
    with pytest.raises(SettingsError, match=r"scorers\.x"):
        build_scorers(load_settings(file))


def test_no_thread_is_left_behind(start, scorer, truth):
    before = {thread.name for thread in threading.enumerate()}
    with serving_closed(scorer, truth):
        pass
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        left = {t.name for t in threading.enumerate() if t.name.startswith("nearfield-scorer")} - before
        if not left:
            return
        threading.Event().wait(0.01)
    raise AssertionError(left)


class serving_closed:
    """An embedded engine that asked its scorer and is closed again."""

    def __init__(self, scorer: Endpoint, truth: Synthetic) -> None:
        self.scorer, self.truth = scorer, truth

    def __enter__(self) -> None:
        import tempfile

        with (
            tempfile.TemporaryDirectory() as path,
            nearfield.open(path, scorers={"s": make("tei", url=self.scorer.url), "f": self.truth}) as nf,
        ):
            col = nf.create("c", dim=self.truth.vectors.shape[1], metric="dot")
            col.upsert(np.arange(ITEMS), self.truth.vectors, text=self.truth.texts)
            http, function = ask(col, self.truth, 2, budget=50), ask(col, self.truth, 2, scorer="f", budget=50)
            assert http.ids.tolist() == function.ids.tolist()

    def __exit__(self, *_: object) -> None:
        pass
