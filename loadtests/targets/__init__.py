"""What can be measured, by name. A peer is one new module here and one line in the table."""

from __future__ import annotations

from importlib import import_module

from loadtests.targets.base import Target

_TARGETS = {
    "nearfield-rest": "loadtests.targets.nearfield_rest:NearfieldRest",
    "nearfield-embedded": "loadtests.targets.nearfield_embedded:NearfieldEmbedded",
    "faiss": "loadtests.targets.faiss_hnsw:FaissHnsw",
}


def names() -> list[str]:
    """The targets that ``make`` knows."""
    return list(_TARGETS)


def make(name: str) -> Target:
    """Return a target, not yet started. Only its own module is imported. Raises ValueError for an unknown name."""
    if name not in _TARGETS:
        raise ValueError(f"there is no target {name!r}; known are {', '.join(_TARGETS)}")
    module, _, kind = _TARGETS[name].partition(":")
    target: Target = getattr(import_module(module), kind)()
    return target
