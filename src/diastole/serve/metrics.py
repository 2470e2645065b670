"""GET /metrics: what the engine's meters and the server's own counters say, in Prometheus' text format.

Names follow vLLM's, with our prefix, so that existing dashboards need one replacement. Labels come from closed lists
only: services, finish reasons, known routes, methods and statuses.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from diastole.serve.interface import Backend

log = logging.getLogger("diastole.serve")

Stats: TypeAlias = Mapping[str, Mapping[str, Any]]  # by service, what Meter.snapshot returns
F = TypeVar("F", CounterMetricFamily, GaugeMetricFamily)

TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATS_SECONDS = 5.0  # for the engine to answer

# Counters and gauges of Meter: name there, name here, help.
COUNTERS = (
    ("prompt_tokens", "Prompt tokens of requests taken in."),
    ("generation_tokens", "Tokens generated."),
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    ("preemptions", "Streams that gave their pages back to let older ones go on."),
    ("spec_decode_num_drafts", "Drafts that were verified."),
    ("spec_decode_num_draft_tokens", "Guessed tokens that were verified."),
    ("spec_decode_num_accepted_tokens", "Guessed tokens that were right."),
    ("steps", "Engine steps."),
    ("slo_attained", "Requests that came to their end with every promised time kept."),
)
GAUGES = (
    ("num_requests_running", "Streams that hold state."),
    ("num_requests_waiting", "Streams that wait for room."),
    ("kv_cache_usage_perc", "Used share of the key/value pages, 0 to 1."),
    ("kv_pages", "Key/value pages there are."),
    ("kv_pages_used", "Key/value pages that streams hold."),
    ("step_seconds_base", "What a step is predicted to take before anything runs in it."),
    ("step_seconds_unit", "What each token, frame or other unit of a step adds."),
    ("step_seconds_context", "What a thousand units add that are looked back on and must be fetched."),
    ("step_seconds_work", "What a thousand pairs add of a unit and one that it looks back on."),
)
HISTOGRAMS = {
    "time_to_first_token_seconds": "From arrival to the first token.",
    "inter_token_latency_seconds": "Between a request's consecutive outputs.",
    "request_time_per_output_token_seconds": "Mean time per token after the first, by request.",
    "e2e_request_latency_seconds": "From arrival to the end.",
    "request_queue_time_seconds": "From arrival to the first state.",
    "request_prefill_time_seconds": "From the first state to the first token.",
    "request_decode_time_seconds": "From the first token to the last.",
    "request_prompt_tokens": "Prompt tokens by request.",
    "request_generation_tokens": "Generated tokens by request.",
    "iteration_tokens": "Tokens absorbed by one engine step.",
    "step_seconds": "Time of one engine step.",
}
# Meter's words that are called otherwise here, as vLLM does.
RENAMED = {"preemptions": "num_preemptions", "iteration_tokens": "iteration_tokens_total"}
BY_PLACE = "spec_decode_num_accepted_tokens_per_pos"
OURS = "diastole_"
VLLM = "vllm:"
# Of the families of the engine, those that vLLM has too.
SHARED = frozenset({
    "prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "preemptions",
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "request_success",
    "spec_decode_num_drafts", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens", BY_PLACE,
    *(HISTOGRAMS.keys() - {"step_seconds"}),
})  # fmt: skip
FINISHES = ("stop", "length", "repetition", "deadline", "abort", "error")
LIMITS = ("requests", "tokens", "concurrent", "wait", "memory", "seconds", "joules")
PROMISES = ("ttft", "tpot", "total")
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
    """One scrape: everything under our prefix, then what others have too under theirs."""

    def __init__(self, stats: Stats | None, restarts: int, traffic: Traffic, vllm: bool) -> None:
        self.stats, self.restarts, self.traffic, self.vllm = stats, restarts, traffic, vllm

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("diastole_engine_up", "Whether the engine answers.")
        up.add_metric([], 0 if self.stats is None else 1)
        yield up
        yield CounterMetricFamily(
            "diastole_engine_restarts", "Engines started because the one before had ended.", value=self.restarts
        )
        yield from _http(self.traffic)
        engine = _Engine(self.stats or {})
        yield from engine.families(OURS, engine.NAMES)
        if self.vllm:
            yield from engine.families(VLLM, SHARED)


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


class _Engine:
    """The meters' snapshots as families of one prefix or another."""

    NAMES = frozenset({*dict(COUNTERS), *dict(GAUGES), *HISTOGRAMS, "request_success", "slo_missed", BY_PLACE})

    def __init__(self, stats: Stats) -> None:
        self.stats = stats

    def families(self, prefix: str, names: Collection[str]) -> Iterator[Metric]:
        """Those of these names."""
        for name, help in COUNTERS:
            if name in names:
                yield self._filled(
                    CounterMetricFamily(_name(prefix, name), help, labels=["model_name"]), "counters", name
                )
        for name, help in GAUGES:
            if name in names:
                yield self._filled(GaugeMetricFamily(_name(prefix, name), help, labels=["model_name"]), "gauges", name)
        if "request_success" in names:
            help = "Requests that ended."
            yield self._by_word(prefix + "request_success", help, "finished_reason", "finished", FINISHES)
        if "slo_missed" in names:
            help = (
                "Promised times that ended requests had broken: to the first token, per token after it, for the whole."
            )
            yield self._by_word(prefix + "slo_missed", help, "which", "missed", PROMISES)
        if BY_PLACE in names:
            yield self._by_place(prefix + BY_PLACE, "Guessed tokens that were right, by their place in the draft.")
        for name, help in HISTOGRAMS.items():
            if name in names:
                yield self._histogram(HistogramMetricFamily(_name(prefix, name), help, labels=["model_name"]), name)

    def _filled(self, family: F, part: str, name: str) -> F:
        for model, snapshot in self.stats.items():
            family.add_metric([model], snapshot[part].get(name, 0))
        return family

    def _by_word(self, name: str, help: str, label: str, part: str, words: tuple[str, ...]) -> Metric:
        """A counter with a second label, whose values are these words or "other"."""
        family = CounterMetricFamily(name, help, labels=["model_name", label])
        for model, snapshot in self.stats.items():
            counts = Counter(dict.fromkeys(words, 0))
            for word, n in snapshot[part].items():
                counts[word if word in words else OTHER] += n
            for word, n in counts.items():
                family.add_metric([model, word], n)
        return family

    def _by_place(self, name: str, help: str) -> Metric:
        """A counter with the place in a draft as second label: as many as the longest draft had, which is bounded."""
        family = CounterMetricFamily(name, help, labels=["model_name", "position"])
        for model, snapshot in self.stats.items():
            for place, n in enumerate(snapshot["accepted"]):
                family.add_metric([model, str(place)], n)
        return family

    def _histogram(self, family: HistogramMetricFamily, name: str) -> HistogramMetricFamily:
        for model, snapshot in self.stats.items():
            if (histogram := snapshot["histograms"].get(name)) is not None:
                bounds = [*(repr(float(b)) for b in histogram["bounds"]), "+Inf"]
                buckets = list(zip(bounds, accumulate(histogram["counts"]), strict=True))
                family.add_metric([model], buckets, sum_value=histogram["sum"])
        return family


def _name(prefix: str, name: str) -> str:
    return prefix + RENAMED.get(name, name)


async def page(backend: Backend, traffic: Traffic, vllm: bool = False) -> bytes:
    """The exposition; without the engine's part if it does not answer. ``vllm``: also under vLLM's names."""
    stats: Stats | None = None
    if backend.ready():
        try:
            async with asyncio.timeout(STATS_SECONDS):
                stats = await backend.stats()
        except Exception as e:  # whatever ails the engine, the server's own part must be seen
            log.warning("the engine gave no statistics: %r", e)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(stats, backend.restarts, copy.deepcopy(traffic), vllm))
    return await asyncio.to_thread(generate_latest, registry)  # it takes milliseconds, more with each model
