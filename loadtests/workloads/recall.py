"""Recall against speed: every setting of the target, single queries and batches, one client, nothing else going on."""

from __future__ import annotations

from loadtests.drive import OpenLoop
from loadtests.workloads.bench import Bench, setting_name


def run(bench: Bench) -> None:
    """Fill the target once, then ask all queries at every setting; at the usual one also at a fixed rate."""
    with bench.started(bench.target, "recall") as target:
        bench.fill(target)
        for setting in target.settings:
            bench.say(f"asking at {setting_name(setting)}")
            bench.warm(target, setting)
            for repeat in range(bench.options.repeat):
                common = {"setting": dict(setting), "name": setting_name(setting), "repeat": repeat}
                bench.samples.add("setting", mode="single", **common, **bench.singles(target, setting))
                bench.samples.add("setting", mode="batch", **common, **bench.batches(target, setting))
        _at_a_rate(bench)


def _at_a_rate(bench: Bench) -> None:
    """Open loop: latency from when a query was due, at the target's usual setting."""
    target, queries, options = bench.target, bench.corpus.queries, bench.options
    bench.say(f"asking {options.rate:g} times a second at {setting_name(target.usual)}")

    def ask(number: int) -> None:
        target.query(queries[number], options.k, target.usual, options.where)

    with OpenLoop(ask, options.rate, count=min(len(queries), int(10 * options.rate))) as loop:
        loop.wait()
    bench.samples.add("open_loop", rate=options.rate, name=setting_name(target.usual), latencies=loop.latencies)
