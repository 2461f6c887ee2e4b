"""What ``/metrics`` tells: the names, their registry, and the engine's own counters read at each scrape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nearfield_server.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
KNOWN_METHODS = frozenset({"GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class QueueGauge(Protocol):
    """What the metrics need to know of a lane of requests."""

    name: Any

    @property
    def waiting(self) -> int: ...


class Metrics:
    """All counters of one service in a registry of its own, so that several services fit in one process."""

    def __init__(self, engine: Engine, version: str, lanes: Iterable[QueueGauge]) -> None:
        # a line more for every series, which nothing here reads
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "nearfield_http_requests_total",
            "Answered requests",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "nearfield_request_seconds",
            "Time from the first header to the end of the reply",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        searches = Histogram(
            "nearfield_search_seconds",
            "Time of a query by stage: waiting for a permit, parsing, searching, writing the reply",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.search_wait = searches.labels("queue")
        self.search_parse = searches.labels("parse")
        self.search_engine = searches.labels("engine")
        self.search_encode = searches.labels("encode")
        depth = Gauge(
            "nearfield_queue_depth",
            "Requests let in that are not yet at work",
            ["lane"],
            registry=self.registry,
        )
        for lane in lanes:
            depth.labels(lane.name).set_function(lambda lane=lane: lane.waiting)  # type: ignore[misc]
        build = Gauge("nearfield_build_info", "Version of the running service", ["version"], registry=self.registry)
        build.labels(version).set(1)
        self.registry.register(EngineCollector(engine))
        ProcessCollector(registry=self.registry)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        known = method if method in KNOWN_METHODS else "other"
        self._requests.labels(route, known, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """The Prometheus text of this moment; asks the engine, so call it in a thread."""
        return generate_latest(self.registry)


class EngineCollector(Collector):
    """The engine's statistics as metric families; read when scraped, never in between."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        """Nothing: without this the registry would ask the engine at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        collections = stats["collections"]
        yield from _per_name(_COLLECTION, "collection", ((c["name"], c) for c in collections))
        bytes_by_part = GaugeMetricFamily(
            "nearfield_index_bytes", "Bytes on disk by part", labels=["collection", "part"]
        )
        for collection in collections:
            for part, size in collection["bytes"].items():
                bytes_by_part.add_metric([collection["name"], part], float(size))
        yield bytes_by_part
        yield _recall(collections)
        yield from _per_name(_HUBNESS, "collection", ((c["name"], c["hubness"]) for c in collections))
        jobs = GaugeMetricFamily("nearfield_jobs", "Jobs by state", labels=["state"])
        for state in ("running", "queued"):
            jobs.add_metric([state], float(stats["jobs"][state]))
        yield jobs
        yield from _per_name(_SCORER, "scorer", ((each["name"], each) for each in stats.get("scorers", [])))
        if devices := stats.get("devices"):
            yield from _per_name(_DEVICE, "device", ((d["name"], d | {"up": d["state"] == "ready"}) for d in devices))
        yield GaugeMetricFamily("nearfield_collections", "Collections", value=float(len(collections)))


_Family = tuple[str, type[GaugeMetricFamily] | type[CounterMetricFamily], str, str]

_COLLECTION: tuple[_Family, ...] = (
    ("points", GaugeMetricFamily, "nearfield_points", "Points alive"),
    ("segments", GaugeMetricFamily, "nearfield_segments", "Segments that a query reads"),
    ("tail_points", GaugeMetricFamily, "nearfield_tail_points", "Points in memory, not yet in a segment"),
    ("sequence", GaugeMetricFamily, "nearfield_sequence", "Number of the last change"),
    ("queries", CounterMetricFamily, "nearfield_queries", "Queries answered"),
    ("distances", CounterMetricFamily, "nearfield_distance_computations", "Distances computed"),
    ("exact_rows", CounterMetricFamily, "nearfield_exact_rows", "Rows scanned exactly"),
)
_SCORER: tuple[_Family, ...] = (
    ("calls", CounterMetricFamily, "nearfield_scorer_calls", "Calls of a scorer"),
    ("pairs", CounterMetricFamily, "nearfield_scorer_pairs", "Pairs sent to a scorer"),
    ("failures", CounterMetricFamily, "nearfield_scorer_failures", "Calls of a scorer that failed, wholly or in part"),
)
_DEVICE: tuple[_Family, ...] = (
    ("up", GaugeMetricFamily, "nearfield_device_up", "1 while the device answers; while it does not, the CPU does"),
    ("failures", CounterMetricFamily, "nearfield_device_failures", "Calls of the device that failed"),
    ("calls", CounterMetricFamily, "nearfield_device_calls", "Searches run on the device, joined ones once"),
    ("queries", CounterMetricFamily, "nearfield_device_queries", "Queries answered with the device"),
    ("waiting", GaugeMetricFamily, "nearfield_device_waiting", "Searches that wait for the device"),
    ("bytes", GaugeMetricFamily, "nearfield_device_bytes", "Bytes taken on the device"),
    ("most_bytes", GaugeMetricFamily, "nearfield_device_most_bytes", "Bytes that may be taken on the device"),
)
_HUBNESS: tuple[_Family, ...] = (
    ("normalised", CounterMetricFamily, "nearfield_normalised_queries", "Queries answered with a hubness bias"),
    ("flagged", CounterMetricFamily, "nearfield_hub_alerts", "New points far above the collection's hub scores"),
    ("quarantined", GaugeMetricFamily, "nearfield_quarantined_points", "Points kept out of results"),
)


def _per_name(
    families: Sequence[_Family], label: str, figures: Iterable[tuple[str, Mapping[str, Any]]]
) -> Iterator[Metric]:
    """Every family with a value for each name that has one."""
    held = list(figures)
    for key, family, name, text in families:
        metric = family(name, text, labels=[label])
        for owner, values in held:
            if key in values:
                metric.add_metric([owner], float(values[key]))
        yield metric


def _recall(collections: Iterable[Mapping[str, Any]]) -> Metric:
    """Recall measured on sampled live queries, by plan and selectivity bucket."""
    metric = GaugeMetricFamily(
        "nearfield_recall_estimate",
        "Recall of live queries, sampled and answered again exactly",
        labels=["collection", "plan", "selectivity"],
    )
    for collection in collections:
        for bucket in collection["recall"]:
            metric.add_metric([collection["name"], bucket["plan"], bucket["selectivity"]], bucket["recall"])
    return metric
