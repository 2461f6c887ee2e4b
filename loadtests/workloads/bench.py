"""What every workload is given, and the measurements that several of them make."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtests.corpora import Corpus
from loadtests.drive import one_by_one
from loadtests.samples import Samples
from loadtests.targets.base import Answer, Setting, Target, Where
from loadtests.targets.process import usage_of
from loadtests.truth import judged

_WARM_UP = 50


@dataclass(frozen=True)
class Options:
    """Numbers of a run; see ``python -m loadtests run --help``."""

    k: int = 10
    batch: int = 100
    repeat: int = 1
    rate: float = 20.0
    rounds: int = 3
    delete: float = 0.1
    upsert: float = 0.1
    runbook: Path | None = None
    where: Where = None
    recall: float = 0.95
    shapes: tuple[str, ...] = ("random", "clusters")
    mixes: tuple[str, ...] = ("given", "drift", "uncorrelated")
    quick: bool = False
    plans: tuple[str, ...] = ()
    selectivity: tuple[float, ...] = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Bench:
    """A target and a corpus to measure it with; ``work`` is a directory for the target's data."""

    target: Target
    corpus: Corpus
    samples: Samples
    options: Options
    work: Path
    say: Callable[[str], None]

    @contextmanager
    def started(self, target: Target, name: str) -> Iterator[Target]:
        """A target with an empty collection in a directory of its own, both gone afterwards."""
        directory = self.work / name
        directory.mkdir()
        try:
            target.start(directory, dim=self.corpus.base.shape[1], metric=self.corpus.metric)
            yield target
        finally:
            target.stop()
            shutil.rmtree(directory)

    def fill(self, target: Target) -> None:
        """Load and optimise the whole corpus, and tell what that took."""
        self.say(f"loading {len(self.corpus.base):,} points")
        start = perf_counter()
        target.load(np.arange(len(self.corpus.base)), self.corpus.base, self.corpus.attributes)
        loaded = perf_counter()
        self.say("optimising")
        target.optimize(self.corpus.training)
        self.samples.add(
            "filled",
            target=target.name,
            points=len(self.corpus.base),
            load_s=loaded - start,
            optimize_s=perf_counter() - loaded,
            facts=target.describe(),
            **_memory(target),
        )

    def warm(self, target: Target, setting: Setting) -> None:
        """Ask some training queries, so that no sample pays for what only the first calls pay."""
        rows = self.corpus.training if len(self.corpus.training) else self.corpus.queries
        for row in rows[: min(_WARM_UP, len(self.corpus.queries))]:
            target.query(row, self.options.k, setting, self.options.where)

    def singles(
        self,
        target: Target,
        setting: Setting,
        *,
        base: NDArray[np.float32] | None = None,
        truth: NDArray[np.int64] | None = None,
        alive: NDArray[np.bool_] | None = None,
        count: int | None = None,
    ) -> dict[str, Any]:
        """Ask the queries one by one and judge the answers; what is not given is the corpus's own."""
        queries = self.corpus.queries[:count]
        answers: list[Answer] = []

        def ask(number: int) -> None:
            answers.append(target.query(queries[number], self.options.k, setting, self.options.where))

        with used(target) as cost:
            seconds = one_by_one(ask, len(queries))
        ids = np.stack([answer.ids for answer in answers])
        right = judged(
            self.corpus.base if base is None else base,
            queries,
            ids,
            self._truth(truth)[: len(queries), : self.options.k],
            self.corpus.metric,
            alive=alive,
        )
        told = [answer.ms for answer in answers if answer.ms is not None]
        return {"queries": len(queries), "k": self.options.k, "seconds": seconds, "engine_ms": told, **cost, **right}

    def batches(self, target: Target, setting: Setting) -> dict[str, Any]:
        """Ask all queries in batches and judge the answers."""
        queries, size = self.corpus.queries, self.options.batch
        starts = range(0, len(queries), size)
        answers: list[NDArray[np.int64]] = []

        def ask(number: int) -> None:
            rows = queries[starts[number] : starts[number] + size]
            answers.append(target.query_batch(rows, self.options.k, setting, self.options.where))

        with used(target) as cost:
            seconds = one_by_one(ask, len(starts))
        truth = self._truth(None)[:, : self.options.k]
        right = judged(self.corpus.base, queries, np.concatenate(answers), truth, self.corpus.metric)
        return {
            "queries": len(queries),
            "k": self.options.k,
            "batch": size,
            "seconds": seconds,
            "engine_ms": [],
            **cost,
            **right,
        }

    def _truth(self, given: NDArray[np.int64] | None) -> NDArray[np.int64]:
        truth = self.corpus.truth if given is None else given
        if truth is None:
            raise ValueError("the corpus has no truth")
        return truth


@contextmanager
def used(target: Target) -> Iterator[dict[str, Any]]:
    """Processor seconds of the target and of this process within the block, and the target's memory after it."""
    cost: dict[str, Any] = {}
    before, mine = target.usage().cpu_s, usage_of().cpu_s
    yield cost
    after, mine_after = target.usage().cpu_s, usage_of().cpu_s
    cost["cpu_s"] = None if before is None or after is None else after - before
    cost["client_cpu_s"] = None if mine is None or mine_after is None else mine_after - mine
    cost |= _memory(target)


def setting_name(setting: Mapping[str, Any]) -> str:
    """A setting as a label: ``recall 0.95``, ``exact``, ``ef 64``."""
    words = [name if value is True else f"{name} {value}" for name, value in setting.items()]
    return ", ".join(words) or "default"


def _memory(target: Target) -> dict[str, Any]:
    return {"rss_bytes": target.usage().rss_bytes}
