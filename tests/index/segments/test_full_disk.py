"""A disk that is full when an index is written: a clear error, no half file, and the old segments go on serving."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from embedded import collection_directory, finished
from nearfield_index.engine import Engine
from nearfield_index.errors import OutOfSpace, StorageFailed
from nearfield_index.jobs import Job
from nearfield_index.storage.atomic import replace_file
from nearfield_index.storage.indexes import check_whole, write_index

DIM = 8
ROWS = 3_000
X = np.random.default_rng(4).standard_normal((ROWS, DIM)).astype(np.float32)
Limit = Callable[[int | None], None]


def links() -> Any:
    """A graph of about 800 kB."""
    graph = faiss.IndexHNSWFlat(DIM, 32)
    graph.add(X)
    return graph


def test_an_index_on_a_full_device_is_out_of_space() -> None:
    full = Path("/dev/full")
    with pytest.raises(OutOfSpace, match=r"the disk is full \(writing full\)"):
        write_index(links(), full, links_only=True)


def test_an_index_is_written_as_faiss_does(tmp_path: Path) -> None:
    graph = links()
    write_index(graph, tmp_path / "links", links_only=True)
    write_index(graph, tmp_path / "whole")
    faiss.write_index(graph, str(tmp_path / "as-links"), faiss.IO_FLAG_SKIP_STORAGE)
    faiss.write_index(graph, str(tmp_path / "as-whole"))
    for name in ("links", "whole"):
        assert (tmp_path / name).read_bytes() == (tmp_path / f"as-{name}").read_bytes()
        check_whole(tmp_path / name, (tmp_path / name).stat().st_size)


def test_a_file_cut_short_is_found_out(tmp_path: Path, limit_files: Limit) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(b"x" * 1_000)
    limit_files(1_000)
    with pytest.raises(StorageFailed, match="File too large"):
        check_whole(cut, 2_000)
    limit_files(None)
    with pytest.raises(StorageFailed, match="only a part"):
        check_whole(cut, 2_000)


def test_a_file_that_cannot_be_replaced_stays_and_nothing_beside_it(tmp_path: Path, limit_files: Limit) -> None:
    kept = tmp_path / "kept"
    replace_file(kept, b"old")
    limit_files(1_000)
    with pytest.raises(StorageFailed):
        replace_file(kept, b"x" * 2_000)
    limit_files(None)
    assert kept.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [kept]


@contextmanager
def written(place: Path, kind: str) -> Iterator[Engine]:
    """An engine with points in flat segments."""
    if kind == "hnswlib":
        pytest.importorskip("hnswlib", reason="the extra [hnswlib] is not installed: its graphs are NOT tested")
    with Engine.open(place / "data") as engine:
        engine.create_collection("c", {"dim": DIM, "metric": "l2", "index": {"kind": kind, "m": 32}})
        engine.write_points("c", {"ids": list(range(ROWS)), "vectors": X})
        yield engine


def failed(engine: Engine) -> str:
    """Why an optimize failed."""
    job: Job = engine._catalog.maintenance.jobs.get(engine.optimize("c")["id"])
    assert job.wait(60)
    assert job.state == "failed", job.to_wire()
    assert job.error
    return job.error


def serves(engine: Engine) -> None:
    """Points are searched exactly, writes go on, and there is no half segment."""
    assert engine.count_points("c", {})["count"] == ROWS
    hits = engine.query("c", {"vectors": X[:50], "k": 1, "select": False})["results"]
    assert [each[0]["id"] for each in hits] == list(range(50))


def segments(place: Path) -> list[Path]:
    return list((collection_directory(place / "data") / "segments").iterdir())


@pytest.mark.parametrize("kind", ["hnsw", "hnswlib"])
def test_a_build_that_may_write_no_more_changes_nothing(kind: str, tmp_path: Path, limit_files: Limit) -> None:
    with written(tmp_path, kind) as engine:
        limit_files(700_000)
        assert "the disk refused an operation (writing graph-vector): File too large" in failed(engine)
        limit_files(None)
        serves(engine)
        (flat,) = segments(tmp_path)
        finished(engine, engine.optimize("c"))
        serves(engine)
        (built,) = segments(tmp_path)
        assert built != flat
        assert engine.check()["ok"]


@pytest.mark.parametrize("kind", ["hnsw", "hnswlib"])
def test_a_build_on_a_full_disk_changes_nothing(kind: str, small_disk: Path) -> None:
    with written(small_disk, kind) as engine:
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 900_000))  # what else is written fits
        assert "the disk is full (writing graph-vector)" in failed(engine)
        serves(engine)
        assert len(segments(small_disk)) == 1
        ballast.unlink()
        finished(engine, engine.optimize("c"))
        serves(engine)
        assert engine.check()["ok"]
