"""What the service adds to a single query: the same queries over REST and embedded, taking turns in one run."""

from __future__ import annotations

from time import perf_counter

from loadtests.metrics import overhead_summary
from loadtests.samples import Record
from loadtests.targets.nearfield_embedded import NearfieldEmbedded
from loadtests.targets.nearfield_rest import NearfieldRest
from loadtests.workloads.bench import Bench


def run(bench: Bench) -> None:
    """Fill both with the same data, ask each query of both, and say how their medians differ."""
    served, embedded = NearfieldRest(), NearfieldEmbedded()
    pairs: list[Record] = []
    k, where = bench.options.k, bench.options.where
    with bench.started(served, "served"), bench.started(embedded, "embedded"):
        for target in (served, embedded):
            bench.fill(target)
            bench.warm(target, target.usual)
        bench.say(f"asking {len(bench.corpus.queries):,} queries of both")
        for number, query in enumerate(bench.corpus.queries):
            record: Record = {}
            # whoever goes second finds the caches warm, so they take turns at that too
            for target in (served, embedded) if number % 2 else (embedded, served):
                start = perf_counter()
                answer = target.query(query, k, target.usual, where)
                record[f"{target.name}_s"] = perf_counter() - start
                record[f"{target.name}_engine_ms"] = answer.ms
            start = perf_counter()
            served.ping()
            record["ping_s"] = perf_counter() - start
            bench.samples.add("pair", query=number, **record)
            pairs.append(record)
    for line in overhead_summary(pairs):
        bench.say(line)
