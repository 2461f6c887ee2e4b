"""Nearfield's Python SDK.

    import nearfield
    from nearfield import F

    nf = nearfield.connect("http://localhost:7333")    # a server, or nearfield.open("./data") in this process
    col = nf.create("products", dim=3)
    col.upsert(["a", "b"], [[1, 0, 0], [0, 1, 0]], attributes={"price": [10, 20]})
    hits = col.query([1, 0, 0], k=1, where=F.price < 15)

``nearfield.aio`` has the same calls to await. Importing this loads neither the engine nor an HTTP library.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from nearfield.client import Client, Collection
from nearfield.errors import (
    Busy,
    Conflict,
    ConnectionFailed,
    Corrupt,
    DeadlineExceeded,
    Error,
    Forbidden,
    InvalidRequest,
    JobFailed,
    Locked,
    NotFound,
    OutOfSpace,
    ReadOnly,
    ScorerFailed,
    ServerFailed,
    StorageFailed,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from nearfield.filters import Expression, F, ids
from nearfield.results import FacetValue, Hit, Hits, Job, ManyHits, Point, ScanPage, UpsertResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nearfield import aio
    from nearfield.aio import AsyncClient, AsyncCollection

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "AsyncCollection",
    "Busy",
    "Client",
    "Collection",
    "Conflict",
    "ConnectionFailed",
    "Corrupt",
    "DeadlineExceeded",
    "Error",
    "Expression",
    "F",
    "FacetValue",
    "Forbidden",
    "Hit",
    "Hits",
    "InvalidRequest",
    "Job",
    "JobFailed",
    "Locked",
    "ManyHits",
    "NotFound",
    "OutOfSpace",
    "Point",
    "ReadOnly",
    "ScanPage",
    "ScorerFailed",
    "ServerFailed",
    "StorageFailed",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UpsertResult",
    "__version__",
    "aio",
    "connect",
    "ids",
    "open",
]


def connect(
    url: str,
    *,
    api_key: str | None = None,
    timeout: float = 60.0,
    connect_timeout: float = 5.0,
    retries: int = 4,
) -> Client:
    """Return a client of the server at ``url``. Nothing is sent yet.

    ``timeout`` and ``connect_timeout`` are seconds per attempt. Connection errors and answers that ask for
    patience (429, 502, 503, 504) are retried up to ``retries`` times where that is harmless.
    """
    from nearfield.http import HttpOptions, HttpTransport

    options = HttpOptions.of(url, api_key=api_key, timeout=timeout, connect_timeout=connect_timeout, retries=retries)
    return Client(HttpTransport(options))


def open(
    path: str | os.PathLike[str],
    *,
    scorers: Mapping[str, object] | None = None,
    device: str = "auto",
    device_memory_share: float = 0.8,
) -> Client:
    """Open (or create) the data directory ``path`` with the engine in this process.

    ``scorers`` are what ``query(rerank={"scorer": name, ..})`` may name: functions ``f(query, texts)`` that return one
    score a text, or objects as in ``nearfield.scorers``. ``device`` is ``auto`` (a GPU beside the CPU where FAISS can
    use one), ``cpu`` or ``cuda:N``, of whose memory ``device_memory_share`` is taken at most.
    The directory stays locked until the client is closed. Raises Locked if another process holds it, InvalidRequest if
    a device is named that is not there, and ImportError, naming the extra to install, without the engine.
    """
    from nearfield.local import LocalTransport

    return Client(LocalTransport(path, scorers, device=device, device_memory_share=device_memory_share))


def __getattr__(name: str) -> Any:
    """Load the awaited client (and with it asyncio) when it is first named."""
    if name in ("aio", "AsyncClient", "AsyncCollection"):
        import importlib

        module = importlib.import_module("nearfield.aio")
        return module if name == "aio" else getattr(module, name)
    raise AttributeError(f"module 'nearfield' has no attribute {name!r}")
