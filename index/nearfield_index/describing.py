"""What a collection says of itself: schema, counts, segments, bytes, calibration."""

from __future__ import annotations

from typing import Any

from nearfield_index.collection import Collection
from nearfield_index.execution.cost import summary
from nearfield_index.quality.layouts import told
from nearfield_index.segments.segment import Segment

Json = dict[str, Any]


def describe(collection: Collection) -> Json:
    """The reply of ``GET /v1/collections/{name}``."""
    view = collection.live.view
    rows, tail_bytes = collection.live.tail_size
    return {
        "name": collection.name,
        **collection.schema.to_wire(),
        "attributes": _attributes(collection),
        "points": view.count,
        "indexed_points": view.indexed,
        "sequence": view.sequence,
        "segments": [_segment(collection, segment, dead.count) for segment, dead in view.segments],
        "tail": {"points": rows, "bytes": tail_bytes},
        "bytes": nbytes(collection),
        "state": _state(collection),
    }


def _attributes(collection: Collection) -> Json:
    declared = collection.schema.attributes
    found: Json = {name: {"type": str(kind), "declared": True} for name, kind in declared.items()}
    for name, kinds in sorted(collection.live.view.types.items()):
        if name not in found:
            types = sorted(kinds)
            found[name] = {"type": types[0] if len(types) == 1 else types, "declared": False}
    return found


def _segment(collection: Collection, segment: Segment, dead: int) -> Json:
    kinds = sorted({field["kind"] for field in segment.head.fields.values()})
    return {
        "id": segment.name,
        "state": segment.head.state,
        "kind": kinds[0] if len(kinds) == 1 else kinds,
        "points": segment.count,
        "deleted": dead,
        "bytes": segment.head.nbytes,
        "fields": segment.head.fields,
        "layout": told(segment),
        "calibration": {name: summary(c) for name, c in collection.builder.state(segment.name).items()},
    }


def nbytes(collection: Collection) -> Json:
    """Bytes on disk by part."""
    parts = {"rows": collection.store.nbytes, "vectors": 0, "graphs": 0, "other": 0}
    for segment, _ in collection.live.view.segments:
        for name, file in segment.head.files.items():
            kind = {"vectors": "vectors", "graph": "graphs", "codes": "graphs"}.get(name.partition("-")[0], "other")
            parts[kind] += file["bytes"]
    return parts


def _state(collection: Collection) -> str:
    if collection.store.failed is not None:
        return "read_only"
    jobs = collection.maintenance.jobs.list()
    return "building" if any(j.active and j.collection == collection.name for j in jobs) else "ready"


def quality(collection: Collection) -> Json:
    """The reply of ``GET .../quality``: what is calibrated, on what, and which recall each setting came to."""
    segments = []
    for segment, _ in collection.live.view.segments:
        for name, known in collection.builder.state(segment.name).items():
            segments.append({"segment": segment.name, "field": name, **known.to_json()})
    measured = collection.monitor.to_wire()
    return {
        "recall": {"target": collection.schema.index.recall, "measured": measured, "calibration": segments},
        "workload": collection.builder.layouts.to_wire(),
        "hubness": hubness(collection),
        "hub_alerts": collection.hubness.alerts(),
    }


def hubness(collection: Collection) -> Json:
    """The fits in force by field, in short."""
    kept = ("method", "strength", "gate", "version", "recommended")
    if not collection.live.fits:
        return {}
    fields: Json = collection.hubness.describe()["fields"]
    return {name: {key: report[key] for key in (*kept, "bank")} for name, report in fields.items()}
