"""The retry generator, driven by hand: no network, no clock but ours."""

from datetime import UTC, datetime

import pytest

from nearfield.errors import ConnectionFailed, Error, from_problem
from nearfield.retry import Policy, Send, Sleep, parse_retry_after, steps

REPLY = {"count": 1}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def drive(outcomes, *, idempotent=True, policy=None, jitter=0.5):
    """Return what the generator did: the waits between attempts, and its result or Error."""
    clock = Clock()
    flow = steps(idempotent=idempotent, policy=policy, clock=clock, jitter=lambda: jitter)
    waits, told = [], None
    remaining = iter(outcomes)
    try:
        while True:
            step = flow.send(told)
            if isinstance(step, Sleep):
                waits.append(step.seconds)
                clock.now += step.seconds
                told = None
            else:
                assert isinstance(step, Send)
                told = next(remaining)
    except StopIteration as finished:
        return waits, finished.value
    except Error as failure:
        return waits, failure


def failed(status, retry_after=None, code=None):
    return from_problem(status, {"code": code} if code else None, retry_after)


def test_a_reply_ends_it():
    assert drive([REPLY]) == ([], REPLY)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_statuses_that_ask_for_patience_are_retried(status):
    waits, result = drive([failed(status), failed(status), REPLY])

    assert waits == [0.05, 0.1]
    assert result == REPLY


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 422, 500, 501, 507])
def test_other_statuses_are_final(status):
    waits, result = drive([failed(status), REPLY])

    assert waits == []
    assert result.status == status


@pytest.mark.parametrize("code", ["read_only", "storage_failed"])
def test_a_503_that_only_an_operator_can_mend_is_final(code):
    assert drive([failed(503, code=code), REPLY])[0] == []


def test_what_may_have_happened_is_not_repeated_unless_harmless():
    broken = ConnectionFailed("the connection broke")
    assert drive([broken, REPLY], idempotent=False) == ([], broken)
    assert drive([failed(503), REPLY], idempotent=False)[0] == []
    assert drive([broken, REPLY])[1] == REPLY


def test_what_surely_did_not_happen_is_repeated():
    assert drive([ConnectionFailed("refused", sent=False), REPLY], idempotent=False)[1] == REPLY
    assert drive([failed(429), REPLY], idempotent=False)[1] == REPLY
    assert drive([failed(503, code="busy"), REPLY], idempotent=False)[1] == REPLY


def test_a_read_that_timed_out_is_not_repeated():
    assert drive([ConnectionFailed("slow", code="timeout"), REPLY])[0] == []


def test_retry_after_is_honoured():
    assert drive([failed(429, retry_after=7.0), REPLY])[0] == [7.0]


def test_a_wait_past_the_deadline_is_not_begun():
    waits, result = drive([failed(503, retry_after=30.0), REPLY], policy=Policy(deadline_s=20.0))

    assert waits == []
    assert result.status == 503


def test_attempts_are_bounded_and_waits_capped():
    policy = Policy(max_attempts=9, first_wait_s=1.0, longest_wait_s=4.0)
    waits, result = drive([failed(503)] * 9, policy=policy, jitter=1.0)

    assert waits == [1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0]
    assert result.status == 503


def test_jitter_is_full():
    assert drive([failed(503), REPLY], jitter=0.0)[0] == [0.0]


@pytest.mark.parametrize(
    ("seconds", "header"),
    [
        (None, None),
        (3.0, "3"),
        (0.0, "0"),
        (60.0, "Wed, 01 May 2024 12:01:00 GMT"),
        (None, "soon"),
        (None, "-1"),
        (None, "inf"),
        (None, "nan"),
    ],
)
def test_retry_after_header(seconds, header):
    assert seconds == parse_retry_after(header, datetime(2024, 5, 1, 12, tzinfo=UTC))
