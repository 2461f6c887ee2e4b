"""LangChain's vector store on a Nearfield collection (``pip install "nearfield[langchain]"``).

    store = NearfieldVectorStore.from_texts(texts, embedding, client=nearfield.connect("http://localhost:7333"))
    store.similarity_search("red shoes", k=4, filter=F.price < 50)

Documents are points: page content is the point's text, metadata its attributes.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from nearfield.client import Client, Collection
from nearfield.errors import InvalidRequest
from nearfield.operations import Where
from nearfield.results import Hit, Point

Scored = tuple[Document, float]


class NearfieldVectorStore(VectorStore):  # type: ignore[misc, unused-ignore]  # Any where it is missing
    """A collection and an embedding model. ``filter=`` takes whatever ``Collection.query(where=)`` takes.

    Scores are Nearfield's: higher is better, whatever the metric. The awaited methods await the embedding
    model and run the collection's calls in threads.
    """

    def __init__(self, collection: Collection, embedding: Embeddings) -> None:
        self._collection = collection
        self._embedding = embedding

    @property
    def embeddings(self) -> Embeddings:
        return self._embedding

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed and upsert texts; ids that are missing are made. Returns all ids, in order."""
        listed = list(texts)
        return self._write(listed, self._embedding.embed_documents(listed), metadatas, ids)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed and upsert texts; ids that are missing are made. Returns all ids, in order."""
        listed = list(texts)
        vectors = await self._embedding.aembed_documents(listed)
        return await asyncio.to_thread(self._write, listed, vectors, metadatas, ids)

    def delete(self, ids: list[str] | None = None, *, filter: Where = None, **kwargs: Any) -> bool:
        """Delete by id or filter, or everything where neither is given. Unknown ids are no error."""
        if ids is None and filter is None:
            filter = {}
        self._collection.delete(ids=ids, where=filter)
        return True

    async def adelete(self, ids: list[str] | None = None, *, filter: Where = None, **kwargs: Any) -> bool:
        """Delete by id or filter, or everything where neither is given. Unknown ids are no error."""
        return await asyncio.to_thread(self.delete, ids, filter=filter)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents of these ids; unknown ids are left out."""
        return [_document(point) for point in self._collection.get(list(ids), with_=["text"])]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents of these ids; unknown ids are left out."""
        return await asyncio.to_thread(self.get_by_ids, ids)

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the k documents nearest to the text ``query``."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the k documents nearest to the text ``query``."""
        return [document for document, _ in await self.asimilarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[Scored]:
        """Return the k nearest documents with their scores."""
        return self._search(self._embedding.embed_query(query), k, **kwargs)

    async def asimilarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[Scored]:
        """Return the k nearest documents with their scores."""
        vector = await self._embedding.aembed_query(query)
        return await asyncio.to_thread(self._search, vector, k, **kwargs)

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the k documents nearest to a vector."""
        return [document for document, _ in self._search(embedding, k, **kwargs)]

    async def asimilarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """Return the k documents nearest to a vector."""
        return await asyncio.to_thread(self.similarity_search_by_vector, embedding, k, **kwargs)

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Return k of the ``fetch_k`` nearest documents, near to ``query`` and unlike one another."""
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, **kwargs)

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Return k of the ``fetch_k`` nearest documents, near to ``query`` and unlike one another."""
        vector = await self._embedding.aembed_query(query)
        return await self.amax_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Return k of the ``fetch_k`` nearest documents, near to the vector and unlike one another."""
        hits = self._hits(embedding, fetch_k, with_=["text", "vectors"], **kwargs)
        vectors = [hit.vectors["vector"].tolist() for hit in hits]
        chosen = maximal_marginal_relevance(np.asarray(embedding, np.float32), vectors, lambda_mult, k)
        return [_document(hits[number]) for number in chosen]

    async def amax_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Return k of the ``fetch_k`` nearest documents, near to the vector and unlike one another."""
        return await asyncio.to_thread(
            self.max_marginal_relevance_search_by_vector, embedding, k, fetch_k, lambda_mult, **kwargs
        )

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        client: Client | None = None,
        collection: str = "langchain",
        metric: str = "cosine",
        **kwargs: Any,
    ) -> NearfieldVectorStore:
        """Create the collection where it is missing (its dimension from the model) and add the texts."""
        if client is None:
            raise InvalidRequest("from_texts needs client=", field="client", hint="nearfield.connect or nearfield.open")
        vectors = embedding.embed_documents(texts)
        dim = len(vectors[0]) if vectors else len(embedding.embed_query("dimension"))
        store = cls(client.create(collection, dim=dim, metric=metric), embedding)
        store._write(texts, vectors, metadatas, ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> NearfieldVectorStore:
        """Create the collection where it is missing and add the texts; arguments as for ``from_texts``."""
        return await asyncio.to_thread(cls.from_texts, texts, embedding, metadatas, ids=ids, **kwargs)

    def _write(
        self,
        texts: list[str],
        vectors: list[list[float]],
        metadatas: list[dict[str, Any]] | None,
        ids: Sequence[str | None] | None,
    ) -> list[str]:
        made = [given or uuid.uuid4().hex for given in ids or [None] * len(texts)]
        if texts:
            self._collection.upsert(made, vectors, attributes=metadatas, text=texts, progress=False)
        return made

    def _hits(self, vector: list[float], k: int, filter: Where = None, **options: Any) -> list[Hit]:
        return list(self._collection.query(vector, k, where=filter, **options))

    def _search(self, vector: list[float], k: int, filter: Where = None, **options: Any) -> list[Scored]:
        hits = self._hits(vector, k, filter, with_=["text"], **options)
        return [(_document(hit), hit.score) for hit in hits]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        metric = self._collection.describe()["vectors"]["vector"]["metric"]
        if metric == "cosine":
            return lambda score: (1.0 + score) / 2.0
        if metric == "l2":
            return lambda score: 1.0 / (1.0 - score)
        raise ValueError("a dot product has no relevance between 0 and 1; use the metric cosine")


def _document(point: Point) -> Document:
    return Document(page_content=point.text or "", metadata=point.attributes, id=str(point.id))
