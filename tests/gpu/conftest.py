"""Tests that need a GPU and the FAISS that can use it (``nearfield[server-gpu]``); skipped loudly without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nearfield_index.backends.gpu.device import Device, open_device
from nearfield_index.backends.gpu.setting import DeviceOptions
from onboard import NUMBER


@pytest.fixture(scope="session")
def device() -> Iterator[Device]:
    made = open_device(DeviceOptions(device=f"cuda:{NUMBER}"))
    assert made is not None
    yield made
    made.release()
