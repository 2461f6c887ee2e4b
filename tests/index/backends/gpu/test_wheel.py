"""The names, settings and constructors we use exist in the FAISS that can use a GPU; none is needed to look."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from nearfield_index.backends.gpu import library as seam
from standin import StandIn

if not hasattr(faiss, "GpuIndexCagra"):
    pytest.skip("NOT compared with FAISS for GPUs: faiss-gpu-cuvs is not installed here", allow_module_level=True)

SETTINGS = {
    "GpuIndexFlatConfig": {"useFloat16": True},
    "GpuIndexIVFFlatConfig": {},
    "GpuIndexIVFPQConfig": {"interleavedLayout": True, "useFloat16LookupTables": True},
    "GpuIndexCagraConfig": {
        "graph_degree": 32,
        "intermediate_graph_degree": 64,
        "build_algo": faiss.graph_build_algo_NN_DESCENT,
        "guarantee_connectivity": True,
    },
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_configs_have_our_settings_and_ignore_filters_by_default(kind: str) -> None:
    assert getattr(faiss, kind)().use_cuvs is False
    made_with = seam.config(faiss, kind, 0, **SETTINGS[kind])
    assert made_with.use_cuvs is True
    for name, value in SETTINGS[kind].items():
        assert getattr(made_with, name) == value
    if hasattr(made_with, "flatConfig"):
        assert made_with.flatConfig.use_cuvs is True


def test_everything_the_stand_in_has_is_there() -> None:
    names = {name for name in dir(StandIn) if name[0].isupper() or name.startswith("graph_build")}
    assert names > {"GpuIndexFlat", "GpuIndexIVFFlat", "GpuIndexIVFPQ", "GpuIndexCagra", "StandardGpuResources"}
    assert {name for name in names if not hasattr(faiss, name)} == set()
    assert callable(faiss.bfKnn)
    assert callable(faiss.should_use_cuvs)


def test_search_parameters_take_our_settings() -> None:
    selector = faiss.IDSelectorBitmap(np.zeros(2, np.uint8))
    assert faiss.SearchParametersCagra(itopk_size=96, sel=selector).itopk_size == 96
    assert faiss.SearchParametersIVF(nprobe=7, sel=selector).nprobe == 7
    assert faiss.SearchParameters(sel=selector).sel is not None


def test_distance_parameters_take_our_settings() -> None:
    asked = faiss.GpuDistanceParams()
    assert asked.use_cuvs is False
    for name in ("device", "metric", "k", "dims", "numVectors", "numQueries", "vectors", "queries", "outDistances"):
        assert hasattr(asked, name)
    assert hasattr(asked, "outIndices")
    assert asked.queriesRowMajor
    assert asked.vectorsRowMajor


def test_constructors_take_our_arguments() -> None:
    """Without a GPU they fail inside, for want of one, not because an overload is missing."""
    if faiss.get_num_gpus():
        pytest.skip("there is a GPU: tests/gpu shows more")
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(1 << 20)
    metric = faiss.METRIC_INNER_PRODUCT
    for make in (
        lambda: faiss.GpuIndexFlat(resources, 8, metric, seam.config(faiss, "GpuIndexFlatConfig", 0)),
        lambda: faiss.GpuIndexIVFFlat(resources, 8, 4, metric, seam.config(faiss, "GpuIndexIVFFlatConfig", 0)),
        lambda: faiss.GpuIndexIVFPQ(resources, 8, 4, 1, 8, metric, seam.config(faiss, "GpuIndexIVFPQConfig", 0)),
        lambda: faiss.GpuIndexCagra(resources, 8, metric, seam.config(faiss, "GpuIndexCagraConfig", 0)),
    ):
        with pytest.raises(RuntimeError, match=r"getNumDevices|CUDA|device"):
            make()


def test_without_a_gpu_the_reason_says_so() -> None:
    if faiss.get_num_gpus():
        pytest.skip("there is a GPU")
    assert "sees no GPU" in str(seam.problem(faiss, 0))
