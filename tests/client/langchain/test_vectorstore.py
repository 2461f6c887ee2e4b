"""LangChain's own suite for vector stores, over REST and embedded.

It wants pytest-asyncio in its automatic mode, so it runs on its own, where langchain-tests is installed:
``pytest tests/client/langchain -o asyncio_mode=auto -o asyncio_default_fixture_loop_scope=function``.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_tests", reason="pip install langchain-tests", exc_type=ImportError)
pytest.importorskip("pytest_asyncio", reason="pip install pytest-asyncio")

from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_tests.integration_tests import VectorStoreIntegrationTests

import nearfield
from nearfield import F
from nearfield.langchain import NearfieldVectorStore


class TestOverRest(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, server_url):
        with nearfield.connect(server_url) as nf:
            name = f"langchain-{uuid.uuid4().hex}"
            dim = len(self.get_embeddings().embed_query("x"))
            yield NearfieldVectorStore(nf.create(name, dim=dim), self.get_embeddings())
            nf.drop(name)


class TestEmbedded(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, engine_dir):
        with nearfield.open(engine_dir) as nf:
            dim = len(self.get_embeddings().embed_query("x"))
            yield NearfieldVectorStore(nf.create("documents", dim=dim), self.get_embeddings())


def test_what_the_suite_leaves_out(engine_dir):
    texts, prices = ["red shoes", "blue shoes", "a hat"], [10, 20, 30]
    with nearfield.open(engine_dir) as nf:
        store = NearfieldVectorStore.from_texts(
            texts, DeterministicFakeEmbedding(size=8), [{"price": price} for price in prices], client=nf
        )

        (best, score), *_ = store.similarity_search_with_score("a hat", k=3)
        assert best.page_content == "a hat"
        assert score == pytest.approx(1.0, abs=1e-5)
        assert [each.page_content for each in store.similarity_search("a hat", filter=F.price < 15)] == ["red shoes"]
        assert len(store.max_marginal_relevance_search("a hat", k=2)) == 2
        assert store.similarity_search_with_relevance_scores("a hat", k=1)[0][1] == pytest.approx(1.0, abs=1e-5)
        assert store.as_retriever(search_kwargs={"k": 1}).invoke("a hat")[0].metadata == {"price": 30}
        store.delete()
        assert store.similarity_search("a hat") == []


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[3] / "docs" / "migrating.md").read_text()
    example = page.partition("## LangChain")[2].partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    try:
        exec(example, names)
    finally:
        names["nf"].close()
    assert "{'price': 20}" in capsys.readouterr().out
