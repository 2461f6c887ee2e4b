"""Every figure of a report, as a function over raw records; nothing is measured here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import numpy as np

from loadtests.samples import Record

Latency = Sequence[float | str | None]
"""(due, seconds, error or None), as an open loop leaves it."""


def recall(record: Record) -> float:
    """Share of the true neighbours that were found, mean over queries that have any."""
    shares = [right / possible for right, possible in zip(record["right"], record["possible"], strict=True) if possible]
    return float(np.mean(shares)) if shares else float("nan")


def recall_low(record: Record, share: float = 0.05) -> float:
    """The recall that all but this share of the queries reach."""
    shares = [right / possible for right, possible in zip(record["right"], record["possible"], strict=True) if possible]
    return float(np.quantile(shares, share, method="lower")) if shares else float("nan")


def wrong(record: Record) -> int:
    """How many answers named points that do not exist (any more)."""
    return int(sum(record["wrong"]))


def qps(record: Record) -> float:
    """Queries a second: all queries over the time that was spent waiting for answers."""
    return float(record["queries"] / sum(record["seconds"]))


def us(record: Record) -> float:
    """Microseconds of waiting per query."""
    return 1e6 / qps(record)


def cpu_us(record: Record) -> float:
    """Processor microseconds per query; NaN where the system does not tell."""
    return cpu_ms(record) * 1e3


def of_queries(record: Record, chosen: Sequence[int]) -> Record:
    """The part of a record of single queries that is about some of them; what cannot be divided is left out."""
    divided = {key: [record[key][number] for number in chosen] for key in ("seconds", "right", "possible", "wrong")}
    return {"queries": len(chosen), **divided}


def break_even(by_size: Mapping[int, float], single: float) -> int | None:
    """The smallest batch from which on every larger one costs less per query than single queries; None: none does."""
    found = None
    for size in sorted(by_size, reverse=True):
        if by_size[size] >= single:
            break
        found = size
    return found


def percentile_ms(record: Record, percent: float) -> float:
    """A percentile of the latencies of a record's calls, in milliseconds."""
    return percentile(record["seconds"], percent) * 1e3


def percentile(seconds: Sequence[float], percent: float) -> float:
    """A percentile that some call really had (no interpolation); NaN of nothing."""
    return float(np.percentile(seconds, percent, method="higher")) if len(seconds) else float("nan")


def cpu_ms(record: Record) -> float:
    """Processor milliseconds of the target per query; NaN where the system does not tell."""
    return _per_query_ms(record, "cpu_s")


def client_cpu_ms(record: Record) -> float:
    """Processor milliseconds of the asking process per query."""
    return _per_query_ms(record, "client_cpu_s")


def engine_ms(record: Record) -> float:
    """Median of what the target itself says a query took; NaN where it says nothing."""
    return float(median(record["engine_ms"])) if record["engine_ms"] else float("nan")


def middle(records: Sequence[Record]) -> Record:
    """Of repetitions of one setting, the one of median speed (the slower of two)."""
    ordered = sorted(records, key=qps)
    return ordered[(len(ordered) - 1) // 2]


def points_per_second(record: Record) -> float:
    """Points a second of an ingest, over the time spent waiting for acknowledgement."""
    return float(sum(count for count, _ in record["batches"]) / sum(seconds for _, seconds in record["batches"]))


def slowest_batch_ms(record: Record) -> float:
    """The batch that waited longest for its acknowledgement."""
    return max(float(seconds) for _, seconds in record["batches"]) * 1e3


def batch_percentile_ms(record: Record, percent: float) -> float:
    return percentile([seconds for _, seconds in record["batches"]], percent) * 1e3


def found_at_once(record: Record) -> tuple[int, int]:
    """How many of the checked points were found straight after their acknowledgement, of how many."""
    return sum(bool(found) for _, found in record["found"]), len(record["found"])


def answered(latencies: Iterable[Latency], begun: float = 0.0, ended: float = float("inf")) -> list[float]:
    """Seconds of the calls due within a span that were answered."""
    return [float(s or 0.0) for due, s, error in latencies if error is None and begun <= float(due or 0.0) < ended]


def failures(latencies: Iterable[Latency], begun: float = 0.0, ended: float = float("inf")) -> int:
    """How many calls due within a span ended in an error."""
    return sum(error is not None and begun <= float(due or 0.0) < ended for due, _, error in latencies)


def overhead(pairs: Sequence[Record]) -> dict[str, float]:
    """Medians in milliseconds of the overhead workload's pairs.

    ``service`` is REST minus embedded; ``outside`` what of a REST query passes outside its engine; ``paired`` the
    median of the differences, which a drift of the machine does not move.
    """

    def p50(key: str, scale: float) -> float:
        return float(median(pair[key] for pair in pairs)) * scale

    served, embedded = p50("nearfield-rest_s", 1e3), p50("nearfield-embedded_s", 1e3)
    engine = p50("nearfield-rest_engine_ms", 1.0)
    return {
        "rest": served,
        "rest_engine": engine,
        "embedded": embedded,
        "embedded_engine": p50("nearfield-embedded_engine_ms", 1.0),
        "ping": p50("ping_s", 1e3),
        "service": served - embedded,
        "paired": median(pair["nearfield-rest_s"] - pair["nearfield-embedded_s"] for pair in pairs) * 1e3,
        "outside": served - engine,
    }


def overhead_summary(pairs: Sequence[Record]) -> list[str]:
    """The overhead as lines to read."""
    ms = overhead(pairs)
    return [
        f"p50 of a REST query: {ms['rest']:.3f} ms, of which its engine says {ms['rest_engine']:.3f} ms",
        f"p50 of an embedded query: {ms['embedded']:.3f} ms, of which its engine says {ms['embedded_engine']:.3f} ms",
        f"REST minus embedded: {ms['service']:.3f} ms (median of the differences {ms['paired']:.3f} ms)",
        f"REST minus its own engine: {ms['outside']:.3f} ms; the cheapest REST call (GET /v1): {ms['ping']:.3f} ms",
    ]


def _per_query_ms(record: Record, key: str) -> float:
    return float("nan") if record[key] is None else float(record[key]) / float(record["queries"]) * 1e3
