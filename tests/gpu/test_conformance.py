"""The one suite over our GPU backends, on a GPU."""

from __future__ import annotations

import pytest

from conformance import *  # noqa: F403
from nearfield_index.backends.gpu import library as seam
from nearfield_index.backends.gpu.device import Device
from onboard import HAS_TORCH, KINDS, NUMBER

WHY = seam.problem(seam.installed(), NUMBER)
if WHY is not None:
    pytest.skip(f"NO BACKEND IS TESTED ON A GPU HERE: {WHY}", allow_module_level=True)

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, device: Device) -> str:
    chosen: str = request.param
    return chosen


@pytest.mark.skipif(not HAS_TORCH, reason="gpu-gather is NOT tested on this GPU: PyTorch is not installed")
def test_gathered_search_is_among_what_is_tested() -> None:
    assert "gpu-gather" in KINDS
