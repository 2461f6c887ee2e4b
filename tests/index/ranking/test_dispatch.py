"""One scorer asked by many at once: shared batches, paid repetitions, bounded waits."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nearfield_index.errors import Busy, InvalidRequest, ScorerFailed
from nearfield_index.ranking.dispatch import Dispatcher
from nearfield_index.ranking.scorer import as_scorer

Pair = tuple[str, str]
WAIT = 20


class Model:
    """Scores a pair by the length of its text; held back and spoilt on demand."""

    version = "1"

    def __init__(self, **limits: Any) -> None:
        self.limits = {"retry_wait_s": 0.0, **limits}
        self.batches: list[list[Pair]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Semaphore(0)
        self.spoil: Any = None

    def score(self, pairs: Sequence[Pair], *, timeout_s: float) -> Sequence[float]:
        self.batches.append(list(pairs))
        self.arrived.release()
        assert self.gate.wait(WAIT)
        values = [float(len(text)) for _, text in pairs]
        return values if self.spoil is None else self.spoil(len(self.batches), values)

    @property
    def sent(self) -> int:
        return sum(map(len, self.batches))


@pytest.fixture
def made():
    held = []

    def make(**limits: Any) -> tuple[Dispatcher, Model]:
        model = Model(**limits)
        held.append((Dispatcher("m", model), model))
        return held[-1]

    yield make
    for dispatcher, model in held:
        model.gate.set()
        dispatcher.close()


def pairs(query: str, count: int) -> list[Pair]:
    return [(query, f"{query} {'x' * n}") for n in range(count)]


def test_scores_come_in_order_and_are_kept(made):
    dispatcher, model = made(max_batch=4)
    ask = dispatcher.ask(pairs("q", 10), allowance=10)
    assert ask.wait(WAIT)
    np.testing.assert_array_equal(ask.scores, [len(t) for _, t in pairs("q", 10)])
    assert (ask.sent, ask.cached, model.sent) == (10, 0, 10)
    assert max(map(len, model.batches)) <= 4

    again = dispatcher.ask(pairs("q", 12), allowance=12)
    assert again.wait(WAIT)
    assert (again.sent, again.cached, model.sent) == (2, 10, 12)
    assert again.left == 10


def test_concurrent_queries_share_batches(made):
    dispatcher, model = made(max_batch=64, max_in_flight=1)
    model.gate.clear()
    first = dispatcher.ask(pairs("first", 1), allowance=1)
    assert model.arrived.acquire(timeout=WAIT)
    asks = [dispatcher.ask(pairs(f"q{n}", 8), allowance=8) for n in range(8)]
    model.gate.set()
    assert all(ask.wait(WAIT) for ask in [first, *asks])
    assert [len(batch) for batch in model.batches] == [1, 64]


def test_a_batch_of_one_query_where_the_endpoint_takes_no_other(made):
    dispatcher, model = made(max_batch=64, max_in_flight=1, one_query=True)
    model.gate.clear()
    asks = [dispatcher.ask(pairs(f"q{n}", 8), allowance=8) for n in range(4)]
    asks += [dispatcher.ask([(f"q{n}", "more") for n in range(4)], allowance=4)]
    model.gate.set()
    assert all(ask.wait(WAIT) for ask in asks)
    assert all(len({query for query, _ in batch}) == 1 for batch in model.batches)
    assert model.sent == 36


def test_a_pair_under_way_is_not_sent_twice(made):
    dispatcher, model = made(max_in_flight=1)
    model.gate.clear()
    asks = [dispatcher.ask(pairs("q", 5), allowance=5) for _ in range(3)]
    model.gate.set()
    assert all(ask.wait(WAIT) for ask in asks)
    assert model.sent == 5
    assert [ask.sent for ask in asks] == [5, 0, 0]
    assert [ask.cached for ask in asks] == [0, 5, 5]


def test_calls_in_flight_are_bounded(made):
    dispatcher, model = made(max_batch=1, max_in_flight=3)
    model.gate.clear()
    ask = dispatcher.ask(pairs("q", 9), allowance=9)
    for _ in range(3):
        assert model.arrived.acquire(timeout=WAIT)
    assert len(model.batches) == 3
    assert not model.arrived.acquire(blocking=False)
    model.gate.set()
    assert ask.wait(WAIT)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda values: [*values, 1.0],
        lambda values: values[:-1],
        lambda values: [float("nan")] * len(values),
        lambda values: [float("inf")] * len(values),
        lambda values: None,
        lambda values: "nonsense",
        lambda values: 1 / 0,
    ],
    ids=["long", "short", "nan", "infinite", "none", "text", "raises"],
)
def test_nonsense_is_tried_again_and_paid_for(made, wrong):
    dispatcher, model = made(retries=2)
    model.spoil = lambda call, values: wrong(values) if call == 1 else values
    ask = dispatcher.ask(pairs("q", 5), allowance=20)
    assert ask.wait(WAIT)
    assert np.isfinite(ask.scores).all()
    assert (ask.sent, ask.left, model.sent) == (10, 10, 10)

    model.spoil = lambda call, values: wrong(values)
    lost = dispatcher.ask(pairs("other", 3), allowance=20)
    assert lost.wait(WAIT)
    assert np.isnan(lost.scores).all()
    assert lost.gone
    assert lost.error
    assert lost.sent == 9


def test_never_more_is_sent_than_the_allowance(made):
    dispatcher, model = made(retries=5)
    model.spoil = lambda call, values: values[:-1]
    ask = dispatcher.ask(pairs("q", 5), allowance=8)
    assert ask.wait(WAIT)
    assert model.sent == ask.sent <= 8
    assert ask.left >= 0

    short = dispatcher.ask(pairs("new", 5), allowance=3)
    assert short.wait(WAIT)
    assert short.sent == 3


def test_one_bad_value_costs_one_pair(made):
    dispatcher, model = made(retries=1)
    model.spoil = lambda call, values: [float("nan") if value == 3.0 else value for value in values]
    ask = dispatcher.ask(pairs("q", 5), allowance=10)
    assert ask.wait(WAIT)
    assert np.isnan(ask.scores).tolist() == [False, True, False, False, False]
    assert model.sent == 6


def test_errors_that_another_try_cannot_mend_and_that_cost_nothing(made):
    dispatcher, model = made(retries=3)

    class Refused(Exception):
        retryable = False

    def refuse(call: int, values: Any) -> Any:
        raise Refused("no")

    model.spoil = refuse
    ask = dispatcher.ask(pairs("q", 2), allowance=10)
    assert ask.wait(WAIT)
    assert len(model.batches) == 1

    class NeverLeft(Exception):
        sent = False

    def unreachable(call: int, values: Any) -> Any:
        if call < 4:
            raise NeverLeft
        return values

    model.spoil = unreachable
    ask = dispatcher.ask(pairs("other", 2), allowance=2)
    assert ask.wait(WAIT)
    assert np.isfinite(ask.scores).all()
    assert ask.sent == 2


def test_waiting_is_bounded_and_what_nobody_waits_for_is_dropped(made):
    dispatcher, model = made(max_batch=2, max_in_flight=1, max_waiting=10)
    model.gate.clear()
    first = dispatcher.ask(pairs("first", 2), allowance=2)
    assert model.arrived.acquire(timeout=WAIT)
    slow = dispatcher.ask(pairs("q", 10), allowance=10)
    with pytest.raises(Busy):
        dispatcher.ask(pairs("late", 1), allowance=1)
    assert not slow.wait(0)
    dispatcher.abandon(slow)
    assert (slow.sent, slow.wait(0)) == (0, True)
    model.gate.set()
    assert first.wait(WAIT)
    after = dispatcher.ask(pairs("after", 1), allowance=1)
    assert after.wait(WAIT)
    assert model.sent == 3


def test_who_rides_along_is_never_paid_back(made):
    dispatcher, model = made(max_batch=1, max_in_flight=1)
    model.gate.clear()
    busy = dispatcher.ask(pairs("busy", 1), allowance=1)
    assert model.arrived.acquire(timeout=WAIT)
    payer, rider = (dispatcher.ask(pairs("q", 3), allowance=3) for _ in range(2))
    dispatcher.abandon(payer)
    dispatcher.abandon(rider)
    assert (payer.sent, rider.sent, rider.cached) == (3, 0, 3)
    model.gate.set()
    assert busy.wait(WAIT)


def test_queries_go_before_background_work(made):
    dispatcher, model = made(max_batch=2, max_in_flight=1)
    model.gate.clear()
    job = dispatcher.ask(pairs("job", 6), allowance=6, background=True)
    assert model.arrived.acquire(timeout=WAIT)
    query = dispatcher.ask(pairs("query", 2), allowance=2)
    model.gate.set()
    assert job.wait(WAIT)
    assert query.wait(WAIT)
    assert model.batches[1][0][0] == "query"


def test_the_cache_is_bounded_and_may_be_off(made):
    dispatcher, model = made(cache_entries=3)
    for _ in range(2):
        assert dispatcher.ask(pairs("q", 5), allowance=5).wait(WAIT)
    assert model.sent == 7  # the two oldest had left
    assert len(dispatcher._cache) == 3

    dispatcher, model = made(cache_entries=0)
    for _ in range(2):
        assert dispatcher.ask(pairs("q", 5), allowance=5).wait(WAIT)
    assert model.sent == 10


def test_another_version_is_asked_anew(made):
    dispatcher, model = made()
    assert dispatcher.ask(pairs("q", 3), allowance=3).wait(WAIT)
    model.version = "2"
    assert dispatcher.ask(pairs("q", 3), allowance=3).wait(WAIT)
    assert model.sent == 6


def test_closing_settles_everything(made):
    dispatcher, model = made(max_in_flight=1)
    model.gate.clear()
    ask = dispatcher.ask(pairs("q", 3), allowance=3)
    assert model.arrived.acquire(timeout=WAIT)
    dispatcher.close()
    assert ask.wait(0)
    assert np.isnan(ask.scores).all()
    with pytest.raises(ScorerFailed):
        dispatcher.ask(pairs("q", 1), allowance=1)


def test_many_threads_against_a_flaky_model(made):
    dispatcher, model = made(max_batch=7, max_in_flight=3, retries=4)
    model.spoil = lambda call, values: values[:-1] if call % 4 == 0 else values
    wrong = []

    def work(number: int) -> None:
        for turn in range(20):
            mine = pairs(f"q{(number + turn) % 5}", 9)
            with dispatcher.at_work():
                ask = dispatcher.ask(mine, allowance=100)
                if not ask.wait(WAIT):
                    wrong.append("late")
            known = np.isfinite(ask.scores)
            if not np.array_equal(ask.scores[known], np.array([len(t) for _, t in mine])[known]):
                wrong.append("mixed up")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_what_is_a_scorer():
    def count(query: str, texts: list[str]) -> list[float]:
        return [1.0] * len(texts)

    assert as_scorer(count).version == "count"
    assert as_scorer(Model()).version == "1"
    with pytest.raises(InvalidRequest):
        as_scorer(3)
    with pytest.raises(InvalidRequest, match="max_speed"):
        Dispatcher("m", Model(max_speed=3))
    with pytest.raises(InvalidRequest):
        Dispatcher("m", Model(max_batch=0))
