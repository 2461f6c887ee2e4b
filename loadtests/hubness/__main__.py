"""``python -m loadtests.hubness recall|cost|sweep|fit|poison``: Markdown on standard output."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from loadtests.hubness import cost, fit, poison, recall, sets


def main(arguments: list[str] | None = None) -> int:
    """Run one measurement over the named sets."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.hubness", description=__doc__)
    parser.add_argument("what", choices=["recall", "cost", "sweep", "fit", "poison"])
    parser.add_argument(
        "sets", nargs="*", help=f"recall, poison: {', '.join(sets.names())}; cost, sweep, fit: german, short, fashion"
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("NEARFIELD_TEST_DATA"))
    parser.add_argument("--place", type=Path, help="where to keep the collections meanwhile")
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--kind", default="auto", help="index kind of the collection")
    parser.add_argument("--single", action="store_true", help="one query at a time, so that graphs are used")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--method", default="sinkhorn")
    parser.add_argument(
        "--metric", default="cosine", choices=["cosine", "dot", "l2"], help="poison: lengths count, too"
    )
    parser.add_argument("--folds", type=int, default=4, help="poison: parts that are held back in turn")
    given = parser.parse_args(arguments)
    data = None if given.data is None else Path(given.data)
    chosen = given.sets or (
        ["german", "short", "fashion"] if given.what in ("cost", "sweep", "fit") else [*sets.names()]
    )
    for name in chosen:
        for line in _report(given, name, data):
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return 0


def _report(given: argparse.Namespace, name: str, data: Path | None) -> list[str]:
    if given.what in ("cost", "sweep", "fit"):
        views = sets.built_in() if name == "built-in" else sets.large(name, Path(data or ""))
        if given.what == "sweep":
            efforts = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)
            return cost.sweep(views, efforts=efforts, queries=given.queries, method=given.method, place=given.place)
        if given.what == "fit":
            return fit.run(views, method=given.method, place=given.place)
        return cost.run(views, targets=(0.95, 0.99), queries=given.queries, method=given.method, place=given.place)
    views = sets.load(name, data)
    if given.what == "recall":
        return recall.run(views, recall=given.recall, kind=given.kind, single=given.single, place=given.place)
    shares = (0.0001, 0.001, 0.01)
    return poison.run(views, shares=shares, place=given.place, metric=given.metric, folds=given.folds)


if __name__ == "__main__":
    sys.exit(main())
