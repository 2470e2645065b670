"""Loads: requests that arrive as a Poisson process, with lengths from a distribution or from a published trace."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from diastole.sim.timeline import Arrival
from diastole.types import UserError

LONGEST = 1 << 20  # tokens of a request
MOST_ROWS = 1_000_000  # of a trace
COLUMNS = ("ContextTokens", "GeneratedTokens")  # as in Azure's traces of 2023


class Length(NamedTuple):
    """Tokens of one request."""

    prompt: int
    output: int


class Lengths(Protocol):
    """Where lengths come from."""

    def draw(self, count: int, seed: int) -> list[Length]:
        """So many, the same for the same seed."""
        ...

    def __str__(self) -> str:
        """In words."""
        ...


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Synthetic lengths: prompt and output independent and log-normal, cut to a model's context.

    Args:
        prompt, output: mean tokens before the cut.
        spread: standard deviation of the logarithm of both.
        longest: prompt and output together have at most so many tokens.
    """

    prompt: float
    output: float
    spread: float = 1.0
    longest: int = 2048

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("prompt", self.prompt, 1, LONGEST),
            ("output", self.output, 1, LONGEST),
            ("spread", self.spread, 0, 4),
            ("longest", self.longest, 2, LONGEST),
        ):
            if not least <= value <= most:
                message = f"lengths: {name} must be between {least:,} and {most:,}, not {value!r:.40}"
                raise UserError(message, param="lengths")

    def draw(self, count: int, seed: int) -> list[Length]:
        normal = np.random.default_rng([seed, 1]).standard_normal((count, 2))
        means = np.array([self.prompt, self.output])
        drawn = np.exp(np.log(means) - self.spread**2 / 2 + self.spread * normal)
        found = []
        for prompt, output in np.maximum(np.rint(np.minimum(drawn, self.longest)), 1).astype(int).tolist():
            prompt = min(prompt, self.longest - 1)
            found.append(Length(prompt, min(output, self.longest - prompt)))
        return found

    def __str__(self) -> str:
        return (
            f"synthetic log-normal lengths, mean {self.prompt:g} in and {self.output:g} out, spread {self.spread:g}, "
            f"at most {self.longest} together"
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """Lengths of a trace, in its order; over again where it is shorter than what is asked for."""

    lengths: tuple[Length, ...]
    name: str

    def draw(self, count: int, seed: int) -> list[Length]:
        start = int(np.random.default_rng([seed, 1]).integers(len(self.lengths)))
        return [self.lengths[(start + i) % len(self.lengths)] for i in range(count)]

    def __str__(self) -> str:
        return f"{len(self.lengths):,} lengths of {self.name}"


def read_lengths(path: Path, longest: int) -> Seen:
    """Lengths of a CSV file with the columns ContextTokens and GeneratedTokens; requests longer than ``longest``
    together are left out.

    Raises:
        UserError: it cannot be read, or no row is left.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if missing := [c for c in COLUMNS if c not in (rows.fieldnames or ())]:
                raise UserError(f"--lengths {path} has no column {' and no '.join(missing)}", param="lengths")
            found = [Length(*(_tokens(path, row[c]) for c in COLUMNS)) for row in islice(rows, MOST_ROWS)]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"--lengths {path} cannot be read: {e}", param="lengths") from None
    kept = tuple(x for x in found if x.prompt >= 1 and x.output >= 1 and sum(x) <= longest)
    if not kept:
        raise UserError(f"--lengths {path} has no request of at most {longest} tokens", param="lengths")
    return Seen(kept, path.name)


def _tokens(path: Path, text: str | None) -> int:
    try:
        value = int(text or "")
    except ValueError:
        value = -1
    if not 0 <= value <= LONGEST:
        raise UserError(f"--lengths {path}: {text!r:.40} is no number of tokens up to {LONGEST:,}", param="lengths")
    return value


def poisson(lengths: Sequence[Length], rate: float, seed: int) -> list[Arrival]:
    """These requests, ``rate`` a second on average. With the same seed the gaps at two rates are the same but for their
    scale, so that loads of neighbouring rates compare.

    Raises:
        ValueError: the rate is not above 0 or not finite.
    """
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"a rate must be above 0, not {rate}")
    gaps = np.random.default_rng([seed, 2]).exponential(1.0, len(lengths))
    times = ((np.cumsum(gaps) - gaps[:1]) / rate).tolist()
    return [Arrival(at, *length) for at, length in zip(times, lengths, strict=True)]
