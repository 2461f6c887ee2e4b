"""The command line: names, options and help. What a command does, and all it imports, is in ``commands/``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Nearfield: a vector search engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[Path | None, typer.Option(help="TOML file with settings [env: NEARFIELD_CONFIG].")]
Url = Annotated[str, typer.Option(envvar="NEARFIELD_URL", help="Server to talk to.")]
ApiKey = Annotated[str | None, typer.Option(envvar="NEARFIELD_API_KEY", help="Key for that server.")]
Data = Annotated[Path | None, typer.Option(help="Open this data directory in process instead.")]
Collection = Annotated[str, typer.Argument(help="Name of the collection.")]

HERE = "http://127.0.0.1:7333"


@app.command()
def serve(
    data: Annotated[Path | None, typer.Option(help="Data directory [default: ./data].")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [default: 7333].")] = None,
    config: Config = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond loopback without any key.")] = False,
) -> None:
    """Serve a data directory over HTTP. Each option is also NEARFIELD_<OPTION> and a key of the TOML file."""
    from nearfield_server.commands.serve import run

    run(config, data=data, host=host, port=port, insecure=insecure or None)


@app.command("import")
def import_file(
    collection: Collection,
    file: Annotated[Path, typer.Argument(help="Parquet, JSON lines, CSV, npz or npy; .gz of text is read too.")],
    vector: Annotated[str | None, typer.Option(help="Column of the vectors [default: found by its type].")] = None,
    id_column: Annotated[
        str | None, typer.Option("--id", help="Column of the ids [default: id, or row numbers].")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Column of the text a reranker reads.")] = None,
    vectors: Annotated[Path | None, typer.Option(help="npy file with one vector per row of FILE.")] = None,
    metric: Annotated[str, typer.Option(help="cosine, dot or l2; where the collection is made here.")] = "cosine",
    url: Url = HERE,
    api_key: ApiKey = None,
    data: Data = None,
) -> None:
    """Write a file into a collection, which is made if missing. All other columns become attributes."""
    from nearfield_server.commands.batches import Columns
    from nearfield_server.commands.importing import run
    from nearfield_server.commands.target import Target

    columns = Columns(vector=vector, id=id_column, text=text)
    run(Target(url, api_key, data), collection, file, columns, vectors=vectors, metric=metric)


@app.command()
def query(
    collection: Collection,
    vector: Annotated[str | None, typer.Option(help="JSON list of numbers, or @file.npy.")] = None,
    point: Annotated[str | None, typer.Option("--id", help="Search with the vector of this point.")] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="How many hits.")] = 10,
    where: Annotated[str | None, typer.Option("--filter", help="Filter as JSON.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every point.")] = False,
    recall: Annotated[float | None, typer.Option(help="Share of true neighbours to aim at.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    url: Url = HERE,
    api_key: ApiKey = None,
    data: Data = None,
) -> None:
    """Search a collection."""
    from nearfield_server.commands.querying import Question, run
    from nearfield_server.commands.target import Target

    question = Question(vector=vector, point=point, k=k, where=where, exact=exact, recall=recall)
    run(Target(url, api_key, data), collection, question, as_json=as_json)


@app.command()
def collections(url: Url = HERE, api_key: ApiKey = None, data: Data = None) -> None:
    """List collections with their counts and sizes."""
    from nearfield_server.commands.collections import run
    from nearfield_server.commands.target import Target

    run(Target(url, api_key, data))


@app.command()
def optimize(
    collection: Collection,
    workload: Annotated[
        Path | None, typer.Option(help="Filters to lay rows out for: JSON lines, one a query [default: those asked].")
    ] = None,
    url: Url = HERE,
    api_key: ApiKey = None,
    data: Data = None,
) -> None:
    """Index everything written so far, lay rows out for the filters asked, and wait for it."""
    from nearfield_server.commands.optimize import run
    from nearfield_server.commands.target import Target

    run(Target(url, api_key, data), collection, workload)


@app.command()
def doctor(
    path: Annotated[Path, typer.Argument(help="Data directory; no server may be using it.")],
    repair: Annotated[bool, typer.Option("--repair", help="Rebuild what can be rebuilt.")] = False,
) -> None:
    """Check a data directory. Exit code 1: something is wrong; 3: another process holds it."""
    from nearfield_server.commands.doctor import run

    run(path, repair=repair)


@app.command()
def healthcheck(url: Url = HERE) -> None:
    """Ask a server whether it is ready, for container health checks. Exit code 0 or 1."""
    from nearfield_server.commands.healthcheck import run

    run(url)


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="Keep the demo's data here [default: temporary].")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the demo's server [default: 7333, or a free one].")] = None,
    check: Annotated[bool, typer.Option("--check", help="End after the queries; exit code 1 if one misses.")] = False,
) -> None:
    """Load sample data into a real server, search it in several ways, and leave it running."""
    from nearfield_server.commands.demo import run

    run(data=data, port=port, check=check)
