"""Tests that need a GPU and the FAISS that can use it (``nearfield[server-gpu]``); skipped loudly without."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from nearfield_index.backends.gpu import library as seam
from nearfield_index.backends.gpu.device import Device, open_device
from nearfield_index.backends.gpu.setting import DeviceOptions

NUMBER = int(os.environ.get("NEARFIELD_TEST_GPU", "0"))


@pytest.fixture(scope="session")
def device() -> Iterator[Device]:
    why = seam.problem(seam.installed(), NUMBER)
    if why is not None:
        pytest.skip(f"NOTHING IS TESTED ON A GPU HERE: {why}")
    made = open_device(DeviceOptions(device=f"cuda:{NUMBER}"))
    assert made is not None
    yield made
    made.release()
