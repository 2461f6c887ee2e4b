"""Does recall last? A script of deletions and replacements, with queries going on, judged against exact recomputation.

A runbook is a list of steps: ``{"do": "delete", "share": 0.1}`` takes that share of the living points away,
``{"do": "upsert", "share": 0.1}`` writes that share of all ids anew (dead ones come back), ``{"do": "optimize"}``,
``{"do": "measure"}``. Vectors are only ever exchanged among ids, so the points stay real data without duplicates.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import orjson

from loadtests.drive import OpenLoop
from loadtests.targets.base import Target
from loadtests.truth import nearest
from loadtests.workloads.bench import Bench, Options

Step = dict[str, Any]

_MEASURED = 300
_SEED = 7


def run(bench: Bench) -> None:
    """Load everything, then carry out the runbook while queries arrive at a fixed rate."""
    target, queries, options = bench.target, bench.corpus.queries, bench.options
    world = World(bench)

    def ask(number: int) -> None:
        target.query(queries[number % len(queries)], options.k, target.usual)

    with bench.started(target, "churn"):
        bench.fill(target)
        bench.warm(target, target.usual)
        with OpenLoop(ask, options.rate) as loop:
            for number, step in enumerate(runbook(options)):
                bench.say(f"step {number}: {step['do']} {step.get('share', '')}")
                begun = loop.now
                start = perf_counter()
                touched = world.carry_out(step, target)
                took = perf_counter() - start
                told = world.measure(target) if step["do"] == "measure" else {}
                bench.samples.add(
                    "step",
                    number=number,
                    step=step,
                    touched=touched,
                    took_s=took,
                    begun=begun,
                    ended=loop.now,
                    living=int(world.alive.sum()),
                    **{"rss_bytes": target.usage().rss_bytes, **told},
                )
        bench.samples.add("background", rate=options.rate, latencies=loop.latencies, facts=target.describe())


def runbook(options: Options) -> list[Step]:
    """The steps from a JSON file, or rounds of deleting and replacing, measured after each."""
    if options.runbook is not None:
        steps: list[Step] = orjson.loads(options.runbook.read_bytes())
        return steps
    one: list[Step] = [
        {"do": "delete", "share": options.delete},
        {"do": "measure"},
        {"do": "upsert", "share": options.upsert},
        {"do": "measure"},
    ]
    return [{"do": "measure"}, *(one * options.rounds), {"do": "optimize"}, {"do": "measure"}]


class World:
    """What the target ought to hold: a vector per id and whether it lives."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._random = np.random.default_rng(_SEED)
        self.vectors = bench.corpus.base.copy()
        self.alive = np.ones(len(self.vectors), dtype=bool)

    def carry_out(self, step: Step, target: Target) -> int:
        """Do one step to the target and to the model; how many points it touched. Raises ValueError."""
        match step["do"]:
            case "delete":
                ids = self._chosen(np.flatnonzero(self.alive), step["share"])
                target.delete(ids)
                self.alive[ids] = False
                return len(ids)
            case "upsert":
                ids = self._chosen(np.arange(len(self.alive)), step["share"])
                vectors = self.vectors[self._random.permutation(ids)]
                attributes = {name: values[ids] for name, values in self._bench.corpus.attributes.items()}
                target.load(ids, vectors, attributes)
                self.vectors[ids], self.alive[ids] = vectors, True
                return len(ids)
            case "optimize":
                target.optimize()
                return 0
            case "measure":
                return 0
        raise ValueError(f"a runbook knows delete, upsert, optimize and measure, not {step['do']!r}")

    def measure(self, target: Target) -> dict[str, Any]:
        """Recall and latency now, at the target's usual setting."""
        queries = self._bench.corpus.queries[:_MEASURED]
        truth = nearest(self.vectors, queries, self._bench.options.k, self._bench.corpus.metric, alive=self.alive)
        return self._bench.singles(
            target, target.usual, base=self.vectors, truth=truth, alive=self.alive, count=_MEASURED
        )

    def _chosen(self, ids: np.ndarray, share: float) -> np.ndarray:
        count = round(share * len(ids))
        return np.sort(self._random.choice(ids, size=count, replace=False))
