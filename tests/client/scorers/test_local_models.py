"""Models in this process, on ONNX graphs so small that the right answer is worked out by hand. Needs the extra
``[rerank]`` and the package ``onnx`` to make the graphs; skipped without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nearfield
from nearfield.errors import InvalidRequest
from nearfield.scorers import make

onnxruntime = pytest.importorskip("onnxruntime", reason='pip install "nearfield[rerank]"')
tokenizers = pytest.importorskip("tokenizers", reason='pip install "nearfield[rerank]"')
onnx = pytest.importorskip("onnx", reason="the test's models are made with onnx")

WORDS = ["[PAD]", "[UNK]", "red", "blue", "shoes", "hat", "warm"]
WEIGHTS = np.array([0.0, 0.0, 1.0, -1.0, 3.0, 2.0, 0.5], np.float32)


def tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(path / "tokenizer.json"))


def graph(path: Path, nodes: list[Any], constants: dict[str, np.ndarray], shape: list[Any]) -> None:
    from onnx import TensorProto, helper, numpy_helper

    whole = ["n", "t"]
    made = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, whole) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path / "model.onnx"))


def total(*texts: str) -> float:
    return float(sum(WEIGHTS[WORDS.index(word)] for text in texts for word in text.split()))


@pytest.fixture
def cross_encoder(tmp_path: Path) -> Path:
    """Its logit is the sum of the weights of all words of the pair."""
    from onnx import helper

    tokenizer(tmp_path)
    nodes = [
        helper.make_node("Gather", ["weights", "input_ids"], ["each"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=1),
        helper.make_node("Mul", ["each", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["out"], keepdims=1),
    ]
    graph(tmp_path, nodes, {"weights": WEIGHTS, "axis": np.array([1])}, ["n", 1])
    return tmp_path


def test_a_cross_encoder_reads_pairs_of_any_length(cross_encoder):
    scorer = make("onnx", model=cross_encoder, threads=1)
    pairs = [("red shoes", "warm hat"), ("red", "blue"), ("hat", "red red red red warm shoes")]
    np.testing.assert_allclose(scorer.score(pairs, timeout_s=1), [total(*pair) for pair in pairs], rtol=1e-6)
    assert scorer.version.startswith("onnx:")


def test_it_serves_a_search(cross_encoder, tmp_path):
    texts = ["red hat", "blue shoes", "warm shoes", "blue hat", "shoes shoes"]
    with nearfield.open(tmp_path / "data", scorers={"x": make("onnx", model=cross_encoder)}) as nf:
        col = nf.create("c", dim=2)
        col.upsert(np.arange(5), np.random.default_rng(0).normal(size=(5, 2)), text=texts)
        hits = col.query([1, 0], k=5, rerank={"scorer": "x", "query": "red"})
        assert hits.ids.tolist() == sorted(range(5), key=lambda n: -total(texts[n]))


def test_late_interaction_is_the_mean_of_the_best_cosines(tmp_path):
    from onnx import helper

    tokenizer(tmp_path)
    table = np.random.default_rng(1).normal(size=(len(WORDS), 4)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["out"]),
        helper.make_node("Identity", ["attention_mask"], ["unused"]),
    ]
    graph(tmp_path, nodes, {"table": table}, ["n", "t", 4])
    scorer = make("late-interaction", model=tmp_path, threads=1, cache_bytes=100)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)

    def maxsim(query: str, text: str) -> float:
        q, t = (unit[[WORDS.index(word) for word in words.split()]] for words in (query, text))
        return float((q @ t.T).max(axis=1).mean())

    pairs = [("red shoes", "warm hat"), ("red", "blue shoes hat"), ("hat", "hat"), ("red shoes", "blue shoes hat")]
    for _ in range(2):
        np.testing.assert_allclose(scorer.score(pairs, timeout_s=1), [maxsim(*pair) for pair in pairs], rtol=1e-5)
    assert scorer._bytes <= 100


def test_a_directory_without_a_model_says_so(tmp_path):
    with pytest.raises(InvalidRequest, match=r"model\.onnx"):
        make("onnx", model=tmp_path)
