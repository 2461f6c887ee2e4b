"""The command line on real data: files in, answers out, exit codes."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

import nearfield
from nearfield_index.version import VERSION
from nearfield_server.cli import app

ROWS = 50
DIM = 8
VECTORS = np.random.default_rng(5).normal(size=(ROWS, DIM)).astype(np.float32)
COLORS = ["red" if row % 2 else "blue" for row in range(ROWS)]


def run(*arguments: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def parquet(path: Path) -> Path:
    table = pa.table(
        {
            "sku": [f"p{row}" for row in range(ROWS)],
            "embedding": pa.FixedSizeListArray.from_arrays(VECTORS.reshape(-1), DIM),
            "color": COLORS,
            "price": pa.array(range(ROWS), pa.int32()),
            "other": pa.array(VECTORS.tolist(), pa.list_(pa.float32())),
            "blob": pa.array([b"x"] * ROWS),
        }
    )
    pq.write_table(table, path / "points.parquet", row_group_size=20)
    return path / "points.parquet"


def jsonl(path: Path, name: str = "points.jsonl") -> Path:
    rows = (
        {
            "sku": f"p{row}",
            "embedding": VECTORS[row].tolist(),
            "color": COLORS[row],
            "attributes": {"price": row},
        }
        for row in range(ROWS)
    )
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path / name


def csv(path: Path) -> Path:
    lines = ["sku,color,price,zip"] + [f"p{row},{COLORS[row]},{row},007" for row in range(ROWS)]
    (path / "points.csv").write_text("\n".join(lines))
    np.save(path / "vectors.npy", VECTORS)
    return path / "points.csv"


def npz(path: Path) -> Path:
    ids = np.array([f"p{row}" for row in range(ROWS)])
    np.savez(path / "points.npz", embedding=VECTORS, sku=ids, color=np.array(COLORS), price=np.arange(ROWS))
    return path / "points.npz"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def found(data: Path, *more: str) -> list[dict[str, Any]]:
    """The hits of the vector of row 7."""
    vector = json.dumps(VECTORS[7].tolist())
    output = run("query", "c", "--vector", vector, "-k", 3, "--json", "--data", data, *more).stdout
    hits: list[dict[str, Any]] = json.loads(output)["hits"]
    return hits


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (parquet, ["--vector", "embedding"]),
        (jsonl, ["--vector", "embedding"]),
        (jsonl, []),
        (lambda path: jsonl(path, "points.jsonl.gz"), ["--vector", "embedding"]),
        (csv, ["--vectors", "vectors.npy"]),
        (npz, ["--vector", "embedding"]),
    ],
    ids=["parquet", "jsonl", "jsonl, found by type", "jsonl.gz", "csv", "npz"],
)
def test_import(
    make: Callable[[Path], Path],
    options: list[str],
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("import", "c", make(tmp_path), "--id", "sku", *options, "--data", data)
    assert f"{ROWS} points written to c" in result.output
    hits = found(data)
    assert hits[0]["id"] == "p7"
    assert hits[0]["score"] == pytest.approx(1.0, abs=1e-5)
    assert (hits[0]["attributes"]["color"], hits[0]["attributes"]["price"]) == ("red", 7)
    assert [hit["id"] for hit in found(data, "--filter", '{"price": 8}')] == ["p8"]


def test_import_says_what_is_not_indexed_until_it_is(tmp_path: Path, data: Path) -> None:
    file = npz(tmp_path)
    arguments = ("import", "c", file, "--id", "sku", "--vector", "embedding", "--data", data)
    assert f"{ROWS} points have no index yet, queries scan them; run: nearfield optimize c" in run(*arguments).output
    run("optimize", "c", "--data", data)
    assert f" {ROWS} " in run("collections", "--data", data).stdout
    (tmp_path / "none.jsonl").write_text("")
    assert "optimize" not in run("import", "c", tmp_path / "none.jsonl", "--data", data).output


def test_import_npy_numbers_its_rows(tmp_path: Path, data: Path) -> None:
    np.save(tmp_path / "m.npy", VECTORS.astype(np.float64))
    run("import", "c", tmp_path / "m.npy", "--data", data, "--metric", "l2")
    assert found(data)[0]["id"] == 7
    np.save(tmp_path / "q.npy", VECTORS[9])
    assert " 9 " in run("query", "c", "--vector", f"@{tmp_path / 'q.npy'}", "--data", data).stdout


def test_import_into_what_exists_and_again(tmp_path: Path, data: Path) -> None:
    file = npz(tmp_path)
    for _ in range(2):
        run("import", "c", file, "--id", "sku", "--vector", "embedding", "--data", data)
    assert f" {ROWS} " in run("collections", "--data", data).stdout


def test_csv_keeps_what_is_not_a_number(tmp_path: Path, data: Path) -> None:
    file = csv(tmp_path)
    run("import", "c", file, "--id", "sku", "--vectors", tmp_path / "vectors.npy", "--data", data)
    assert found(data)[0]["attributes"]["zip"] == "007"


def test_csv_keeps_texts_as_they_are_written(tmp_path: Path, data: Path) -> None:
    (tmp_path / "t.csv").write_text('id,vector,text,zip\n1,"[0.5,1]",1.50,8\n')
    run("import", "c", tmp_path / "t.csv", "--data", data)
    with nearfield.open(data) as client:
        (point,) = client["c"].get([1], with_=["text"])
    assert (point.text, point.attributes) == ("1.50", {"zip": 8})


def test_rows_without_a_vector(tmp_path: Path, data: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text('{"id": 1, "vector": [1, 0]}\n{"id": 2, "color": "red"}\n\n{"id": 3, "vector": [0, 1]}\n')
    assert "3 points written" in run("import", "c", file, "--data", data).output


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xyz", b"", "cannot tell what a.xyz is"),
        ("a", b"", "cannot tell what a is"),
        ("a.jsonl", b"{}\nnope\n", "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl, line 1: not an object"),
        ("a.jsonl", b'{"id": 1, "vector": "red"}\n', "a.jsonl, line 1: the vector is not a JSON list"),
        ("a.jsonl", b'{"id": 1, "vector": ["a"]}\n', "a.jsonl, line 1: the vector is not a list of numbers"),
        ("a.jsonl", b'{"id": 1, "emb": [1, 2]}\n', "the dimension is unknown; there are emb; name the column with"),
        ("a.jsonl", b'{"id": 1, "a": [0.5, 1], "b": [1, 0.5]}\n', "several columns hold vectors: a, b; name one with"),
        ("a.jsonl", b'{"id": 1, "vector": [1, 0]}\n{"vector": [1, 0]}\n', "a.jsonl, line 2: lacks the id column id"),
        ("a.jsonl", b'{"vector": [1, 0], "text": 5}\n', "a.jsonl, line 1: column text is the text and holds none"),
        ("a.npy", b"not numpy", "a.npy cannot be read"),
        ("a.npz", b"not numpy", "a.npz cannot be read"),
        ("a.parquet", b"not parquet", "a.parquet is not Parquet"),
    ],
)
def test_files_that_cannot_be_imported(tmp_path: Path, data: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    result = run("import", "c", tmp_path / name, "--data", data, code=1)
    assert message in result.output
    assert "Traceback" not in result.output


def test_missing_file_and_column(tmp_path: Path, data: Path) -> None:
    for name in ("nowhere.npy", "nowhere.parquet"):
        output = run("import", "c", tmp_path / name, "--data", data, code=1).output
        assert output == f"nearfield: there is no file {tmp_path / name}\n"
    file = npz(tmp_path)
    assert (
        "nowhere.npy: no such file"
        in run("import", "c", file, "--vectors", tmp_path / "nowhere.npy", "--data", data, code=1).output
    )
    for make in (parquet, jsonl):
        result = run("import", "c", make(tmp_path), "--vector", "colour", "--data", data, code=1)
        assert "there is no column colour; there are sku, embedding, color" in result.output


def test_which_of_several_vectors_is_for_the_caller_to_say(tmp_path: Path, data: Path) -> None:
    several = "several columns hold vectors: embedding, other; name one with --vector"
    assert several in run("import", "c", parquet(tmp_path), "--data", data, code=1).output
    np.savez(tmp_path / "two.npz", embedding=VECTORS, other=VECTORS)
    assert several in run("import", "c", tmp_path / "two.npz", "--data", data, code=1).output
    np.savez(tmp_path / "two.npz", vector=VECTORS, other=VECTORS)
    assert "leaving out other" in run("import", "c", tmp_path / "two.npz", "--data", data).output


BAD_LINES = {
    "dimension": ('{"id": 9000, "vector": [1, 0]}', "vectors of 2 numbers where the field has 3"),
    "zero": ('{"id": 9000, "vector": [0, 0, 0]}', "the vector is all zeros"),
    "id": (
        '{"id": 1.5, "vector": [1, 0, 0]}',
        "an id is text of 1 to 256 bytes or an integer from 0 to 2^63-1 (at ids)",
    ),
    "text": ('{"id": 9000, "vector": [1, 0, 0], "text": "%s"}' % ("x" * 1_100_000), "text has at most 1048576 bytes"),
}


@pytest.mark.parametrize("what", sorted(BAD_LINES))
def test_a_refused_line_is_named_and_what_came_before_is_written(tmp_path: Path, data: Path, what: str) -> None:
    bad, message = BAD_LINES[what]
    lines = [json.dumps({"id": row, "vector": [1, row, 0.5]}) for row in range(6_000)]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join([*lines[:5_000], "", bad, *lines[5_000:]]))
    output = run("import", "c", file, "--data", data, code=1).output
    assert f"a.jsonl, line 5002: {message}" in output
    assert "5,000 points are written to c; mend the file and import it again" in output
    assert " 5,000 " in run("collections", "--data", data).stdout
    file.write_text("\n".join(lines))
    assert "6,000 points written to c\n" in run("import", "c", file, "--data", data).output


def test_a_refused_row_of_a_matrix_is_named(tmp_path: Path, data: Path) -> None:
    vectors = VECTORS.copy()
    vectors[33] = 0
    np.save(tmp_path / "m.npy", vectors)
    output = run("import", "c", tmp_path / "m.npy", "--data", data, code=1).output
    assert "m.npy, row 33 (from 0): the vector is all zeros" in output
    assert "33 points are written" in output


def test_an_import_that_wrote_nothing_leaves_no_collection(tmp_path: Path, data: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "vector": [0, 0]}\n')
    assert "line 1: the vector is all zeros" in run("import", "c", tmp_path / "a.jsonl", "--data", data, code=1).output
    assert "c " not in run("collections", "--data", data).stdout
    (tmp_path / "b.jsonl").write_text('{"id": 1, "vector": [1, 0, 0]}\n')
    assert "1 point written to c" in run("import", "c", tmp_path / "b.jsonl", "--data", data).output
    run("import", "c", tmp_path / "a.jsonl", "--data", data, code=1)
    assert " 1 " in run("collections", "--data", data).stdout


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b""), ("a.csv", b"id,vector\n")])
def test_a_file_without_rows(tmp_path: Path, data: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{name} holds no rows; nothing was written" in run("import", "c", tmp_path / name, "--data", data).output
    assert "c " not in run("collections", "--data", data).stdout


def test_points_are_counted_by_their_ids(tmp_path: Path, data: Path) -> None:
    rows = [{"id": row % 5_000, "vector": [1, row]} for row in range(6_000)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    output = run("import", "c", tmp_path / "a.jsonl", "--data", data).output
    assert "5,000 points written to c (6,000 rows; of rows with the same id the last one counts)" in output


def test_dates_of_parquet_are_moments(tmp_path: Path, data: Path) -> None:
    days = [dt.date(2024, 1, 1) + dt.timedelta(row) for row in range(ROWS)]
    moments = [dt.datetime(2024, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=row) for row in range(ROWS)]
    naive = [moment.replace(tzinfo=None) for moment in moments]
    table = pa.table({"vector": VECTORS.tolist(), "day": days, "at": moments, "naive": naive, "id": range(ROWS)})
    table = table.append_column(
        "nanos", pa.array([row * 3_600_000_000_000 + 1 for row in range(ROWS)], pa.timestamp("ns"))
    )
    table = table.set_column(0, "vector", table["vector"].cast(pa.list_(pa.float32())))
    pq.write_table(table, tmp_path / "t.parquet")
    run("import", "c", tmp_path / "t.parquet", "--data", data)
    for name, last in (
        ("day", "2024-01-03"),
        ("at", "2024-01-01T02:00:00Z"),
        ("naive", "2024-01-01T02:00:00Z"),
        ("nanos", "1970-01-01T02:00:00Z"),
    ):
        hits = found(data, "--filter", json.dumps({name: {"lte": last}}))
        assert {hit["id"] for hit in hits} == {0, 1, 2}, name


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = parquet(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "nearfield[arrow]" in run("import", "c", file, "--data", data, code=1).output


def test_query_and_optimize(tmp_path: Path, data: Path) -> None:
    run("import", "c", npz(tmp_path), "--id", "sku", "--vector", "embedding", "--data", data)
    run("optimize", "c", "--data", data)
    table = run("query", "c", "--id", "p7", "-k", 2, "--exact", "--recall", 0.9, "--data", data).stdout
    assert "color" in table
    assert " ms" in table
    assert "indexed" not in run("query", "c", "--id", "p7", "--json", "--data", data).stderr


def test_a_query_names_its_field_where_there_are_several(data: Path) -> None:
    with nearfield.open(data) as nf:
        col = nf.create("c", vectors={"a": {"dim": 1, "metric": "l2"}, "b": {"dim": 2, "metric": "l2"}})
        col.upsert(["p"], {"a": [[1]], "b": [[1, 2]]})
    assert "name one of: a, b" in run("query", "c", "--vector", "[1, 2]", "--data", data, code=1).output
    assert " p " in run("query", "c", "--vector", "[1, 2]", "--field", "b", "--data", data).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --vector or --id"),
        (["--vector", "[1]", "--id", "a"], "either --vector or --id"),
        (["--vector", "[1"], "--vector is not JSON"),
        (["--vector", "{}"], "--vector must be a JSON list"),
        (["--id", "a", "--filter", "red"], "--filter is not JSON"),
    ],
)
def test_query_usage(data: Path, arguments: list[str], message: str) -> None:
    assert message in run("query", "c", *arguments, "--data", data, code=2).output


def test_unknown_collection_is_one_line(data: Path) -> None:
    output = run("query", "nope", "--id", "a", "--data", data, code=1).output
    assert len(output.strip().splitlines()) == 1


def test_optimize_lays_out_for_a_file_of_filters(tmp_path: Path, data: Path) -> None:
    random = np.random.default_rng(5)
    rows = tmp_path / "rows.npz"
    np.savez(rows, embedding=random.standard_normal((2_500, 4)).astype("f4"), rank=np.arange(2_500))
    run("import", "c", rows, "--vector", "embedding", "--data", data)
    filters = tmp_path / "filters.jsonl"
    filters.write_text('{"rank": {"lt": 1000}}\n' * 300)
    assert "rows laid out in" in run("optimize", "c", "--workload", filters, "--data", data).output
    filters.write_text('{"rank": {"lt": 10}}\n' * 2)
    ignored = run("optimize", "c", "--workload", filters, "--data", data).output
    assert "workload ignored: 2 filters, 200 wanted" in ignored
    filters.write_text("{no")
    assert "is not JSON lines" in run("optimize", "c", "--workload", filters, "--data", data, code=1).output


def test_doctor(tmp_path: Path, data: Path) -> None:
    run("import", "c", npz(tmp_path), "--id", "sku", "--vector", "embedding", "--data", data)
    assert "all in order" in run("doctor", data).output
    assert "no data directory" in run("doctor", tmp_path / "nowhere", code=1).output


def test_doctor_makes_no_data_directory_of_another(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    assert "is not a data directory" in run("doctor", tmp_path / "pictures", code=1).output
    assert list((tmp_path / "pictures").iterdir()) == []


def test_doctor_finds_and_repairs_damage(tmp_path: Path, data: Path) -> None:
    run("import", "c", npz(tmp_path), "--id", "sku", "--vector", "embedding", "--data", data)
    run("optimize", "c", "--data", data)
    (vectors,) = data.glob("collections/*/segments/*/vectors-vector")
    damaged = bytearray(vectors.read_bytes())
    damaged[500] ^= 1
    vectors.write_bytes(damaged)
    output = run("doctor", data, code=1).output
    assert "c: damaged" in output
    assert "vectors-vector" in output
    run("doctor", data, "--repair")
    assert "all in order" in run("doctor", data).output
    assert found(data)[0]["id"] == "p7"


def test_a_damaged_row_store_wants_a_backup(tmp_path: Path, data: Path) -> None:
    random = np.random.default_rng(5)
    rows = tmp_path / "rows.npz"
    np.savez(rows, embedding=random.standard_normal((3_000, 64)).astype("f4"))
    run("import", "c", rows, "--vector", "embedding", "--data", data)
    run("optimize", "c", "--data", data)
    (store,) = data.glob("collections/*/rows.db")
    whole = store.read_bytes()
    damaged_open = damaged_closed = 0
    for place in range(8192, len(whole) - 3000, len(whole) // 12):
        store.write_bytes(whole[:place] + random.bytes(3000) + whole[place + 3000 :])
        for repair in ([], ["--repair"]):
            output = run("doctor", data, *repair, code=1).output
            assert "restore a backup" in output
            assert "--repair cannot repair: c" in output
            assert "never used" not in output or "more pages" in output
            assert len(output.splitlines()) < 9, output
        read = CliRunner().invoke(app, ["query", "c", "--id", "77", "-k", "3000", "--data", str(data)])
        damaged_open += read.exit_code == 0
        damaged_closed += read.exit_code == 1
        if read.exit_code:
            assert "the row store is damaged" in read.output
            assert "restore a backup" in read.output
    assert damaged_closed
    assert damaged_open


def test_commands_against_a_server(start_process: Callable[..., Any], tmp_path: Path, data: Path) -> None:
    server = start_process(data, NEARFIELD_API_KEYS="the-only-key", NEARFIELD_PROT="3")
    reach = ("--url", server.url, "--api-key", "the-only-key")
    run("import", "c", npz(tmp_path), "--id", "sku", "--vector", "embedding", *reach)
    assert "p7" in run("query", "c", "--id", "p8", "-k", ROWS, *reach).stdout
    assert f" {ROWS} " in run("collections", *reach).stdout
    told = run("collections", "--url", server.url, code=1).output
    assert "API key; give it as --api-key KEY or in NEARFIELD_API_KEY\n" in told
    assert "NEARFIELD_PROT is no setting" in server.log.read_text()
    run("healthcheck", "--url", server.url)
    assert str(server.process.pid) in run("doctor", data, code=3).output
    run("collections", "--data", data, code=3)
    server.stop()
    assert "not ready" in run("healthcheck", "--url", server.url, code=1).output


def test_serve_refuses_to_be_open_to_all(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "nearfield_server",
        "serve",
        "--host",
        "0.0.0.0",
        "--data",
        str(tmp_path),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    said = ended.stderr.strip()
    assert said.startswith("nearfield: refusing to listen on 0.0.0.0 without an API key: ")
    assert len(said.splitlines()) == 1


def test_version() -> None:
    assert run("--version").output == f"nearfield {VERSION}\n"


def test_help_loads_nothing_heavy() -> None:
    """``nearfield --help`` answers at once: what is slow to import waits for the command that needs it."""
    script = (
        "import sys\nfrom nearfield_server.cli import app\n"
        "try:\n    app(['--help'], prog_name='nearfield')\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'faiss', 'fastapi', 'pydantic', 'uvicorn', 'nearfield', 'httpx2', 'pyarrow'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert "Commands:" in ended.stdout
    assert "loaded []" in ended.stdout


def test_module_runs() -> None:
    command = [sys.executable, "-m", "nearfield_server", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    for name in ("serve", "import", "query", "collections", "optimize", "doctor", "healthcheck", "demo"):
        assert name in ended.stdout
