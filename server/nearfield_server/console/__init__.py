"""The pages people look at; self-contained files that fetch nothing from elsewhere."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def docs_page() -> str:
    """The page at /docs, which draws /openapi.json."""
    return (files(__package__) / "docs.html").read_text(encoding="utf-8")
