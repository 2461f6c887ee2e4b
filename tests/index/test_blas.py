"""One thread inside, as many as before outside, whoever else is inside at the time."""

from __future__ import annotations

import threading

import pytest

from nearfield_index import blas

if blas._FOUND is None:
    pytest.skip("numpy does not stand on OpenBLAS here", allow_module_level=True)

put, get = blas._FOUND


@pytest.fixture
def two_threads():
    before = int(get())
    put(2)
    yield
    put(before)


def test_one_thread_inside_and_the_usual_number_after(two_threads):
    with blas.one_thread():
        assert get() == 1
        with blas.one_thread():
            assert get() == 1
        assert get() == 1
    assert get() == 2
    with pytest.raises(ValueError, match="on purpose"), blas.one_thread():
        raise ValueError("on purpose")
    assert get() == 2


def test_threads_that_overlap_leave_the_usual_number_behind(two_threads):
    seen = []

    def work() -> None:
        for _ in range(200):
            with blas.one_thread():
                seen.append(int(get()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {1}
    assert get() == 2
