"""GET /metrics: what the engine's meters and the server's own counters say, in Prometheus' text format.

Names follow vLLM's, with our prefix, so that existing dashboards need one replacement. Labels come from closed lists
only: services, finish reasons, known routes, methods and statuses.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from diastole.serve.interface import Backend

log = logging.getLogger("diastole.serve")

TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATS_SECONDS = 5.0  # for the engine to answer

# Counters and gauges of Meter: name there, name here, help.
COUNTERS = (
    ("prompt_tokens", "Prompt tokens of requests taken in."),
    ("generation_tokens", "Tokens generated."),
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    ("preemptions", "Streams that gave their pages back to let older ones go on."),
    ("steps", "Engine steps."),
)
RENAMED = {"preemptions": "num_preemptions"}
GAUGES = (
    ("num_requests_running", "Streams that hold state."),
    ("num_requests_waiting", "Streams that wait for room."),
    ("kv_cache_usage_perc", "Used share of the key/value pages, 0 to 1."),
)
HISTOGRAMS = {
    "time_to_first_token_seconds": "From arrival to the first token.",
    "inter_token_latency_seconds": "Between a request's consecutive outputs.",
    "request_time_per_output_token_seconds": "Mean time per token after the first, by request.",
    "e2e_request_latency_seconds": "From arrival to the end.",
    "request_queue_time_seconds": "From arrival to the first state.",
    "request_prompt_tokens": "Prompt tokens by request.",
    "request_generation_tokens": "Generated tokens by request.",
    "step_seconds": "Time of one engine step.",
}
FINISHES = ("stop", "length", "repetition", "abort", "error")
LIMITS = ("requests", "tokens", "concurrent", "wait", "seconds", "joules")
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")
OTHER = "other"


class Traffic:
    """Counts HTTP requests by route, method and status, with nothing in a label that a client made up."""

    def __init__(self, routes: Iterable[str]) -> None:
        self._routes = frozenset(routes)
        self.answered: Counter[tuple[str, str, str]] = Counter()
        self.limited: Counter[str] = Counter()
        self.open = 0

    def count(self, route: str | None, method: str, status: int) -> None:
        """One request was answered; status 499: the client left first."""
        known = route if route in self._routes else OTHER
        self.answered[known or OTHER, method if method in METHODS else OTHER, str(status)] += 1

    def limit(self, name: str) -> None:
        """A limit, one of ``LIMITS``, turned a request away or cut its answer short."""
        self.limited[name] += 1


class _Page(Collector):
    """One scrape."""

    def __init__(self, stats: Mapping[str, Mapping[str, Any]] | None, traffic: Traffic) -> None:
        self.stats, self.traffic = stats, traffic

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("diastole_engine_up", "Whether the engine answers.")
        up.add_metric([], 0 if self.stats is None else 1)
        yield up
        yield from _http(self.traffic)
        yield from _engine(self.stats or {})


def _http(traffic: Traffic) -> Iterator[Metric]:
    answered = CounterMetricFamily(
        "diastole_http_requests", "HTTP requests answered.", labels=["route", "method", "status"]
    )
    for labels, n in sorted(traffic.answered.items()):
        answered.add_metric(labels, n)
    yield answered
    limited = CounterMetricFamily(
        "diastole_requests_limited", "Requests turned away or cut short by a limit of the server.", labels=["limit"]
    )
    for name in LIMITS:
        limited.add_metric([name], traffic.limited[name])
    yield limited
    yield GaugeMetricFamily("diastole_http_requests_open", "HTTP requests being answered.", value=traffic.open)


def _engine(stats: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    for name, help in COUNTERS:
        counter = CounterMetricFamily(f"diastole_{RENAMED.get(name, name)}", help, labels=["model_name"])
        for model, snapshot in stats.items():
            counter.add_metric([model], snapshot["counters"].get(name, 0))
        yield counter
    for name, help in GAUGES:
        gauge = GaugeMetricFamily(f"diastole_{name}", help, labels=["model_name"])
        for model, snapshot in stats.items():
            gauge.add_metric([model], snapshot["gauges"].get(name, 0))
        yield gauge
    ended = CounterMetricFamily(
        "diastole_request_success", "Requests that ended.", labels=["model_name", "finished_reason"]
    )
    for model, snapshot in stats.items():
        finished = dict.fromkeys(FINISHES, 0)
        for reason, n in snapshot["finished"].items():
            known = reason if reason in finished else OTHER
            finished[known] = finished.get(known, 0) + n
        for reason, n in finished.items():
            ended.add_metric([model, reason], n)
    yield ended
    for name, help in HISTOGRAMS.items():
        family = HistogramMetricFamily(f"diastole_{name}", help, labels=["model_name"])
        for model, snapshot in stats.items():
            if (histogram := snapshot["histograms"].get(name)) is not None:
                bounds = [*(repr(float(b)) for b in histogram["bounds"]), "+Inf"]
                buckets = list(zip(bounds, accumulate(histogram["counts"]), strict=True))
                family.add_metric([model], buckets, sum_value=histogram["sum"])
        yield family


async def page(backend: Backend, traffic: Traffic) -> bytes:
    """The exposition; without the engine's part if it does not answer."""
    stats: Mapping[str, Mapping[str, Any]] | None = None
    if backend.ready():
        try:
            async with asyncio.timeout(STATS_SECONDS):
                stats = await backend.stats()
        except Exception as e:  # whatever ails the engine, the server's own part must be seen
            log.warning("the engine gave no statistics: %r", e)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(stats, traffic))
    return generate_latest(registry)
