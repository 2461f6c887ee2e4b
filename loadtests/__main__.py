"""``python -m loadtests run WORKLOAD ..`` writes samples, ``python -m loadtests report DIR`` makes a report of them."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from loadtests import corpora, report, targets
from loadtests.samples import Samples, command
from loadtests.workloads import WORKLOADS, batch, gpu, hybrid
from loadtests.workloads.bench import Bench, Options, setting_name

_ONE_THREAD = {
    "hybrid": {"OPENBLAS_NUM_THREADS": "1"},
    "batch": {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    "layout": {"OPENBLAS_NUM_THREADS": "1"},
}
"""Workloads that compare on one thread: libraries read these once, when they are loaded.

Never OMP_THREAD_LIMIT: the BLAS inside FAISS waits for ever for a thread that it is not given."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    given = _parser().parse_args(arguments)
    try:
        return _run(given) if given.command == "run" else _report(given)
    except (ValueError, FileNotFoundError) as failure:
        sys.stderr.write(f"{failure}\n")
        return 2


def _run(given: argparse.Namespace) -> int:
    where = tuple(given.where.split("=", 1)) if given.where else None
    if where is not None and len(where) != 2:
        raise ValueError("--where is attribute=value")
    target = targets.make(given.target)
    corpus = corpora.load(given.dataset, data=given.data, limit=given.limit, queries=given.queries, where=where)
    options = Options(
        k=given.k,
        batch=given.batch,
        repeat=given.repeat,
        rate=given.rate,
        rounds=given.rounds,
        delete=given.delete,
        upsert=given.upsert,
        runbook=given.runbook,
        where=None if where is None else corpora.typed(corpus, *where),
        recall=given.recall,
        shapes=tuple(given.shapes),
        mixes=tuple(given.mixes),
        selectivity=tuple(given.selectivity),
        quick=given.quick,
        plans=tuple(given.plans),
    )
    name = f"{given.workload}-{corpus.name}-{target.name}-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 1000:03}"
    header = {
        "workload": given.workload,
        "target": target.name,
        "dataset": corpus.name,
        "metric": corpus.metric,
        "points": len(corpus.base),
        "dim": corpus.base.shape[1],
        "queries": len(corpus.queries),
        "training": len(corpus.training),
        "usual": setting_name(target.usual),
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "command": command(),
        "threads": {name: os.environ.get(name) for name in _ONE_THREAD["batch"]},
    }
    if given.work is not None:
        given.work.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="nearfield-load-", dir=given.work) as work,
        Samples(given.out / f"{name}.jsonl", header) as samples,
    ):
        WORKLOADS[given.workload](Bench(target, corpus, samples, options, Path(work), _say))
    _say(f"samples in {samples.path}")
    return 0


def _report(given: argparse.Namespace) -> int:
    _say(f"report in {report.write(given.directory)}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure one target with one workload on one data set")
    run.add_argument("workload", choices=list(WORKLOADS))
    run.add_argument("--target", choices=targets.names(), default="nearfield-rest", help="default: %(default)s")
    run.add_argument("--dataset", default="clustered-20000x64", help=f"one of {', '.join(corpora.names())}")
    run.add_argument("--data", type=Path, help=f"directory of the real data sets (or {corpora.DATA_VARIABLE})")
    run.add_argument("--out", type=Path, default=Path("results"), help="where samples go (default: %(default)s)")
    run.add_argument("--work", type=Path, help="where the target keeps its data meanwhile (default: a temporary place)")
    run.add_argument("--limit", type=int, help="only so many base rows; their truth is computed anew")
    run.add_argument("--queries", type=int, default=1_000, help="so many queries (default: %(default)s)")
    run.add_argument("--where", metavar="NAME=VALUE", help="filter every query (recall, overhead)")
    run.add_argument("--k", type=int, default=Options.k)
    run.add_argument("--batch", type=int, default=Options.batch, help="queries in one batch (default: %(default)s)")
    run.add_argument(
        "--repeat", type=int, default=Options.repeat, help="times each setting is measured (recall, hybrid, batch)"
    )
    run.add_argument("--rate", type=float, default=Options.rate, help="queries a second of open loops")
    run.add_argument("--rounds", type=int, default=Options.rounds, help="rounds of churn")
    run.add_argument("--delete", type=float, default=Options.delete, help="share deleted in a round of churn")
    run.add_argument("--upsert", type=float, default=Options.upsert, help="share written anew in a round of churn")
    run.add_argument("--runbook", type=Path, help="a JSON list of steps in place of the rounds (churn)")
    run.add_argument(
        "--recall", type=float, default=Options.recall, help="target (hybrid, batch; default: %(default)s)"
    )
    run.add_argument(
        "--shapes", nargs="+", choices=hybrid.SHAPES, default=Options.shapes, help="kinds of filters (hybrid)"
    )
    run.add_argument(
        "--selectivity", nargs="+", type=float, default=Options.selectivity, help="shares of rows that pass (hybrid)"
    )
    run.add_argument("--mixes", nargs="+", choices=batch.MIXES, default=Options.mixes, help="which workloads (batch)")
    run.add_argument("--quick", action="store_true", help="fewer batches and filters, a minute or two (gpu)")
    run.add_argument("--plans", nargs="+", choices=gpu.PLANS, default=gpu.PLANS, help="which plans (gpu)")
    made = commands.add_parser("report", help="tables and figures of all samples below a directory")
    made.add_argument("directory", type=Path)
    return parser


def _in_one_thread(arguments: Sequence[str]) -> None:
    """Start this program anew with the environment that its workload needs, unless it has that already."""
    wanted = _ONE_THREAD.get(arguments[1], {}) if arguments[:1] == ["run"] and len(arguments) > 1 else {}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, "-m", "loadtests", *arguments], os.environ | wanted)


if __name__ == "__main__":
    _in_one_thread(sys.argv[1:])
    sys.exit(main())
