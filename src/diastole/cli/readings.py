"""A server's /metrics page, read, and what happened between two of them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import httpx

LARGEST_PAGE = 32 * 2**20
TIMEOUT_SECONDS = 10.0  # the server itself gives its engine five to answer
PREFIX = "diastole_"

Labels: TypeAlias = frozenset[tuple[str, str]]


class NotRead(Exception):
    """No page could be had; the message says why in plain words."""


class Quantile(NamedTuple):
    """``above``: it lies beyond the last bound, which is ``value``."""

    value: float
    above: bool


class Reading:
    """One page: values by name (without our prefix) and labels.

    Args:
        at: seconds, monotonic.
    """

    def __init__(self, text: str, at: float) -> None:
        """Raises:
        NotRead: the page is not of a Diastole server.
        """
        from prometheus_client.parser import text_string_to_metric_families

        self.at = at
        self.values: dict[str, dict[Labels, float]] = {}
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name.startswith(PREFIX):
                        series = self.values.setdefault(sample.name.removeprefix(PREFIX), {})
                        series[frozenset(sample.labels.items())] = float(sample.value)
        except (ValueError, KeyError, IndexError) as e:
            raise NotRead(f"the page is no Prometheus text: {e!s:.100}") from None
        if "engine_up" not in self.values:
            raise NotRead("this is no Diastole server: its /metrics page has no diastole_ metrics")

    @property
    def models(self) -> list[str]:
        """Services that the engine told of."""
        labels = self.values.get("num_requests_running", {})
        return sorted(value for series in labels for name, value in series if name == "model_name")

    def total(self, name: str, **labels: str) -> float:
        """The sum of all series with these labels."""
        return sum(value for _, value in self._series(name, labels))

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Sums by the values of one label."""
        sums: dict[str, float] = {}
        for series, value in self._series(name, labels):
            key = dict(series).get(label, "")
            sums[key] = sums.get(key, 0.0) + value
        return sums

    def _series(self, name: str, labels: Mapping[str, str]) -> Iterator[tuple[Labels, float]]:
        wanted = labels.items()
        return ((s, v) for s, v in self.values.get(name, {}).items() if wanted <= s)


class Window:
    """What happened between two readings. A counter that fell began anew: the server was restarted."""

    def __init__(self, before: Reading, after: Reading) -> None:
        self.before, self.after = before, after
        self.seconds = max(after.at - before.at, 1e-9)

    def gained(self, name: str, **labels: str) -> float:
        """How much counters with these labels grew, together."""
        return sum(self._growth(name, labels).values())

    def rate(self, name: str, **labels: str) -> float:
        """``gained``, per second."""
        return self.gained(name, **labels) / self.seconds

    def rates(self, name: str, label: str) -> dict[str, float]:
        """``rate`` by the values of one label."""
        rates: dict[str, float] = {}
        for series, n in self._growth(name, {}).items():
            key = dict(series).get(label, "")
            rates[key] = rates.get(key, 0.0) + n / self.seconds
        return rates

    def quantile(self, name: str, q: float, **labels: str) -> Quantile | None:
        """Of what a histogram observed meanwhile; None if that was nothing."""
        buckets: dict[float, float] = {}
        for series, n in self._growth(name + "_bucket", labels).items():
            bound = float(dict(series).get("le", "nan"))
            buckets[bound] = buckets.get(bound, 0.0) + n
        return quantile(sorted(buckets.items()), q)

    def _growth(self, name: str, labels: Mapping[str, str]) -> dict[Labels, float]:
        old, wanted = self.before.values.get(name, {}), labels.items()
        return {s: grown(old.get(s, 0.0), v) for s, v in self.after.values.get(name, {}).items() if wanted <= s}


def grown(before: float, after: float) -> float:
    """A counter's growth."""
    return after - before if after >= before else after


def quantile(buckets: list[tuple[float, float]], q: float) -> Quantile | None:
    """A quantile from cumulative buckets, by line within its bucket, as Prometheus' ``histogram_quantile``.

    Args:
        buckets: (upper bound, observations up to it), ascending, the last bound infinite.
    """
    if len(buckets) < 2 or not math.isinf(buckets[-1][0]) or buckets[-1][1] <= 0:
        return None
    rank = q * buckets[-1][1]
    for (low, below), (high, upto) in pairwise([(0.0, 0.0), *buckets]):
        if upto >= rank and upto > below:
            if math.isinf(high):
                return Quantile(low, True)
            return Quantile(low + (high - low) * (rank - below) / (upto - below), False)
    return None


class Scraper:
    """Fetches pages from one server.

    Args:
        url: of the server, with or without ``/v1``.
        key: shown to it, if not empty.
    """

    def __init__(self, url: str, key: str) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.url = url.rstrip("/").removesuffix("/v1")
        self._http = httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=False)

    def __enter__(self) -> Scraper:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def read(self) -> Reading:
        """The page as it is now.

        Raises:
            NotRead: and why.
        """
        page = bytearray()
        try:
            with self._http.stream("GET", self.url + "/metrics") as reply:
                if reply.status_code in (401, 403):
                    raise NotRead("the server wants a key: give it with --api-key")
                if reply.status_code != 200:
                    raise NotRead(f"the server answers /metrics with status {reply.status_code}")
                for piece in reply.iter_bytes():
                    page += piece
                    if len(page) > LARGEST_PAGE:
                        raise NotRead(f"the page is larger than {LARGEST_PAGE} bytes")
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            reason = re.sub(r"^\[Errno -?\d+\] ", "", str(e)) or type(e).__name__
            raise NotRead(f"server not reachable: {reason}") from None
        return Reading(page.decode("utf-8", "replace"), time.monotonic())
