"""The codes of a segment's vectors under a hubness fit: a file of their own in its directory, as the biases are.

They follow from vectors, biases and the fit's queries, so a file that is missing or damaged is made again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from nearfield_index.backends.base import Floats
from nearfield_index.backends.fitcodes import EFFORTS, FitCodes
from nearfield_index.backends.fitcoding import LEAST_ROWS, MOST_ROWS, learn
from nearfield_index.backends.hnsw import Hnsw
from nearfield_index.backends.space import Biaser
from nearfield_index.segments.aside import Arrays, keep, kept
from nearfield_index.segments.segment import Segment
from nearfield_index.threads import BACKGROUND

_log = logging.getLogger(__name__)

FORMAT = 1


def codes_of(segment: Segment, name: str, fit: Biaser, bias: Floats) -> FitCodes | None:
    """The codes to search a field through instead of its graph, read or learned; None where there is no graph, or
    where none can be had: then the graph is walked. ``bias`` ``(rows,)``."""
    raw = segment.fields[name]
    if not isinstance(raw.backend, Hnsw) or raw.clusters is None or not LEAST_ROWS <= len(raw) <= MOST_ROWS:
        return None
    found = _load(segment, name, fit.version)
    if found is None:
        vectors = raw.clusters.space.vectors
        try:
            found = learn(vectors, bias, fit.asked, raw.metric, threads=BACKGROUND)
        except (RuntimeError, np.linalg.LinAlgError) as error:
            _log.warning("normalised search of %s in segment %s has no codes: %s", name, segment.name, error)
            return None
        keep(segment.directory, f"fitcodes-{fit.version}-{name}", found.arrays(), {"format": FORMAT})
    return found


def _load(segment: Segment, name: str, version: str) -> FitCodes | None:
    def made(arrays: Arrays, meta: Mapping[str, Any]) -> FitCodes | None:
        codes = FitCodes(**{each.name: arrays[each.name] for each in fields(FitCodes)})
        whole = len(codes.rows) == len(segment.fields[name]) and len(codes.probes) == len(EFFORTS)
        return codes if meta["format"] == FORMAT and whole else None

    return kept(segment.directory, f"fitcodes-{version}-{name}", made)
