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


def _version(asked: bool) -> None:
    if asked:
        from nearfield_index.version import VERSION

        typer.echo(f"nearfield {VERSION}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """Nearfield: a vector search engine."""


@app.command()
def serve(
    data: Annotated[Path | None, typer.Option(help="Data directory [default: ./data].")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [default: 7333].")] = None,
    config: Config = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond loopback without any key.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N [default: auto].")] = None,
) -> None:
    """Serve a data directory over HTTP. Each option is also NEARFIELD_<OPTION> and a key of the TOML file."""
    from nearfield_server.commands.serve import run

    run(config, data=data, host=host, port=port, insecure=insecure or None, device=device)


@app.command("import")
def import_file(
    collection: Collection,
    file: Annotated[Path, typer.Argument(help="Parquet, JSON lines, CSV, npz or npy; .gz of text is read too.")],
    vector: Annotated[
        str | None, typer.Option(help="Column of the vectors [default: vector, or the only one that holds such].")
    ] = None,
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
    rerank: Annotated[
        str | None,
        typer.Option(help='Search under a scorer, as JSON: {"scorer": "relevance", "query": "text", "budget": 100}.'),
    ] = None,
    field: Annotated[str | None, typer.Option(help="Vector field.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    url: Url = HERE,
    api_key: ApiKey = None,
    data: Data = None,
) -> None:
    """Search a collection."""
    from nearfield_server.commands.querying import Question, run
    from nearfield_server.commands.target import Target

    question = Question(vector, point, k, where, exact, recall, rerank, field)
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


reranker = typer.Typer(help="Rerankers: what a scorer thinks of all points.", no_args_is_help=True)
app.add_typer(reranker, name="reranker")
Reranker = Annotated[str, typer.Argument(help="Name of the reranker.")]


@reranker.command("fit")
def fit_reranker(
    collection: Collection,
    name: Reranker,
    scorer: Annotated[str, typer.Option(help="Scorer of the server's configuration.")],
    log: Annotated[int | None, typer.Option(help="So many anchor queries of those seen so far.")] = None,
    anchors: Annotated[
        Path | None, typer.Option(help="Parquet file of anchor queries with columns text and vector.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="Choose so many of the file's queries.")] = None,
    field: Annotated[str | None, typer.Option(help="Vector field.")] = None,
    cost: Annotated[bool, typer.Option("--cost", help="Only tell what it would cost.")] = False,
    url: Url = HERE,
    api_key: ApiKey = None,
) -> None:
    """Score all points under anchor queries and wait for it; without --log or --anchors go on with those it has."""
    from nearfield_server.commands.rerankers import fit
    from nearfield_server.commands.target import Target

    fit(Target(url, api_key), collection, name, scorer, log=log, anchors=anchors, count=count, field=field, cost=cost)


@reranker.command("show")
def show_reranker(collection: Collection, url: Url = HERE, api_key: ApiKey = None) -> None:
    """Show the rerankers of a collection: state, calls, cost."""
    from nearfield_server.commands.rerankers import show
    from nearfield_server.commands.target import Target

    show(Target(url, api_key), collection)


@reranker.command("drop")
def drop_reranker(collection: Collection, name: Reranker, url: Url = HERE, api_key: ApiKey = None) -> None:
    """Delete a reranker and everything that was scored for it."""
    from nearfield_server.commands.rerankers import drop
    from nearfield_server.commands.target import Target

    drop(Target(url, api_key), collection, name)


@reranker.command("pairs")
def export_pairs(
    collection: Collection,
    file: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    name: Annotated[
        str | None, typer.Option("--reranker", help="Pairs of its anchor queries, not those of queries.")
    ] = None,
    url: Url = HERE,
    api_key: ApiKey = None,
    data: Data = None,
) -> None:
    """Write scored pairs of queries and points to Parquet, to train a smaller model on."""
    from nearfield_server.commands.rerankers import export
    from nearfield_server.commands.target import Target

    export(Target(url, api_key, data), collection, file, name)


hubness = typer.Typer(help="Hubness normalisation: fit, report, drop, release.", no_args_is_help=True)
app.add_typer(hubness, name="hubness")


@hubness.command("fit")
def hubness_fit(
    collection: Collection,
    bank: Annotated[Path | None, typer.Option(help="npy file with queries, one a row.")] = None,
    log: Annotated[int | None, typer.Option(help="So many of the live queries instead (switches the log on).")] = None,
    pairs: Annotated[Path | None, typer.Option(help="npz file with vectors and the ids that answer them.")] = None,
    method: Annotated[str, typer.Option(help="auto, is, dual_is, nnn, csls or sinkhorn.")] = "auto",
    strength: Annotated[float | None, typer.Option(help="Of that method; chosen by trial by default.")] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Normalise only queries whose raw best hit is a known one.")
    ] = False,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="Keep new hubs from results.")] = False,
    field: Annotated[str | None, typer.Option(help="Vector field.")] = None,
    url: Url = HERE,
    api_key: ApiKey = None,
    data: Data = None,
) -> None:
    """Fit a normalisation on a bank of queries, and say whether it helps."""
    from nearfield_server.commands.hubness import Asked, fit
    from nearfield_server.commands.target import Target

    asked = Asked(bank, log, pairs, method, strength, gate, quarantine, field)
    fit(Target(url, api_key, data), collection, asked)


@hubness.command("report")
def hubness_report(
    collection: Collection,
    plot: Annotated[Path | None, typer.Option(help="Draw the report into this file (.png, .svg, .pdf).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    field: Annotated[str | None, typer.Option(help="Vector field.")] = None,
    url: Url = HERE,
    api_key: ApiKey = None,
    data: Data = None,
) -> None:
    """Show hubness and recall before and after, and the top hubs."""
    from nearfield_server.commands.hubness import report
    from nearfield_server.commands.target import Target

    report(Target(url, api_key, data), collection, field=field, as_json=as_json, plot=plot)


@hubness.command("drop")
def hubness_drop(collection: Collection, url: Url = HERE, api_key: ApiKey = None, data: Data = None) -> None:
    """Search without normalisation again."""
    from nearfield_server.commands.hubness import drop
    from nearfield_server.commands.target import Target

    drop(Target(url, api_key, data), collection)


@hubness.command("release")
def hubness_release(
    collection: Collection,
    ids: Annotated[list[str], typer.Argument(help="Ids of points.")],
    url: Url = HERE,
    api_key: ApiKey = None,
    data: Data = None,
) -> None:
    """Let points out of the hub monitor's quarantine."""
    from nearfield_server.commands.hubness import release
    from nearfield_server.commands.target import Target

    release(Target(url, api_key, data), collection, ids)


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
