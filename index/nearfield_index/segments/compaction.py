"""Which segments to merge: a pure function of their sizes. The merge itself is the collection's job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# A segment this dead is rewritten; its tombstones cost every query.
_DEAD_SHARE = 0.2
# Flat segments wait until together they are worth a graph.
_FLAT_BYTES = 48 * 1024 * 1024
_FLAT_COUNT = 4
# A merge may take in an indexed segment up to this many times the new rows.
_ABSORB = 4.0
_FULL_ABSORB = 16.0
# ``optimize`` takes in a segment of this size, unless next to nothing is new: one graph answers quicker than two parts.
_SMALL_BYTES = 1024 * 1024 * 1024
_NEXT_TO_NOTHING = 1_000
_LARGEST_BYTES = 8 * 1024 * 1024 * 1024


@dataclass(frozen=True)
class SegmentSize:
    """What the policy sees of a segment."""

    id: str
    indexed: bool
    count: int
    dead: int
    nbytes: int
    current: bool
    """Whether it was built with the collection's present index settings."""

    @property
    def live_bytes(self) -> float:
        return self.nbytes * (self.count - self.dead) / max(1, self.count)


def plan_merge(segments: Sequence[SegmentSize], *, full: bool) -> list[str]:
    """The segments to rewrite into one indexed segment now; empty when all is well.

    ``full`` (``optimize``) leaves nothing flat, outdated or notably dead.
    """
    flat = [s for s in segments if not s.indexed]
    stale = [s for s in segments if s.indexed and (not s.current or s.dead > _DEAD_SHARE * s.count)]
    if full:
        stale = [s for s in segments if s.indexed and (not s.current or s.dead > 0.02 * s.count)]
    due = full or len(flat) >= _FLAT_COUNT or sum(s.nbytes for s in flat) >= _FLAT_BYTES
    chosen = (flat if due else []) + stale
    if not chosen:
        return []
    taken = sum(s.live_bytes for s in chosen)
    rest = sorted((s for s in segments if s.indexed and s not in stale), key=lambda s: s.live_bytes)
    for segment in rest:
        most = _FULL_ABSORB if full else _ABSORB
        small = segment.live_bytes <= min(_SMALL_BYTES, _NEXT_TO_NOTHING * taken)
        worth = segment.live_bytes <= most * taken or (full and small)
        if worth and taken + segment.live_bytes <= _LARGEST_BYTES:
            chosen.append(segment)
            taken += segment.live_bytes
    return [s.id for s in chosen]
