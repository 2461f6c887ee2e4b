"""The one suite over our GPU backends, on a GPU."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from conformance import (  # noqa: F401
    asked,
    build,
    case,
    metric,
    test_a_full_bitmap_is_no_filter,
    test_a_thousand_copies_of_one_vector,
    test_an_empty_bitmap_gives_nothing,
    test_duplicates_are_all_found,
    test_finds_the_nearest_at_high_effort,
    test_k_up_to_and_past_the_rows_there_are,
    test_never_leaves_the_bitmap,
    test_opened_again_it_answers_the_same,
    test_scores_are_the_inner_products_best_first,
    test_the_matrix_is_mapped_once_and_shared,
    test_tiny_inputs,
)
from nearfield_index.backends.gpu import library as seam
from nearfield_index.backends.gpu.device import Device
from onboard import NUMBER

WHY = seam.problem(seam.installed(), NUMBER)
if WHY is not None:
    pytest.skip(f"NO BACKEND IS TESTED ON A GPU HERE: {WHY}", allow_module_level=True)

pytestmark = pytest.mark.gpu

HAS_TORCH = find_spec("torch") is not None
KINDS = ["gpu-flat", "gpu-flat16", "gpu-ivf", "gpu-ivfpq", "cagra", *(["gpu-gather"] if HAS_TORCH else [])]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, device: Device) -> str:
    chosen: str = request.param
    return chosen


@pytest.mark.skipif(not HAS_TORCH, reason="gpu-gather is NOT tested on this GPU: PyTorch is not installed")
def test_gathered_search_is_among_what_is_tested() -> None:
    assert "gpu-gather" in KINDS
