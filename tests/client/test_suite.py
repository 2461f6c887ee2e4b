"""One suite, four forms: blocking and awaited, over HTTP and embedded. They must not differ in anything."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nearfield
from nearfield import F, aio, ids
from scoring import near_each

RNG = np.random.default_rng(7)
DIM = 8
X = RNG.standard_normal((60, DIM)).astype(np.float32)
COLORS = ["red", "green", "blue"] * 20
PRICES = list(range(60))


class Blocking:
    """Drives an awaited client (or handle) so that a test reads the same for both colours."""

    def __init__(self, inner: Any, runner: asyncio.Runner) -> None:
        self._inner = inner
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        return self._call(attribute) if callable(attribute) else self._wrap(attribute)

    def _call(self, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if inspect.iscoroutine(result):
                result = self._runner.run(result)
            elif inspect.isasyncgen(result):
                result = iter(self._runner.run(self._collect(result)))
            return self._wrap(result)

        return call

    def _wrap(self, result: Any) -> Any:
        if isinstance(result, (aio.AsyncClient, aio.AsyncCollection)):
            return Blocking(result, self._runner)
        return [self._wrap(each) for each in result] if type(result) is list else result

    @staticmethod
    async def _collect(generator: Any) -> list[Any]:
        return [each async for each in generator]


@pytest.fixture(params=["http", "async-http", "embedded", "async-embedded"])
def nf(request: pytest.FixtureRequest) -> Iterator[Any]:
    where = "server_url" if "http" in request.param else "engine_dir"
    address = request.getfixturevalue(where)
    if not request.param.startswith("async"):
        with (
            nearfield.connect(address)
            if where == "server_url"
            else nearfield.open(address, scorers={"near": near_each}) as client
        ):
            yield client
        return
    with asyncio.Runner() as runner:
        opening = aio.connect(address) if where == "server_url" else aio.open(address, scorers={"near": near_each})
        client = runner.run(opening)
        yield Blocking(client, runner)
        runner.run(client.close())


@pytest.fixture
def name() -> str:
    return f"c{uuid.uuid4().hex}"


@pytest.fixture
def col(nf: Any, name: str) -> Any:
    """A collection of 60 points: ids 0 to 59, colors and prices."""
    collection = nf.create(name, dim=DIM)
    collection.upsert(np.arange(60), X, attributes={"color": COLORS, "price": PRICES})
    return collection


def nearest(q: np.ndarray, rows: np.ndarray, k: int) -> list[int]:
    """The oracle: cosine by brute force over the given rows of X."""
    scores = X[rows] @ q / (np.linalg.norm(X[rows], axis=1) * np.linalg.norm(q))
    return rows[np.argsort(-scores, kind="stable")[:k]].tolist()


def test_create_is_repeatable_and_conflicts_are_told(nf, name):
    nf.create(name, dim=4, attributes={"price": "integer"})
    nf.create(name, dim=4)

    with pytest.raises(nearfield.Conflict):
        nf.create(name, dim=5)
    with pytest.raises(nearfield.Conflict):
        nf.create(name, dim=4, exist_ok=False)
    assert name in [each.name for each in nf.collections()]
    assert nf.drop(name)
    with pytest.raises(nearfield.NotFound) as caught:
        nf.collection(name).count()
    assert caught.value.status == 404


def test_info_and_describe(nf, col, name):
    assert nf.info()["name"] == "nearfield"
    assert "frame" in nf.info()["features"]
    description = col.describe()
    assert description["name"] == name
    assert description["vectors"] == {"vector": {"dim": DIM, "metric": "cosine"}}
    assert description["points"] == 60
    assert description["indexed_points"] == 0


def test_describe_counts_indexed_points(col):
    col.optimize()
    assert col.describe()["indexed_points"] == 60
    col.delete(ids=[0, 1])
    col.upsert([100], X[:1])
    assert (col.describe()["points"], col.describe()["indexed_points"]) == (59, 58)


def test_query_with_one_vector(col):
    q = RNG.standard_normal(DIM)
    hits = col.query(q, k=5, exact=True)

    assert isinstance(hits, nearfield.Hits)
    assert hits.ids.dtype == np.int64
    assert hits.ids.tolist() == nearest(q.astype(np.float32), np.arange(60), 5)
    assert np.all(np.diff(hits.scores) <= 0)
    assert [hit.id for hit in hits] == hits.ids.tolist()
    assert hits[0]["price"] == hits[0].id
    assert hits[0].attributes["color"] == COLORS[hits[0].id]
    assert hits.meta["sequence"] >= 1
    assert "<table>" in hits._repr_html_()
    assert hits[:2].ids.tolist() == hits.ids[:2].tolist()


@pytest.mark.parametrize("shape", ["list", "array"])
def test_query_with_many_vectors(col, shape):
    Q = RNG.standard_normal((4, DIM)).astype(np.float32)
    many = col.query(Q.tolist() if shape == "list" else Q, k=3, exact=True, explain=True)

    assert isinstance(many, nearfield.ManyHits)
    assert many.ids.shape == many.scores.shape == (4, 3)
    assert [hits.ids.tolist() for hits in many] == [nearest(q, np.arange(60), 3) for q in Q]
    assert many.plans


def test_filtered_query_agrees_with_brute_force_and_pads(col):
    q = X[7]
    where = (F.color == "green") & (F.price < 30)
    rows = np.array([n for n in range(60) if COLORS[n] == "green" and n < 30])

    assert col.query(q, k=4, where=where).ids.tolist() == nearest(q, rows, 4)
    assert col.query(q, k=4, where={"color": "green", "price": {"lt": 30}}).ids.tolist() == nearest(q, rows, 4)
    many = col.query(X[:2], k=4, wheres=[ids(1, 2), None])
    assert many.ids[0, 2:].tolist() == [-1, -1]
    assert np.isnan(many.scores[0, 2:]).all()
    assert sorted(many.ids[0, :2].tolist()) == [1, 2]
    assert many.ids[1, 0] == 1


def test_query_by_id_leaves_the_point_out(col):
    one = col.query(ids=3, k=5)
    assert isinstance(one, nearfield.Hits)
    assert 3 not in one.ids
    many = col.query(ids=[3, 4], k=5)
    assert many.ids.shape == (2, 5)
    np.testing.assert_array_equal(one.ids, many.ids[0])


def test_query_options(col):
    q = X[0]
    first = col.query(q, k=6)
    np.testing.assert_array_equal(first.ids[2:], col.query(q, k=4, offset=2).ids)
    assert col.query(q, k=3, select=False)[0].attributes == {}
    assert set(col.query(q, k=3, select=["price"])[0].attributes) == {"price"}
    np.testing.assert_allclose(X[0], col.query(q, k=1, with_=["vectors"])[0].vectors["vector"], rtol=1e-6)
    assert len(col.query(q, k=60, min_score=0.999)) == 1
    assert col.query(q, k=1, timeout_ms=10_000, recall=0.9).ids[0] == 0


def test_string_ids_and_mixed_ids(nf, name):
    col = nf.create(name, dim=2, metric="dot")
    col.upsert(["1", "b"], [[1, 0], [0.5, 0]])
    col.upsert([1], [[2, 0]])

    hits = col.query([1, 0], k=5)
    assert hits.ids.dtype == object
    assert hits.ids.tolist() == [1, "1", "b"]
    assert hits.scores.tolist() == [2.0, 1.0, 0.5]
    assert col.query([[1, 0]], k=4).ids.tolist() == [[1, "1", "b", None]]


def test_writes_are_read_at_once_and_replace(col):
    result = col.upsert([0], [X[1]], attributes={"color": ["gold"]})

    assert (result.upserted, result.outcomes) == (1, None)
    (point,) = col.get([0], with_=["vectors"])
    assert point.attributes == {"color": "gold"}
    np.testing.assert_allclose(X[1], point.vectors["vector"])
    assert col.query(X[1], k=1, where=F.color == "gold", after=result.sequence).ids.tolist() == [0]
    assert col.count() == 60


def test_insert_and_update_tell_outcomes(col):
    inserted = col.insert([0, 100], X[:2])
    updated = col.update([0, 200], X[:2])

    assert inserted.upserted == updated.upserted == 1
    assert len(inserted.outcomes) == len(updated.outcomes) == 2
    assert col.count() == 61


def test_rows_with_text_nested_attributes_and_no_vector(nf, name):
    col = nf.create(name, dim=2)
    col.upsert(rows=[{"id": "a", "vector": [1, 0], "a": {"b": 1}, "tags": ["x", "y"]}, {"id": "b", "text": "words"}])

    a, b = col.get(["a", "b", "unknown"], with_=["text"])
    assert a.attributes == {"a": {"b": 1}, "tags": ["x", "y"]}
    assert b.text == "words"
    assert col.count(F["a.b"] == 1) == 1
    assert col.count(F.tags.any_of(["y", "z"])) == 1
    assert col.query([1, 0], k=5).ids.tolist() == ["a"]


def test_ids_are_made_and_returned(nf, name):
    col = nf.create(name, dim=2)
    made = col.upsert(vectors=[[1, 0], [0, 1]]).ids

    assert len(made) == 2
    assert {point.id for point in col.get(made)} == set(made)


def test_several_vector_fields(nf, name):
    col = nf.create(name, vectors={"image": {"dim": 2, "metric": "dot"}, "title": {"dim": 3, "metric": "l2"}})
    col.upsert([1, 2], {"image": [[1, 0], [0, 1]], "title": [[0, 0, 0], [3, 4, 0]]})

    assert col.query([0, 1], k=1, field="image").ids.tolist() == [2]
    hits = col.query([0, 0, 0], k=2, field="title")
    assert hits.ids.tolist() == [1, 2]
    np.testing.assert_allclose([0, -5], hits.scores, atol=1e-5)

    for guess in (
        lambda: col.query([0, 1]),
        lambda: col.query(ids=1),
        lambda: col.optimize(queries=[[0, 1]]),
        lambda: col.fit_hubness([[0, 1]] * 30),
    ):
        with pytest.raises(nearfield.InvalidRequest, match="name one of: image, title") as caught:
            guess()
        assert (caught.value.code, caught.value.field) == ("missing", "field")
    assert col.optimize(queries=[[0, 1]], field="image").state == "done"
    col.alter(vectors={"vector": {"dim": 1, "metric": "l2"}})
    assert len(col.query([0])) == 0


def test_the_only_vector_field_needs_no_name(nf, name):
    col = nf.create(name, vectors={"image": {"dim": 2}})
    col.upsert([1], {"image": [[1, 0]]})
    assert col.query([1, 0]).ids.tolist() == [1]


def test_patch(col):
    assert col.patch(ids=[1, 2], set={"color": "gold"}, unset=["price"]) == 2
    assert col.patch(where=F.color == "gold", set={"shiny": True}) == 2
    assert [point.attributes for point in col.get([1, 2])] == [{"color": "gold", "shiny": True}] * 2


def test_delete(col):
    assert col.delete(where=F.price >= 50, dry_run=True) == 10
    assert col.count() == 60
    assert col.delete(where=F.price >= 50) == 10
    assert col.delete([0, 999]) == 1
    assert col.delete(ids=1, dry_run=True) == 1
    assert col.count() == 49
    assert 0 not in col.query(X[0], k=60).ids


def test_count_facet_and_scan(col):
    assert col.count(F.color.isin(["red", "blue"])) == 40
    counts = col.facet("color", where=F.price < 30)
    assert {each.value: each.count for each in counts} == {"red": 10, "green": 10, "blue": 10}
    assert sorted(point.id for point in col.scan(page=7)) == list(range(60))
    assert len(list(col.scan(limit=10, page=4))) == 10
    scanned = list(col.scan(F.price < 3, select=["price"], with_=["vectors"]))
    assert sorted(point["price"] for point in scanned) == [0, 1, 2]
    assert scanned[0].vectors["vector"].shape == (DIM,)


def test_optimize_is_a_job(nf, col):
    job = col.optimize(queries=X[:10], timeout=60)

    assert job.state == "done"
    assert job.id in [each.id for each in nf.jobs()]
    assert nf.job(job.id).finished
    assert all(segment["state"] == "indexed" for segment in col.describe()["segments"])
    assert col.query(X[5], k=1).ids.tolist() == [5]
    assert isinstance(col.quality(), dict)


def test_optimize_takes_a_workload(nf, col):
    workload = {"filters": [F.price < 20, {"color": "red"}, None], "vectors": X[:3], "least_gain": 0.0}
    job = col.optimize(workload=workload, timeout=60)

    assert job.state == "done"
    assert job.result == {"workload_ignored": "2 filters, 200 wanted"}
    logged = col.quality()["workload"]
    assert logged["logged"] == 2
    assert {each["template"] for each in logged["templates"]} == {"range price", "eq color"}
    with pytest.raises(nearfield.InvalidRequest) as caught:
        col.optimize(workload={"filters": [{"color": {"nope": 1}}]})
    assert caught.value.field == "workload.filters[0].color.nope"


@pytest.fixture
def priced(nf, name):
    col = nf.create(name, dim=DIM, metric="l2")
    attributes = {"color": COLORS, "price": PRICES}
    col.upsert(np.arange(60), X, attributes=attributes, text=[f"price {price}" for price in PRICES])
    return col


def test_search_under_a_scorer(priced):
    hits = priced.query(X[0], k=3, rerank={"scorer": "near", "query": "near 17", "budget": 60}, explain=True)
    assert hits.ids.tolist() == [17, 16, 18]
    np.testing.assert_allclose(hits.scores, [-0.1, -0.9, -1.1])
    assert hits[0].base_score == pytest.approx(-float(np.linalg.norm(X[0] - X[17])), rel=1e-5)
    told = hits.meta["rerank"]
    assert (told["calls"] + told["cached"], told["partial"], told["method"]) == (60, False, "axn")
    assert len(told["per_round"]) == told["rounds"] == 5
    red = {"scorer": "near", "query": ["near 17", "near 40"], "budget": 20}
    many = priced.query(X[:2], k=2, where=F.color == "red", rerank=red)
    assert many.ids.tolist() == [[18, 15], [39, 42]]
    assert priced.query(X[0], k=1)[0].base_score is None
    with pytest.raises(nearfield.NotFound):
        priced.query(X[0], rerank={"scorer": "far", "query": "near 1"})


def test_a_reranker_from_start_to_end(priced):
    given = {"texts": [f"near {n}" for n in range(0, 60, 5)], "anchors": X[:12]}
    assert priced.reranker_cost("r", "near", **given)["calls_left"] == 720
    assert priced.fit_reranker("r", "near", **given, timeout=60).state == "done"
    state = priced.reranker("r")
    assert (state["ready"], state["scored"], state["calls_left"]) == (True, 60, 0)
    assert [each["name"] for each in priced.rerankers()] == ["r"]
    hits = priced.query(X[0], k=3, rerank={"reranker": "r", "query": "near 33", "budget": 30})
    assert hits.ids.tolist() == [33, 32, 34]
    pairs = list(priced.pairs())
    assert len(pairs) == 30
    assert {pair["query"] for pair in pairs} == {"near 33"}
    assert len(list(priced.pairs(reranker="r", page=100))) == 720
    assert priced.drop_reranker("r")
    assert priced.rerankers() == []


def test_alter_adds(col):
    col.alter(vectors={"second": {"dim": 2, "metric": "dot"}}, attributes={"size": "integer"})

    assert set(col.describe()["vectors"]) == {"vector", "second"}


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (nearfield.InvalidRequest, lambda col: col.query(np.ones(DIM + 1))),
        (nearfield.InvalidRequest, lambda col: col.query(np.ones(DIM), k=0)),
        (nearfield.InvalidRequest, lambda col: col.query(np.zeros(DIM))),
        (nearfield.InvalidRequest, lambda col: col.query(np.full(DIM, np.nan))),
        (nearfield.InvalidRequest, lambda col: col.query()),
        (nearfield.InvalidRequest, lambda col: col.query(np.ones(DIM), field="other")),
        (nearfield.InvalidRequest, lambda col: col.query(np.ones(DIM), where={"a": {"like": "x"}})),
        (nearfield.InvalidRequest, lambda col: col.query(np.ones(DIM), where={}, wheres=[{}])),
        (nearfield.InvalidRequest, lambda col: col.query(np.ones((2, DIM)), wheres=[{}])),
        (nearfield.InvalidRequest, lambda col: col.upsert([1.5], X[:1])),
        (nearfield.InvalidRequest, lambda col: col.upsert([""], X[:1])),
        (nearfield.InvalidRequest, lambda col: col.upsert([1, 2], X[:1])),
        (nearfield.InvalidRequest, lambda col: col.upsert([1], X[:1, :3])),
        (nearfield.InvalidRequest, lambda col: col.delete()),
        (nearfield.InvalidRequest, lambda col: col.patch(set={"a": 1})),
        (nearfield.NotFound, lambda col: col.client.job("no-such-job")),
        (nearfield.NotFound, lambda col: col.client.collection("missing").describe()),
    ],
)
def test_mistakes_raise_the_same_errors_everywhere(col, kind, wrong):
    with pytest.raises(kind) as caught:
        wrong(col)
    assert caught.value.detail
    assert caught.value.code


def test_a_large_write_is_cut_up_and_told(nf, name):
    col = nf.create(name, dim=2, metric="l2")
    told: list[tuple[float, float]] = []
    angles = np.linspace(0, 1, 25_000)
    result = col.upsert(
        np.arange(25_000), np.c_[angles, angles], progress=lambda done, total: told.append((done, total))
    )

    assert result.upserted == 25_000
    assert len(told) >= 3
    assert told[-1] == (25_000, 25_000)
    assert col.count() == 25_000
    assert col.describe()["sequence"] == result.sequence


def test_in_a_large_write_the_last_of_an_id_wins(nf, name):
    col = nf.create(name, dim=2, metric="l2")
    keys = list(range(6000)) * 2
    result = col.upsert(keys, np.repeat([[1.0, 0.0], [0.0, 1.0]], 6000, axis=0), progress=False)

    assert result.upserted == 6000
    assert col.count() == 6000
    np.testing.assert_array_equal([0, 1], col.get([17], with_=["vectors"])[0].vectors["vector"])


def test_a_large_write_that_fails_says_how_far_it_came(nf, name):
    col = nf.create(name, dim=2, metric="l2")
    bad = np.ones((25_000, 2))
    bad[24_999] = np.nan

    with pytest.raises(nearfield.InvalidRequest) as caught:
        col.upsert(np.arange(25_000), bad)
    assert "of 25,000 points were acknowledged" in caught.value.__notes__[0]
    assert col.count() < 25_000


def test_many_ids_and_queries_are_cut_up_and_joined(nf, name):
    col = nf.create(name, dim=2, metric="l2")
    angles = np.linspace(0, 1, 25_000)
    Q = np.c_[angles, angles].astype(np.float32)
    col.upsert(np.arange(25_000), Q, progress=False)
    twice = [*range(24_999, -1, -1), *range(25_000), 10**9]

    assert [point.id for point in col.get(twice, select=False)] == list(range(24_999, -1, -1))
    many = col.query(Q, k=1, select=False, exact=True, explain=True)
    assert many.ids[:, 0].tolist() == list(range(25_000))
    assert many.meta["sequence"] == col.describe()["sequence"]
    assert many.meta["recall"] == {"target": 1.0, "estimate": 1.0}
    assert sum(plan["queries"] for plan in many.plans) == 25_000
    by_id = col.query(ids=list(range(12_000)), k=1, wheres=[ids(n + 1) for n in range(12_000)], select=False)
    assert by_id.ids[:, 0].tolist() == list(range(1, 12_001))
    assert col.patch(ids=twice, set={"a": 1}) == col.count(F.a == 1) == 25_000
    assert col.delete(twice, dry_run=True) == 25_000
    assert col.delete(twice[:30_000]) == 25_000
    assert col.count() == 0


def test_what_fails_within_many_is_placed_in_the_whole(nf, name):
    col = nf.create(name, dim=2, metric="l2")
    col.upsert(np.arange(25_000), np.ones((25_000, 2)), progress=False)
    Q = np.ones((12_000, 2), np.float32)
    Q[11_000, 1] = np.nan

    with pytest.raises(nearfield.InvalidRequest) as caught:
        col.delete([0, 0, *range(1, 21_000), ""])
    assert caught.value.field == "ids[21001]"
    assert caught.value.__notes__ == ["20,000 of 21,001 ids are done and stay so; the same call again is safe"]
    assert col.count() == 5_000
    with pytest.raises(nearfield.InvalidRequest, match=r"^vector 11000 has"):
        col.query(Q, k=1)
    with pytest.raises(nearfield.InvalidRequest) as caught:
        col.query(np.ones((12_000, 2)), k=1, wheres=[*[{}] * 11_000, {"a": {"like": 1}}, *[{}] * 999])
    assert caught.value.field.startswith("wheres[11000]")
    with pytest.raises(nearfield.InvalidRequest, match="12000 filters"):
        col.query(np.ones((12_000, 2)), k=1, wheres=[{}] * 24_000)


def test_a_server_with_smaller_limits_gets_smaller_pieces(start_server, name):
    limits = {"max_points": 100, "max_queries": 7, "max_body_bytes": 20_000, "max_query_cost": 3_000}
    with nearfield.connect(start_server(limits=limits)) as nf:
        col = nf.create(name, dim=64, metric="dot")
        Q = np.eye(64, dtype=np.float32)
        col.upsert([f"{n:0200}" for n in range(64)], Q)
        many = col.query(Q, k=2, recall=1.0)
        assert [hits.ids[0] for hits in many] == [f"{n:0200}" for n in range(64)]
        assert col.delete([f"{n:0200}" for n in range(250)]) == 64
        with pytest.raises(nearfield.TooLarge):
            col.query(Q, k=1_000)


@pytest.mark.parametrize(
    ("field", "text", "wrong"),
    [
        ("where", "ids= or where=", lambda col: col.delete()),
        ("where", "ids= or where=", lambda col: col.delete([1], where={})),
        ("where", "ids= or where=", lambda col: col.patch(set={"a": 1})),
        ("ids", "where=", lambda col: col.delete(F.price > 1)),
        ("ids", "where=", lambda col: col.delete({"price": 1})),
        ("where", "wheres=", lambda col: col.query(X[:2], where=[F.a == 1, F.b == 1])),
        ("where", "&", lambda col: col.count([F.a == 1])),
        ("where.a.like", "", lambda col: col.count({"a": {"like": "x"}})),
        ("wheres[1].a.like", "", lambda col: col.query(X[:2], wheres=[{}, {"a": {"like": "x"}}])),
        ("q", "", lambda col: col.query()),
        ("q", "", lambda col: col.query(np.ones(DIM + 1))),
        ("q", "vector 1 ", lambda col: col.query([[1] * DIM, [0] * DIM])),
        ("vectors", "", lambda col: col.upsert([1], X[:1, :3])),
        ("metric", "", lambda col: col.client.create("bad", dim=3, metric="nope")),
        ("with_", "", lambda col: col.get([1], with_=["nothing"])),
        ("field", "fit_hubness()", lambda col: col.hubness()),
        (
            "rerank.method",
            "fit_reranker()",
            lambda col: col.query(X[0], rerank={"scorer": "near", "query": "0", "method": "joint"}),
        ),
    ],
)
def test_errors_speak_of_arguments_and_methods(col, field, text, wrong):
    with pytest.raises(nearfield.Error) as caught:
        wrong(col)
    assert caught.value.field == field
    assert text in str(caught.value)
    assert not {"filter", "filters", "with"} & set(str(caught.value).split("'"))


def test_keys_and_small_limits_of_a_server(start_server, name):
    url = start_server(api_keys=["a-secret-key"], limits={"max_points": 500, "max_body_bytes": 300_000})
    with nearfield.connect(url) as nf, pytest.raises(nearfield.Unauthorized, match="api_key"):
        nf.collections()
    with nearfield.connect(url, api_key="a-secret-key") as nf:
        col = nf.create(name, dim=4)
        # the sample that guesses the size misses the heavy rows, so bodies are refused and halved
        notes = ["x" * 3000 if 200 <= n < 400 else "" for n in range(1200)]
        assert col.upsert(np.arange(1200), np.ones((1200, 4)), attributes={"note": notes}).upserted == 1200
        assert col.count() == 1200


def test_a_closed_embedded_client_says_so_and_frees_the_directory(engine_dir):
    nf = nearfield.open(engine_dir)
    with pytest.raises(nearfield.Locked):
        nearfield.open(engine_dir)
    nf.close()
    nf.close()
    with pytest.raises(nearfield.InvalidRequest, match="closed"):
        nf.collections()
    nearfield.open(engine_dir).close()


@pytest.mark.parametrize("where", ["server_url", "engine_dir"])
def test_an_awaited_client_is_awaited_or_entered(request, where):
    address = request.getfixturevalue(where)
    make = aio.connect if where == "server_url" else aio.open

    async def use() -> None:
        async with make(address) as nf:
            assert (await nf.info())["name"] == "nearfield"
        with pytest.raises(nearfield.InvalidRequest, match="closed"):
            await nf.info()
        nf = await make(address)
        async with nf as same, asyncio.timeout(60):
            assert same is nf
        async with await make(address) as nf:
            await nf.collections()

    asyncio.run(use())
    asyncio.run(asyncio.run(_made(make, address)).close())


async def _made(make: Any, address: Any) -> Any:
    return await asyncio.create_task(make(address))


def test_hubness_is_fitted_reported_used_rotated_and_dropped(nf, col):
    bank = (RNG.standard_normal((64, DIM)) + 1).astype(np.float32)
    job = col.fit_hubness(bank, method="is", pairs=(X[:20], np.arange(20)), gallery_sample=50)
    assert (job.kind, job.state) == ("hubness", "done")
    report = col.hubness()
    assert report["method"] == "is"
    assert report["fields"]["vector"]["version"] == report["version"]
    assert set(report["occurrence"]) == {"before", "after"}
    hit = col.query(X[3], k=1, hubness="on")[0]
    assert hit.score == pytest.approx(hit.raw_score - hit.bias)
    plain = col.query(X[3], k=1, hubness="off")[0]
    assert (plain.raw_score, plain.bias) == (None, None)
    with pytest.raises(nearfield.InvalidRequest):
        col.query(X[3], hubness="on", hubness_strength=0.5)
    assert col.rotate_hubness(RNG.standard_normal((4, DIM))).state == "done"
    assert col.hubness()["version"] != report["version"]
    assert col.quality()["hubness"]["vector"]["method"] == "is"
    assert col.release([1, 2]) == 0
    assert col.drop_hubness()
    with pytest.raises(nearfield.NotFound):
        col.hubness()
    with pytest.raises(nearfield.InvalidRequest):
        col.query(X[3], hubness="on")


def test_hubness_refusals(col):
    with pytest.raises(nearfield.InvalidRequest, match="bank"):
        col.fit_hubness()
    with pytest.raises(nearfield.InvalidRequest, match="pairs"):
        col.fit_hubness(X, pairs=X)
    with pytest.raises(nearfield.InvalidRequest) as refused:
        col.fit_hubness(X, method="magic")
    assert refused.value.field == "method"
    with pytest.raises(nearfield.Conflict) as early:
        col.fit_hubness(log=500)
    assert early.value.code == "not_enough_queries"


def test_new_hubs_are_kept_from_results_until_released(col):
    bank = (RNG.standard_normal((300, DIM)) + 1).astype(np.float32)
    col.fit_hubness(bank, method="is", quarantine=True)
    col.upsert(["hub"], np.ones((1, DIM), np.float32))
    (alert,) = [each for each in col.quality()["hub_alerts"] if each["id"] == "hub"]
    assert alert["quarantined"]
    assert alert["hub_score"] > alert["threshold"]
    assert "hub" not in col.query(np.ones(DIM), k=5, hubness="off").ids.tolist()
    assert col.release(["hub"]) == 1
    assert col.query(np.ones(DIM), k=5, hubness="off").ids[0] == "hub"
