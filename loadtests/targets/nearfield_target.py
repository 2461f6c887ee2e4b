"""What the served and the embedded Nearfield share: everything past the connection, through the public SDK."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import nearfield
from loadtests.targets.base import Answer, Floats, Integers, Setting, Where
from loadtests.targets.process import Usage, usage_of

_COLLECTION = "loadtest"


class NearfieldTarget(ABC):
    """Nearfield behind any client; ``recall`` targets are swept, ``exact`` ends the sweep."""

    name: ClassVar[str] = "nearfield"
    durable: ClassVar[bool] = True
    settings: ClassVar[tuple[Setting, ...]] = (
        *({"recall": share} for share in (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)),
        {"exact": True},
    )
    usual: ClassVar[Setting] = {}
    thorough: ClassVar[Setting] = {"exact": True}

    def __init__(self) -> None:
        self._client: nearfield.Client | None = None
        self._directory = Path()

    def start(self, directory: Path, *, dim: int, metric: str) -> None:
        """Begin with the collection that lies in the directory, which is an empty one where nothing does."""
        self._directory = directory
        self._client = self.connect(directory)
        self._client.create(_COLLECTION, dim=dim, metric=metric)

    @abstractmethod
    def connect(self, directory: Path) -> nearfield.Client:
        """A client of a Nearfield whose data lie in this directory."""

    def load(
        self,
        ids: Integers,
        vectors: Floats,
        attributes: Mapping[str, NDArray[Any]],
        texts: Sequence[str] | None = None,
    ) -> None:
        self.collection.upsert(ids, vectors, attributes=dict(attributes) or None, text=texts, progress=False)

    def optimize(self, queries: Floats | None = None) -> None:
        sample = None if queries is None or not len(queries) else queries
        self.collection.optimize(sample, progress=False)

    def query(self, vector: Floats, k: int, setting: Setting, where: Where = None) -> Answer:
        hits = self.collection.query(vector, k, where=_filter(where), select=False, **setting)
        return Answer(padded(hits.ids, k), hits.meta.get("ms"))

    def query_batch(self, vectors: Floats, k: int, setting: Setting, where: Where = None) -> Integers:
        many = self.collection.query(vectors, k, where=_filter(where), select=False, **setting)
        return np.asarray(many.ids, dtype=np.int64)

    def ask(
        self,
        vectors: Floats,
        k: int,
        setting: Setting,
        *,
        where: Mapping[str, Any] | None = None,
        wheres: Sequence[Mapping[str, Any]] | None = None,
        explain: bool = False,
    ) -> Any:
        """The SDK's own answer to one query (d,) or many (m, d), under one filter of any form or one each."""
        return self.collection.query(vectors, k, where=where, wheres=wheres, select=False, explain=explain, **setting)

    def reopen(self) -> None:
        """Stop and start again over the same data: nothing is cached any more."""
        self.stop()
        self._client = self.connect(self._directory)

    def delete(self, ids: Integers) -> None:
        most = self.client.info()["limits"]["points"]
        for start in range(0, len(ids), most):
            self.collection.delete(ids=ids[start : start + most])

    def usage(self) -> Usage:
        return usage_of()

    def describe(self) -> dict[str, Any]:
        told = self.collection.describe()
        kept = ("index", "points", "tail", "bytes", "state")
        segments = [{key: each[key] for key in ("state", "kind", "points", "deleted")} for each in told["segments"]]
        return {key: told[key] for key in kept} | {"segments": segments}

    def ping(self) -> None:
        """The cheapest call there is."""
        self.client.info()

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def client(self) -> nearfield.Client:
        """The client. Raises RuntimeError before ``start``."""
        if self._client is None:
            raise RuntimeError("the target is not started")
        return self._client

    @property
    def collection(self) -> nearfield.Collection:
        return self.client.collection(_COLLECTION)


def _filter(where: Where) -> dict[str, Any] | None:
    return None if where is None else {where[0]: where[1]}


def padded(ids: Any, k: int) -> Integers:
    wide = np.full(k, -1, dtype=np.int64)
    wide[: len(ids)] = ids
    return wide
