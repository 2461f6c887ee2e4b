"""The biases of a segment's vectors: a file of their own in its directory, and the normalised face they make.

They follow from vectors and fit, so they are no part of ``segment.json``: a file that is missing or damaged is computed
again. Its name says which fit it belongs to and holds its checksum.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearfield_index.backends.biased import biased
from nearfield_index.backends.space import Biaser, ItemBiases
from nearfield_index.segments.aside import Arrays, files, keep, kept
from nearfield_index.segments.fitcodes import codes_of
from nearfield_index.segments.normal import NormalField
from nearfield_index.segments.part import FieldPart
from nearfield_index.segments.segment import Segment

_ARRAYS = ("bias", "active", "hub", "blocks")


def with_fit(segment: Segment, name: str, fit: Biaser, known: ItemBiases | None = None) -> Segment:
    """The segment with the normalised face of field ``name``; ``known`` biases are kept, others read or computed."""
    raw = segment.fields.get(name)
    if raw is None:
        return segment
    items = load(segment, name, fit.version) if known is None else known
    if items is None:
        items = fit.of(raw.matrix)
        save(segment, name, fit.version, items)
    elif known is not None:
        save(segment, name, fit.version, items)
    return segment.with_normals({name: face(segment, name, fit, items)})


def is_fitted(segment: Segment, name: str, fit: Biaser) -> bool:
    """Whether the segment has the normalised face of this very fit."""
    raw = segment.fields.get(name)
    return raw is not None and isinstance(raw.normal, NormalField) and raw.normal.version == fit.version


def face(segment: Segment, name: str, fit: Biaser, items: ItemBiases) -> FieldPart:
    """The normalised face of a field with these biases, over the graph and the lists that are there, or over codes
    which are made where there are none yet."""
    raw = segment.fields[name]
    searchers = None
    if raw.backend is not None and raw.clusters is not None:
        graph, vectors = segment.directory / f"graph-{name}", segment.directory / f"vectors-{name}"
        codes = codes_of(segment, name, fit, items.bias[:, 0])
        searchers = biased(raw.backend, raw.clusters, graph, vectors, items.bias[:, 0], codes)
    return NormalField.of(raw, items, fit.version, searchers)


def save(segment: Segment, name: str, version: str, items: ItemBiases) -> None:
    """Keep biases beside the segment. A disk that refuses costs a computation at the next start, no more."""
    if files(segment.directory, f"bias-{version}-{name}"):
        return
    keep(segment.directory, f"bias-{version}-{name}", dict(zip(_ARRAYS, items.arrays(), strict=True)), {})


def load(segment: Segment, name: str, version: str) -> ItemBiases | None:
    """Biases as they were saved, or None where there is nothing whole."""

    def made(arrays: Arrays, _: Mapping[str, Any]) -> ItemBiases | None:
        items = ItemBiases(*(arrays[key] for key in _ARRAYS))
        return items if len(items.bias) == len(segment.fields[name]) else None

    return kept(segment.directory, f"bias-{version}-{name}", made)


def sweep(directory: Path, versions: set[str]) -> None:
    """Remove the biases and codes of other fits from a segment's directory. Mapped pages stay readable."""
    for path in (*directory.glob("*-bias-*"), *directory.glob("*-fitcodes-*")):
        if path.name.split("-")[2] not in versions:
            path.unlink(missing_ok=True)
    for path in directory.glob("*.tmp"):
        path.unlink(missing_ok=True)
