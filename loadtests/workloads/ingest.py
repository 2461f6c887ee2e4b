"""How fast points go in, what a batch can cost, whether they are found at once, and how queries fare meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from loadtests.drive import OpenLoop
from loadtests.targets.base import Target
from loadtests.workloads.bench import Bench, used

_BATCH = 500
_CHECK_EVERY = 10


@dataclass(frozen=True)
class Phase:
    """One ingest of the whole corpus into an empty collection; ``batch`` None is one call of the client."""

    name: str
    batch: int | None
    asking: bool = False
    optimize: bool = True


_PHASES = (
    Phase(f"batches of {_BATCH}", _BATCH),
    Phase("one call of the client", None, optimize=False),
    Phase(f"batches of {_BATCH}, with queries", _BATCH, asking=True),
)


def run(bench: Bench) -> None:
    """Ingest the corpus in every way, each into a collection of its own."""
    for number, phase in enumerate(_PHASES):
        bench.say(f"ingesting {len(bench.corpus.base):,} points: {phase.name}")
        with bench.started(bench.target, f"ingest-{number}") as target:
            if phase.asking:
                _while_asked(bench, target, phase)
            else:
                _ingest(bench, target, phase)


def _while_asked(bench: Bench, target: Target, phase: Phase) -> None:
    """Queries arrive at a fixed rate, from the first batch on until the index is optimised."""
    queries = bench.corpus.queries

    def ask(number: int) -> None:
        target.query(queries[number % len(queries)], bench.options.k, target.usual)

    with OpenLoop(ask, bench.options.rate) as loop:
        _ingest(bench, target, phase)
    bench.samples.add("background", phase=phase.name, rate=bench.options.rate, latencies=loop.latencies)


def _ingest(bench: Bench, target: Target, phase: Phase) -> None:
    base, attributes = bench.corpus.base, bench.corpus.attributes
    ids = np.arange(len(base))
    size = phase.batch or len(base)
    batches: list[tuple[int, float]] = []
    found: list[tuple[int, bool]] = []
    with used(target) as cost:
        for number, start in enumerate(range(0, len(base), size)):
            part = slice(start, start + size)
            begun = perf_counter()
            target.load(ids[part], base[part], {name: values[part] for name, values in attributes.items()})
            batches.append((len(ids[part]), perf_counter() - begun))
            if number % _CHECK_EVERY == 0 or start + size >= len(base):
                last = int(ids[part][-1])
                found.append((last, _is_found(bench, target, last)))
    bench.samples.add("ingest", phase=phase.name, durable=target.durable, batches=batches, found=found, **cost)
    if phase.optimize:
        begun = perf_counter()
        with used(target) as cost:
            target.optimize(bench.corpus.training)
        took = perf_counter() - begun
        bench.samples.add("optimized", phase=phase.name, seconds=took, facts=target.describe(), **cost)


def _is_found(bench: Bench, target: Target, row: int) -> bool:
    """Whether the point just acknowledged, or one with the very same vector, is the best answer to its own vector."""
    answer = target.query(bench.corpus.base[row], 1, target.thorough).ids[0]
    return bool(answer == row or (answer >= 0 and np.array_equal(bench.corpus.base[answer], bench.corpus.base[row])))
