"""What a request is promised, and who goes first: from headers or body to an ``SLO`` and a priority."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from diastole.serve.bounds import LONGEST_MS, MOST_PRIORITY
from diastole.serve.errors import ApiError
from diastole.serve.interface import TextService
from diastole.serve.openai import SloWish, unsupported, wrong
from diastole.types import SLO

PRIORITY_HEADER = "x-priority"
# The gateway's names, then the older ones.
FIRST_HEADERS = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
GAP_HEADERS = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")
TOTAL_HEADERS = ("x-slo-total-ms",)  # ours: the gateway has none


def slo_of(wish: SloWish | None, headers: Mapping[str, str]) -> SLO | None:
    """The promise asked for; what the body says wins over headers. None: the service's own.

    If some of the times are given, the others are ``SLO``'s defaults.

    Raises:
        ApiError: a time is no positive number of milliseconds.
    """
    wish = wish or SloWish()
    first = _seconds("slo.ttft_ms", wish.ttft_ms) or _from_headers(FIRST_HEADERS, headers)
    gap = _seconds("slo.tpot_ms", wish.tpot_ms) or _from_headers(GAP_HEADERS, headers)
    total = _seconds("slo.total_ms", wish.total_ms) or _from_headers(TOTAL_HEADERS, headers)
    if first is None and gap is None and total is None:
        return None
    usual = SLO()
    return SLO(first or usual.first, gap or usual.gap, total)


def priority_of(wish: int | None, headers: Mapping[str, str], service: TextService) -> int:
    """The priority asked for, lower is sooner; what the body says wins over the header. Without a wish 0.

    Raises:
        ApiError: it is no number in range, or this service serves without priorities.
    """
    name = "priority" if wish is not None else PRIORITY_HEADER
    given = str(wish) if wish is not None else headers.get(PRIORITY_HEADER, "0")
    if not re.fullmatch(r"[+-]?[0-9]{1,4}", given) or abs(int(given)) > MOST_PRIORITY:
        raise wrong(name, f"{name} must be a whole number from {-MOST_PRIORITY} to {MOST_PRIORITY}; lower is sooner.")
    if int(given) and not service.priorities:
        advice = "Requests are served in order of arrival: leave it out, give slo instead, or start the server with"
        raise unsupported(name, f"{advice} engine.admission = 'priority'.")
    return int(given)


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
