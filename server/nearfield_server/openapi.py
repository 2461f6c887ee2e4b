"""The OpenAPI document, made of what each route states of itself and the SDK's models of the wire."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from nearfield import wire
from nearfield_server.contract import ScopedRoute

REFERENCE = "#/components/schemas/{model}"
DESCRIPTION = """Collections of points with vectors and attributes, searched by similarity and filtered.

Vectors are JSON numbers, base64 blocks, or raw blocks of a binary body (`application/x-nearfield-frame`).
Errors are `application/problem+json` with a stable `code`.
"""


def document(routes: Iterable[BaseRoute], version: str, *, secured: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of ``routes``; ``secured`` says whether keys are asked for."""
    listed = [route for route in routes if isinstance(route, ScopedRoute)]
    made = get_openapi(title="Nearfield", version=version, description=DESCRIPTION, routes=listed)
    _, schemas = models_json_schema([(model, "validation") for model in _models()], ref_template=REFERENCE)
    components = made.setdefault("components", {})
    components["schemas"] = schemas.get("$defs", {})
    if secured:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "api-key"},
            "xApiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        made["security"] = [{"bearer": []}, {"apiKey": []}, {"xApiKey": []}]
    return made


def _models() -> list[type[BaseModel]]:
    """Every request and reply of the wire; routes refer to them by name."""
    bases = (BaseModel, wire.Request, wire.Reply)
    classes = [each for each in vars(wire).values() if isinstance(each, type) and issubclass(each, BaseModel)]
    return [model for model in classes if model not in bases]
