"""A cross-encoder through sentence-transformers, on a BERT so small that it is made here. Needs the extra
``[rerank-torch]``; skipped without it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import nearfield
from nearfield.errors import InvalidRequest
from nearfield.scorers import make

pytest.importorskip("sentence_transformers", reason='pip install "nearfield[rerank-torch]"')
torch = pytest.importorskip("torch", reason='pip install "nearfield[rerank-torch]"')
transformers = pytest.importorskip("transformers", reason='pip install "nearfield[rerank-torch]"')

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # theirs, of each other
    pytest.mark.timeout(300),
]

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "shoes", "hat", "warm"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    (path / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=1.0,
        num_labels=1,
    )
    transformers.BertForSequenceClassification(config).eval().save_pretrained(path)
    return path


def by_hand(model: Path, pairs: list[tuple[str, str]]) -> list[float]:
    """Each pair by itself, so without padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.no_grad():
        return [network(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in pairs]


def test_scores_are_its_raw_logits_for_pairs_of_any_length(model: Path) -> None:
    scorer = make("sentence-transformers", model=model, device="cpu")
    pairs = [("red shoes", "warm hat"), ("red", "blue"), ("hat", "red red red red warm shoes")]
    scores = scorer.score(pairs, timeout_s=10)
    assert all(isinstance(score, float) and math.isfinite(score) for score in scores)
    wanted = by_hand(model, pairs)
    assert max(wanted) - min(wanted) > 1e-3, "or the next line would show little"
    np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-5)
    assert scorer.score([], timeout_s=10) == []
    assert scorer.version == f"sentence-transformers:{model}"


def test_it_serves_a_search(model: Path, tmp_path: Path) -> None:
    texts = ["red hat", "blue shoes", "warm shoes", "blue hat", "shoes shoes"]
    scorer = make("sentence-transformers", model=model, device="cpu")
    with nearfield.open(tmp_path / "data", scorers={"x": scorer}) as nf:
        col = nf.create("c", dim=2)
        col.upsert(np.arange(5), np.random.default_rng(0).normal(size=(5, 2)), text=texts)
        hits = col.query([1, 0], k=5, rerank={"scorer": "x", "query": "red"})
    scores = by_hand(model, [("red", text) for text in texts])
    assert hits.ids.tolist() == np.argsort(-np.array(scores)).tolist()


def test_a_directory_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="model"):
        make("sentence-transformers", model=tmp_path, device="cpu")
