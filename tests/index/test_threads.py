"""Work in threads: in order, never more than is listened to, and errors where they are heard."""

from __future__ import annotations

import pytest

from nearfield_index.threads import in_threads


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order(threads: int) -> None:
    assert list(in_threads(lambda n: n * n, range(50), threads)) == [n * n for n in range(50)]
    assert list(in_threads(lambda n: n, [], threads)) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_is_raised_where_its_result_would_come(threads: int) -> None:
    found = in_threads(lambda n: 1 // (2 - n), range(10), threads)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)


@pytest.mark.parametrize("threads", [1, 3])
def test_whoever_stops_listening_stops_the_work(threads: int) -> None:
    done: list[int] = []
    found = in_threads(done.append, range(10_000), threads)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert len(done) <= 2 * threads
