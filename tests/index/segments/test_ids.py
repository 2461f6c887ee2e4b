"""Ids by row, as they were sent; a row of -1 stands for no hit and is passed over, not an error."""

from __future__ import annotations

import numpy as np
import pytest

from nearfield_index.points import PointId
from nearfield_index.segments.ids import SegmentIds


@pytest.mark.parametrize("ids", [[7], ["only"], [7, 8, 9], ["a", "", "ccc"], [7, "b", 9, "dé"]])
def test_rows_give_their_ids_and_minus_one_gives_anything(ids: list[PointId]) -> None:
    packed = SegmentIds.of(ids)
    rows = np.array([*range(len(ids)), -1, *reversed(range(len(ids))), -1])
    found = packed.at(rows)
    assert len(found) == len(rows)
    assert [each for each, row in zip(found, rows, strict=True) if row >= 0] == [*ids, *reversed(ids)]


@pytest.mark.parametrize("ids", [[f"point-{n}" for n in range(100)], [7, *(f"point-{n}" for n in range(100))]])
def test_minus_one_takes_no_longer_than_an_id(ids: list[PointId]) -> None:
    """A batch may have many places without a hit: each must not read the ids of the whole segment."""
    found = SegmentIds.of(ids).at(np.full(1_000, -1))
    assert len(found) == 1_000
    assert max(len(str(each)) for each in found) <= 256
