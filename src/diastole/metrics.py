"""What the engine counts: life-cycle events of requests, kept as plain numbers that any exporter can read.

``Meter`` is told of each event with its time; it never reads a clock. ``snapshot()`` is a msgpack-able dict that the
server renders as Prometheus text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from diastole.types import SLO

# Buckets as in vLLM, so that existing dashboards fit.
SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    640.0,
    2560.0,
)
GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
PLACES = 64  # of a draft, that are told apart; what lies deeper counts with the last
CUT_SHORT = ("abort", "error")  # finish reasons of requests that did not come to their end


class Histogram:
    """Counts per bucket (upper bounds inclusive, +Inf implied) and the sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def snapshot(self) -> dict[str, Any]:
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}


@dataclass(slots=True)
class _Life:
    """Times of one request, in seconds; None: not yet."""

    arrived: float
    slo: SLO
    admitted: float | None = None
    first: float | None = None
    last: float | None = None
    outputs: int = 0
    gaps: int = 0  # between tokens: choices that speak in one step share them

    def missed(self, now: float, reason: str) -> list[str]:
        """Promises that are broken if it ends now for this reason: "ttft" the first output, "tpot" the mean gap between
        outputs, "total" the whole."""
        broken = []
        first = now if self.first is None else self.first
        if first - self.arrived > self.slo.first:
            broken.append("ttft")
        if self.gaps and self.gap > self.slo.gap:
            broken.append("tpot")
        if self.slo.total is not None and (reason == "deadline" or now - self.arrived > self.slo.total):
            broken.append("total")
        return broken

    @property
    def decoding(self) -> float:
        """Seconds between its first and its last output."""
        return (self.last or 0.0) - (self.first or 0.0)

    @property
    def gap(self) -> float:
        """The mean, in seconds; there must be one."""
        return self.decoding / self.gaps


@dataclass(slots=True)
class Meter:
    """Counters and histograms of one service."""

    counters: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)  # by finish reason
    missed: Counter[str] = field(default_factory=Counter)  # broken promises, by which
    gauges: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(
        default_factory=lambda: {
            "time_to_first_token_seconds": Histogram(SECONDS),
            "inter_token_latency_seconds": Histogram(GAPS),
            "request_time_per_output_token_seconds": Histogram(GAPS),
            "e2e_request_latency_seconds": Histogram(SECONDS),
            "request_queue_time_seconds": Histogram(SECONDS),
            "request_prefill_time_seconds": Histogram(SECONDS),
            "request_decode_time_seconds": Histogram(SECONDS),
            "request_prompt_tokens": Histogram(TOKENS),
            "request_generation_tokens": Histogram(TOKENS),
            "iteration_tokens": Histogram(STEP_TOKENS),
            "step_seconds": Histogram(GAPS),
        }
    )
    _kept: Counter[int] = field(default_factory=Counter)  # drafts, by how many of their tokens were kept
    _places: int = 0  # of the longest draft
    _lives: dict[str, _Life] = field(default_factory=dict)

    def count(self, name: str, n: int = 1) -> None:
        """Add to a counter."""
        self.counters[name] += n

    def stepped(self, seconds: float, units: int) -> None:
        """A step took so long and absorbed so many units."""
        self.counters["steps"] += 1
        self.histograms["step_seconds"].observe(seconds)
        self.histograms["iteration_tokens"].observe(units)

    def arrived(self, id: str, now: float, prompt: int, slo: SLO) -> None:
        """A request came in, with a prompt of so many units and these promises."""
        self._lives[id] = _Life(now, slo)
        self.histograms["request_prompt_tokens"].observe(prompt)

    def taken_over(self, id: str, now: float, elapsed: float, slo: SLO) -> None:
        """A request that has been answered elsewhere for ``elapsed`` seconds, first outputs and all, goes on here."""
        self._lives[id] = _Life(now - elapsed, slo, first=now, last=now)

    def handed_over(self, id: str) -> None:
        """It goes on elsewhere: what comes of it is counted there."""
        del self._lives[id]
        self.counters["handed_over"] += 1

    def admitted(self, id: str, now: float) -> None:
        """Its first stream was given state."""
        life = self._lives.get(id)
        if life is not None and life.admitted is None:
            life.admitted = now
            self.histograms["request_queue_time_seconds"].observe(now - life.arrived)

    def emitted(self, outputs: Sequence[tuple[str, int]], now: float) -> None:
        """These requests gave so many units of output; one that is named twice has two choices."""
        lives, gaps = self._lives, self.histograms["inter_token_latency_seconds"]
        gap, same, told = 0.0, 0, 0  # who spoke in the same step before shares a gap: it is observed once for all
        for id, units in outputs:
            life = lives.get(id)
            if life is None:
                continue
            if life.last is None:
                life.first = now
                self.histograms["time_to_first_token_seconds"].observe(now - life.arrived)
                life.gaps += units - 1
            elif now > life.last:
                life.gaps += units
                if now - life.last != gap:
                    gaps.observe(gap, same)
                    gap, same = now - life.last, 0
                same += 1
            life.last = now
            life.outputs += units
            told += units
        self.counters["generation_tokens"] += told
        gaps.observe(gap, same)

    def drafted(self, tokens: int, kept: int) -> None:
        """Of a draft of so many tokens, so many were kept."""
        self.counters["spec_decode_num_drafts"] += 1
        self.counters["spec_decode_num_draft_tokens"] += tokens
        self.counters["spec_decode_num_accepted_tokens"] += kept
        self._kept[min(kept, PLACES)] += 1
        if tokens > self._places:
            self._places = min(tokens, PLACES)

    @property
    def accepted(self) -> list[int]:
        """By place in a draft, from 0, how many tokens were kept there: those before a kept one always are."""
        deeper = [self._kept[place + 1] for place in reversed(range(self._places))]
        return [*accumulate(deeper)][::-1]

    def first_output(self, id: str) -> float | None:
        """When a living request gave its first output, in seconds; None: not yet."""
        life = self._lives.get(id)
        return None if life is None else life.first

    def ended(self, id: str, now: float, reason: str) -> None:
        """It ended, once, for this reason."""
        life = self._lives.pop(id)
        self.finished[reason] += 1
        self.histograms["e2e_request_latency_seconds"].observe(now - life.arrived)
        self.histograms["request_generation_tokens"].observe(life.outputs)
        if life.first is not None and life.admitted is not None:
            self.histograms["request_prefill_time_seconds"].observe(life.first - life.admitted)
            self.histograms["request_decode_time_seconds"].observe(life.decoding)
        if life.gaps:
            self.histograms["request_time_per_output_token_seconds"].observe(life.gap)
        broken = life.missed(now, reason)
        self.missed.update(broken)
        # Of a request that was cut short nobody knows whether the rest would have come in time.
        if not broken and reason not in CUT_SHORT:
            self.counters["slo_attained"] += 1

    def snapshot(self) -> Mapping[str, Any]:
        """Plain dicts, lists and numbers."""
        return {
            "counters": dict(self.counters),
            "finished": dict(self.finished),
            "missed": dict(self.missed),
            "accepted": self.accepted,
            "gauges": dict(self.gauges),
            "histograms": {k: h.snapshot() for k, h in self.histograms.items()},
        }
