"""The one suite over our GPU backends on a STAND-IN made of CPU indexes: the adapters are tested here, not a GPU.

``tests/gpu`` runs the same suite on a GPU.
"""

from __future__ import annotations

import pytest

from conformance import *  # noqa: F403
from nearfield_index.backends.gpu.device import Device
from onboard import HAS_TORCH, KINDS


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, device: Device) -> str:
    chosen: str = request.param
    return chosen


@pytest.mark.skipif(not HAS_TORCH, reason="gpu-gather is NOT tested here: PyTorch is not installed")
def test_gathered_search_is_among_what_is_tested() -> None:
    assert "gpu-gather" in KINDS
