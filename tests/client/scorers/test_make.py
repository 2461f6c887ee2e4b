"""Making scorers by kind."""

from __future__ import annotations

import sys

import pytest

from nearfield.errors import InvalidRequest
from nearfield.scorers import make


def test_unknown_kinds_and_addresses_are_refused():
    with pytest.raises(InvalidRequest, match="one of"):
        make("magic")
    with pytest.raises(InvalidRequest, match="http"):
        make("tei", url="file:///etc/passwd")


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [
        ("onnx", "onnxruntime", "rerank"),
        ("late-interaction", "onnxruntime", "rerank"),
        ("sentence-transformers", "sentence_transformers", "rerank-torch"),
    ],
)
def test_a_missing_package_names_its_extra(monkeypatch, kind, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("encoding", "onnx", "late", "torch"):
        monkeypatch.delitem(sys.modules, f"nearfield.scorers.{module}", raising=False)
    with pytest.raises(InvalidRequest) as caught:
        make(kind, model="m")
    assert caught.value.code == "extra_missing"
    assert f"nearfield[{extra}]" in str(caught.value)


def test_what_stands_in_for_missing_versions():
    scorer = make("tei", url="http://127.0.0.1:1/rerank")
    named = make("jina", url="http://127.0.0.1:1/rerank", model="m", version="7")
    assert scorer.version == "tei:http://127.0.0.1:1/rerank"
    assert named.version == "7"
    scorer.close()
    named.close()
