"""The ids of a segment's points as plain arrays, and the order in which equal scores are listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nearfield_index.points import PointId

Array = np.ndarray[Any, np.dtype[Any]]
Keys = np.ndarray[Any, np.dtype[np.int64]]


def tie_keys(ids: Sequence[PointId]) -> Keys:
    """What breaks ties between equal scores, whatever segment a point lies in: the integer, or the first 8 bytes."""
    return np.fromiter((tie_key(i) for i in ids), dtype=np.int64, count=len(ids))


def tie_key(point_id: PointId) -> int:
    """The tie key of one id."""
    if isinstance(point_id, int):
        return point_id
    return int.from_bytes(point_id.encode()[:8].ljust(8, b"\0"), "big") >> 1


class SegmentIds:
    """Ids by row: integers as int64, text as one blob with ends, both where both occur."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = dict(arrays)

    @classmethod
    def of(cls, ids: Sequence[PointId]) -> SegmentIds:
        """Pack ids (in row order)."""
        texts = [i.encode() if isinstance(i, str) else b"" for i in ids]
        is_text = np.array([isinstance(i, str) for i in ids], dtype=np.uint8)
        arrays: dict[str, Array] = {}
        if not is_text.all() or not len(ids):
            arrays["id.integer"] = np.array([0 if isinstance(i, str) else i for i in ids], dtype=np.int64)
        if is_text.any():
            arrays["id.blob"] = np.frombuffer(b"".join(texts), dtype=np.uint8)
            arrays["id.ends"] = np.cumsum([len(t) for t in texts], dtype=np.int64)
        if len(arrays) == 3:
            arrays["id.is_text"] = is_text
        return cls(arrays)

    def arrays(self) -> dict[str, Array]:
        """Arrays by name, for the segment's row file."""
        return dict(self._arrays)

    def at(self, rows: Keys) -> list[PointId]:
        """The ids of these rows, as they were sent; anything for a row of -1."""
        integers = self._arrays.get("id.integer")
        if "id.ends" not in self._arrays:
            assert integers is not None
            whole: list[PointId] = integers[rows].tolist()
            return whole
        is_text = self._arrays.get("id.is_text")
        ends, blob = self._arrays["id.ends"], self._arrays["id.blob"]
        found: list[PointId] = []
        for row in rows.tolist():
            if row < 0:
                found.append(0)
            elif is_text is not None and integers is not None and not is_text[row]:
                found.append(int(integers[row]))
            else:
                start = int(ends[row - 1]) if row else 0
                found.append(blob[start : int(ends[row])].tobytes().decode())
        return found
