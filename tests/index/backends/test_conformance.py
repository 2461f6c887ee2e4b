"""The one suite over the CPU's backends, and segments written with each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conformance import *  # noqa: F403
from conformance import DIM, ROWS, Array, class_of, clustered, recall_of
from nearfield_index.backends.space import queried, stored
from nearfield_index.schema import IndexKind, IndexSpec, Metric, Schema, VectorField
from nearfield_index.segments.segment import Segment
from nearfield_index.segments.writer import FieldRows, SegmentRows, write_indexed

KINDS = ["exact", "hnsw", "ivf", "coded", "hnswlib"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.mark.parametrize("written", ["exact", "hnsw", "ivf", "hnswlib"])
def test_a_segment_written_and_opened_answers_as_its_backend(
    written: str,
    metric: Metric,
    tmp_path: Path,
    asked: Array,
) -> None:
    class_of(written)
    raw = clustered(ROWS, DIM, 1)
    schema = Schema({"vector": VectorField(DIM, metric)}, {}, IndexSpec(IndexKind(written), 12, 60))
    some = np.arange(0, ROWS, 2)  # every other point lacks the vector
    rows = SegmentRows(
        np.arange(1, ROWS + 1, dtype=np.int64),
        [str(i) if i % 3 else i for i in range(ROWS)],
        [{"n": i} for i in range(ROWS)],
        {"vector": FieldRows(some, stored(raw[some], metric))},
    )
    name = write_indexed(tmp_path, rows, schema, sequence=ROWS, threads=1, step=lambda done: None)
    segment = Segment(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
    part = segment.fields["vector"]
    assert len(part) == len(some)
    assert (part.backend.kind if part.backend else "exact") == written
    queries = queried(asked, metric)
    if part.backend is None:
        _, found = part.scan(queries, 10, None)
    else:
        _, found = part.backend.search(queries, 10, effort=part.backend.efforts[-1], within=None)
    segment_rows = part.part_rows(found)
    pks = segment.pks[segment_rows]
    assert (pks % 2 == 1).all(), "a point without the vector was found"
    asked_rows = stored(raw, metric)
    truth = np.argsort(-(asked_rows[some].astype(np.float64) @ queries.T.astype(np.float64)), axis=0)[:10].T
    assert recall_of(pks - 1, some[truth]) >= (1.0 if written == "exact" else 0.98)
    # ids, keys and vectors stay together through every reordering
    assert segment.ids(segment_rows[0]) == [str(p - 1) if (p - 1) % 3 else int(p - 1) for p in pks[0]]
    np.testing.assert_array_equal(part.matrix[found[0]], asked_rows[pks[0] - 1])
    ordered = np.sort(pks[0])
    np.testing.assert_array_equal(segment.pks[segment.rows_of(ordered)], ordered)


def test_a_step_that_raises_stops_the_build_and_leaves_nothing(
    tmp_path: Path,
    metric: Metric,
) -> None:
    raw = clustered(ROWS, DIM, 1)
    schema = Schema({"vector": VectorField(DIM, metric)}, {}, IndexSpec(IndexKind.HNSW, 12, 60))
    rows = SegmentRows(
        np.arange(1, ROWS + 1, dtype=np.int64),
        list(range(ROWS)),
        [{} for _ in range(ROWS)],
        {"vector": FieldRows(np.arange(ROWS), stored(raw, metric))},
    )

    class Stop(Exception):
        pass

    def stop(done: float) -> None:
        if done > 0.5:
            raise Stop

    with pytest.raises(Stop):
        write_indexed(tmp_path, rows, schema, sequence=ROWS, threads=1, step=stop)
    assert list(tmp_path.iterdir()) == []
