"""The doctor's look at a data directory: every page, every row, every segment file."""

from __future__ import annotations

from typing import Any

from nearfield_index.catalog import Catalog
from nearfield_index.collection import Collection
from nearfield_index.errors import Corrupt
from nearfield_index.segments.segment import verify
from nearfield_index.storage.rows import accept_loss

Json = dict[str, Any]


def check_directory(catalog: Catalog, *, repair: bool) -> Json:
    """What is wrong, by collection, and whether ``repair`` can mend it: everything but the row store is rebuilt from
    it. Damaged segments were already set aside and rebuilt when they were opened.

    With ``repair``, collections that refuse to open because acknowledged commits are missing give up those
    commits; they open at the next start.
    """
    checked = [_check_collection(collection) for collection in catalog.list()]
    for broken in catalog.broken:
        acceptable = isinstance(broken.error, Corrupt) and broken.error.code == "commits_missing"
        findings = [broken.reason]
        if repair and acceptable:
            accept_loss(broken.directory)
            findings.append("the loss was accepted; the collection opens at the next start")
        elif isinstance(broken.error, Corrupt):
            findings.append(broken.hint)
        name = broken.name or broken.directory.name
        nothing = {"rows": None, "segments": None}
        checked.append({"name": name, "ok": False, **nothing, "repairable": acceptable, "findings": findings})
    return {"ok": all(c["ok"] for c in checked), "collections": checked}


def _check_collection(collection: Collection) -> Json:
    findings = list(collection.live.findings)
    findings += collection.rerankers.findings
    lost = collection.store.damaged()
    findings += lost
    for segment, _ in collection.live.view.segments:
        damaged = verify(segment.directory, segment.head)
        # A merge may have replaced and removed it meanwhile: what is no longer served is not missed.
        if damaged and any(segment is live for live, _ in collection.live.view.segments):
            findings += [f"segment {segment.name}: {name} is damaged" for name in damaged]
    with collection.commits.turn:  # no write between the two counts
        stored, visible = collection.store.count(), collection.live.view.count
    if stored != visible:
        findings.append(f"{stored} points are stored and {visible} are searchable")
    return {
        "name": collection.name,
        "ok": not findings,
        "rows": stored,
        "segments": len(collection.live.view.segments),
        "repairable": not lost,
        "findings": findings,
    }
