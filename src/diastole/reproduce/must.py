"""What a measured figure must be: comparisons that decide and say what they ask.

A figure that is not finite holds to nothing, and nothing holds to a bound that is not finite: a division by zero proves
no speed-up.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, isnan
from typing import Any, Protocol

_TESTS: dict[str, Callable[[float, float], bool]] = {
    "≥": operator.ge,
    "≤": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}


class Must(Protocol):
    """What a figure must be."""

    def holds(self, here: float) -> bool:
        """Whether it is."""
        ...

    def words(self, unit: str) -> str:
        """What it asks, for the table."""
        ...


@dataclass(frozen=True, slots=True)
class Bound:
    """On one side of a number."""

    sign: str
    bound: float
    of: str = ""  # where the number comes from

    def holds(self, here: float) -> bool:
        return isfinite(here) and isfinite(self.bound) and bool(_TESTS[self.sign](here, self.bound))  # not numpy's

    def words(self, unit: str) -> str:
        return f"{self.sign} {figure(self.bound, unit)}" + (f" ({self.of})" if self.of else "")


@dataclass(frozen=True, slots=True)
class Between:
    """In a closed interval."""

    low: float
    high: float

    def holds(self, here: float) -> bool:
        return isfinite(self.low) and isfinite(self.high) and bool(self.low <= here <= self.high)

    def words(self, unit: str) -> str:
        return f"{figure(self.low, '')} to {figure(self.high, unit)}"


def at_least(bound: float, of: str = "") -> Must:
    return Bound("≥", bound, of)


def at_most(bound: float, of: str = "") -> Must:
    return Bound("≤", bound, of)


def more_than(bound: float, of: str = "") -> Must:
    return Bound(">", bound, of)


def less_than(bound: float, of: str = "") -> Must:
    return Bound("<", bound, of)


def equal_to(bound: float, of: str = "") -> Must:
    """Exactly: for counts, and for facts (``True``)."""
    return Bound("=", bound, of)


def between(low: float, high: float) -> Must:
    return Between(low, high)


def figure(value: float | str, unit: str = "") -> str:
    """A number with four significant digits and its unit: "1.83x", "95.2%", "3.2 ms"; a fact as "yes" or "no"; NaN as
    "none"."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isnan(value):  # there was nothing to be measured
        return "none"
    if float(value).is_integer() and abs(value) < 1e6:
        number = f"{value:,.0f}"
    else:
        number = f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    return number + unit if unit in {"", "x", "%"} else f"{number} {unit}"


def plain(value: Any) -> Any:
    """numpy's scalars as Python's; everything else as it is."""
    item = getattr(value, "item", None)
    return value if item is None else item()
