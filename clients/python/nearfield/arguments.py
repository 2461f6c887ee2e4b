"""What a refused request is called in Python: the wire's names become those of the SDK's arguments and methods."""

from __future__ import annotations

import re

from nearfield.errors import Error
from nearfield.operations import ROUTES

_EVERYWHERE = {"filter": "where", "filters": "wheres", "with": "with_"}
_OF_CALL: dict[str, dict[str, str]] = {
    "query": {"vector": "q", "vectors": "q"},
    "write_points": {"vectors.vector": "vectors"},
    "fit_hubness": {
        "bank.vectors": "bank",
        "bank.log": "log",
        "pairs.vectors": "pairs",
        "pairs.ids": "pairs",
        "gallery_bank.sample": "gallery_sample",
        "gallery_bank": "gallery_sample",
    },
    "rotate_hubness": {"vectors": "queries"},
    "put_reranker": {
        "anchors.texts": "texts",
        "anchors.vectors": "anchors",
        "anchors.log": "log",
        "anchors.count": "count",
    },
}
_METHODS = {"put_reranker": "fit_reranker", "get_reranker": "reranker", "list_rerankers": "rerankers"}
_BY_ROUTE = {
    (verb, path.removeprefix("/v1/collections/{}").replace("{}", "{name}")): _METHODS.get(call, call)
    for call, (verb, path) in ROUTES.items()
    if path.startswith("/v1/collections/{}/")
}
_ROUTE = re.compile(r"\b([A-Z]+) \.\.\.(/[a-z/]+(?:\{name\})?)")
_QUOTED = re.compile("'(" + "|".join(_EVERYWHERE) + ")'")
_OTHER_WORDS = {
    "unauthenticated": (
        "the server wants an API key",
        "give connect() an api_key (the command line: --api-key or NEARFIELD_API_KEY)",
    )
}


def named(failure: Error, call: str) -> Error:
    """Return the failure of an engine's or server's ``call``, told in the names of the SDK."""
    detail, hint = _OTHER_WORDS.get(failure.code, (failure.detail, failure.hint))
    failure.detail = _told(detail)
    failure.hint = None if hint is None else _told(hint)
    failure.args = (failure.detail,)
    if failure.field is not None:
        failure.field = _argument(failure.field.removeprefix("body."), call)
    return failure


def _told(text: str) -> str:
    text = _QUOTED.sub(lambda found: f"'{_EVERYWHERE[found[1]]}'", text)
    return _ROUTE.sub(lambda found: _method(found[1], found[2]) or found[0], text)


def _method(verb: str, path: str) -> str | None:
    name = _BY_ROUTE.get((verb, path))
    return None if name is None else f"{name}()"


def _argument(field: str, call: str) -> str:
    for name, ours in (*_OF_CALL.get(call, {}).items(), *_EVERYWHERE.items()):
        if field == name or field.startswith((f"{name}.", f"{name}[")):
            return ours + field[len(name) :]
    return field
