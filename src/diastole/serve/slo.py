"""What a request is promised: from its headers or its body to an ``SLO``."""

from __future__ import annotations

import math
from collections.abc import Mapping

from diastole.serve.errors import ApiError
from diastole.serve.openai import SloWish, wrong
from diastole.types import SLO

LONGEST_MS = 3_600_000.0
# The gateway's names, then the older ones.
FIRST_HEADERS = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
GAP_HEADERS = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")


def slo_of(wish: SloWish | None, headers: Mapping[str, str]) -> SLO | None:
    """The promise asked for; what the body says wins over headers. None: the service's own.

    If only one of the two times is given, the other is ``SLO``'s default.

    Raises:
        ApiError: a time is no positive number of milliseconds.
    """
    wish = wish or SloWish()
    first = _seconds("slo.ttft_ms", wish.ttft_ms) or _from_headers(FIRST_HEADERS, headers)
    gap = _seconds("slo.tpot_ms", wish.tpot_ms) or _from_headers(GAP_HEADERS, headers)
    if first is None and gap is None:
        return None
    usual = SLO()
    return SLO(first or usual.first, gap or usual.gap)


def _from_headers(names: tuple[str, ...], headers: Mapping[str, str]) -> float | None:
    for name in names:
        if name in headers:
            try:
                value = float(headers[name])
            except ValueError:
                raise _refused(name) from None
            return _seconds(name, value)
    return None


def _seconds(name: str, ms: float | None) -> float | None:
    if ms is None:
        return None
    if not (math.isfinite(ms) and 0 < ms <= LONGEST_MS):
        raise _refused(name)
    return ms / 1000


def _refused(name: str) -> ApiError:
    return wrong(name, f"{name} must be a number of milliseconds above 0 and at most {LONGEST_MS:.0f}.")
