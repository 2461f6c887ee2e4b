"""A device that is a stand-in (``tests/standin.py``): our code on it is real, the GPU is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nearfield_index.backends.gpu.device import Device, open_device
from nearfield_index.backends.gpu.setting import DeviceOptions
from standin import StandIn, in_place


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    with in_place() as module:
        yield module


@pytest.fixture(scope="module")
def device(standin: StandIn) -> Iterator[Device]:
    made = open_device(DeviceOptions(device="cuda:0"))
    assert made is not None
    yield made
    made.release()
