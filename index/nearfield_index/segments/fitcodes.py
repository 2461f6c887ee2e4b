"""The codes of a segment's vectors under a hubness fit: a file of their own in its directory, as the biases are.

They follow from vectors, biases and the fit's queries, so a file that is missing or damaged is made again.
"""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path

import numpy as np

from nearfield_index.backends.base import Floats
from nearfield_index.backends.fitcodes import EFFORTS, FitCodes
from nearfield_index.backends.fitcoding import LEAST_ROWS, MOST_ROWS, learn
from nearfield_index.backends.hnsw import Hnsw
from nearfield_index.backends.space import Biaser
from nearfield_index.errors import Corrupt, NearfieldError
from nearfield_index.segments.segment import Segment
from nearfield_index.storage.arrays import open_arrays, write_arrays
from nearfield_index.storage.atomic import certified_name, is_certified
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
        _save(segment, name, fit.version, found)
    return found


def _save(segment: Segment, name: str, version: str, codes: FitCodes) -> None:
    """A disk that refuses costs a computation at the next start, no more."""
    temporary = segment.directory / f"fitcodes-{version}-{name}.tmp"
    try:
        _, checksum = write_arrays(temporary, codes.arrays(), {"format": FORMAT})
        certified_name(temporary, checksum, f"fitcodes-{version}-{name}")
    except NearfieldError as error:
        temporary.unlink(missing_ok=True)
        _log.warning("the codes of segment %s were not kept: %s", segment.name, error)


def _load(segment: Segment, name: str, version: str) -> FitCodes | None:
    for path in _files(segment, name, version):
        try:
            if is_certified(path):
                arrays, meta = open_arrays(path)
                codes = FitCodes(**{each.name: arrays[each.name] for each in fields(FitCodes)})
                if meta["format"] == FORMAT and len(codes.rows) == len(segment.fields[name]):
                    if len(codes.probes) == len(EFFORTS):
                        return codes
        except (OSError, Corrupt, KeyError, ValueError) as error:
            _log.warning("%s of segment %s cannot be read: %s", path.name, segment.name, error)
        path.unlink(missing_ok=True)
    return None


def _files(segment: Segment, name: str, version: str) -> list[Path]:
    return list(segment.directory.glob(f"*-fitcodes-{version}-{name}"))
