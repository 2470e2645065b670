"""What is asked for: requests with token ids of real text, in lengths that were recorded or drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random
from statistics import NormalDist, median
from typing import NamedTuple

import numpy as np

from diastole.bench.load.traces import Recorded, Trace
from diastole.bench.longtext import Corpus
from diastole.types import UserError

LONGEST = 1_000_000  # tokens of a length that is asked for
SCALES = (1e-4, 16.0)
_P90 = NormalDist().inv_cdf(0.9)


class Wish(NamedTuple):
    """One request: its prompt's ids, and the number of tokens that it wants."""

    prompt: list[int]
    output: int


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in order of arrival. Lengths are always the same; ``wishes`` gives texts of these lengths.

    Attributes:
        about: where the lengths are from, for people.
        rows: scaled and clipped; ``at`` is as recorded, 0 where nothing was recorded.
        seed: of the texts.
        room: most tokens of a prompt and its answer together.
        scale: by which recorded lengths were multiplied.
        clipped: requests that were longer than the model's context and were cut.
        block: tokens of a block after scaling; 0: no block is shared.
    """

    about: str
    rows: tuple[Recorded, ...]
    corpus: Corpus
    seed: int
    room: int
    scale: float = 1.0
    clipped: int = 0
    block: float = 0.0

    def wishes(self, turn: int = 0) -> list[Wish]:
        """The requests. Another ``turn`` has other texts of the same lengths and the same sharing: what a cache kept of
        one turn helps no other."""
        return [Wish(self._text(f"{self.seed}/{turn}", i, row), row.output) for i, row in enumerate(self.rows)]

    def _text(self, seed: str, nth: int, row: Recorded) -> list[int]:
        ids: list[int] = []
        for place, hash in enumerate(row.blocks):
            if len(ids) >= row.prompt:
                break
            # Edges are rounded, so blocks differ by a token; by the same one wherever a block stands in its place.
            n = round((place + 1) * self.block) - round(place * self.block)
            ids += _cut(self.corpus, math.ceil(self.block), Random(f"{seed}/block {hash}"))[:n]
        ids += _cut(self.corpus, row.prompt - len(ids), Random(f"{seed}/request {nth}"))
        return ids[: row.prompt]

    def median(self) -> tuple[int, int]:
        """Tokens of the prompt and of the answer in the middle."""
        return round(median(r.prompt for r in self.rows)), round(median(r.output for r in self.rows))

    def typical(self, count: int, answer: int) -> list[Wish]:
        """Requests with the median prompt, each another, and the median answer, of ``answer`` tokens at least."""
        prompt, output = self.median()
        rows, _ = _fit([Recorded(0.0, prompt, max(output, answer))] * count, self.room)
        return replace(self, rows=rows).wishes(-1)

    @property
    def shared(self) -> float:
        """Share of all prompt tokens that an earlier prompt begins with too: what an endless cache would find."""
        seen: set[int] = set()
        found = 0
        for row in self.rows:
            begun = list(accumulate(row.blocks, lambda before, hash_: hash((before, hash_)), initial=0))[1:]
            known = next((n for n in range(len(begun), 0, -1) if begun[n - 1] in seen), 0)
            found += min(round(known * self.block), row.prompt)
            seen.update(begun)
        return found / max(sum(r.prompt for r in self.rows), 1)

    def words(self) -> str:
        """One line for people."""
        parts = [f"{len(self.rows)} requests, {self.about}", f"prompts {_range(r.prompt for r in self.rows)}"]
        parts.append(f"answers {_range(r.output for r in self.rows)} tokens (median, p90, most)")
        if self.scale != 1:
            parts.append(f"lengths x {self.scale:g}")
        if self.clipped:
            parts.append(f"{self.clipped} clipped to the model's context")
        if self.block:
            parts.append(f"{self.shared:.0%} of the prompts' tokens are shared beginnings")
        return "; ".join(parts)


def _cut(corpus: Corpus, n: int, rng: Random) -> list[int]:
    """``n`` tokens of text, in several pieces where the whole text is shorter."""
    ids: list[int] = []
    while len(ids) < n:
        ids += corpus.cut(min(n - len(ids), len(corpus.ids)), rng)
    return ids


def _range(lengths: Iterable[int]) -> str:
    found = sorted(lengths)
    return f"{median(found):,.0f}, {np.percentile(found, 90):,.0f}, {found[-1]:,}"


# ---- recorded lengths


def recorded(trace: Trace, corpus: Corpus, count: int, room: int, scale: float = 1.0, seed: int = 0) -> Load:
    """``count`` requests of a trace in a row, from a place that the seed chooses.

    Args:
        room: most tokens of a prompt and its answer together.
        scale: lengths are multiplied by it, those of shared blocks too.

    Raises:
        UserError: the trace has fewer requests, or the scale is out of range.
    """
    if not SCALES[0] <= scale <= SCALES[1]:
        raise UserError(f"scale must be from {SCALES[0]:g} to {SCALES[1]:g}, not {scale:g}", param="scale")
    if count > len(trace.rows):
        raise UserError(f"{trace.name} has {len(trace.rows)} requests, not {count}", param="requests")
    start = Random(f"{seed}/window").randrange(len(trace.rows) - count + 1)
    chosen = trace.rows[start : start + count]
    scaled = [
        r._replace(at=r.at - chosen[0].at, prompt=_scaled(r.prompt, scale), output=_scaled(r.output, scale))
        for r in chosen
    ]
    rows, clipped = _fit(scaled, room)
    skipped = f", {trace.skipped} failed ones left out" if trace.skipped else ""
    about = f"{trace.name} ({trace.format}) from row {start}{skipped}"
    block = trace.block * scale if any(r.blocks for r in rows) else 0.0
    return Load(about, rows, corpus, seed, room, scale, clipped, block)


def _scaled(n: int, scale: float) -> int:
    return max(round(n * scale), 1)


def _fit(rows: Sequence[Recorded], room: int) -> tuple[tuple[Recorded, ...], int]:
    """An answer may have half of the room, its prompt the rest; how many were cut for it."""
    found = []
    for row in rows:
        output = min(row.output, max(room // 2, 1))
        found.append(row._replace(prompt=max(min(row.prompt, room - output), 1), output=output))
    return tuple(found), sum(a != b for a, b in zip(found, rows, strict=True))


# ---- drawn lengths


class Lengths(NamedTuple):
    """Log-normal lengths."""

    median: float
    p90: float

    def draw(self, rng: np.random.Generator) -> int:
        spread = math.log(self.p90 / self.median) / _P90
        return max(round(self.median * math.exp(spread * rng.standard_normal())), 1)


class Sizes(NamedTuple):
    """Lengths of prompts and of answers."""

    prompt: Lengths
    output: Lengths

    @classmethod
    def parse(cls, flag: str, text: str) -> Sizes:
        """From "median:p90/median:p90", prompts before answers.

        Raises:
            UserError: it is nothing of the kind.
        """
        parts = [p.split(":") for p in text.split("/")]
        good = [len(p) == 2 and all(re.fullmatch(r"[0-9]{1,7}", n) for n in p) for p in parts]
        found = [Lengths(int(p[0]), int(p[1])) for p, ok in zip(parts, good, strict=True) if ok]
        if len(parts) != 2 or len(found) != 2 or not all(1 <= m <= p <= LONGEST for m, p in found):
            raise UserError(
                f"--{flag} must be median:p90/median:p90 of prompts and answers in tokens, such as 160:600/80:200, "
                f"not {text!r:.60}",
                param=flag,
            )
        return cls(*found)

    def __str__(self) -> str:
        return "/".join(f"{x.median:g}:{x.p90:g}" for x in self)


def lognormal(sizes: Sizes, corpus: Corpus, count: int, room: int, seed: int = 0) -> Load:
    """``count`` requests whose lengths are drawn."""
    rows, clipped = _fit(_draw([sizes] * count, seed), room)
    return Load(f"log-normal lengths {sizes}", rows, corpus, seed, room, clipped=clipped)


def mixed(chats: Sizes, long: Sizes, share: float, corpus: Corpus, count: int, room: int, seed: int = 0) -> Load:
    """Chats, and among them a share of long prompts, at places that the seed chooses.

    Raises:
        UserError: the share is none.
    """
    if not 0 <= share <= 1:
        raise UserError(f"the share of long prompts must be from 0 to 1, not {share:g}", param="long-share")
    chosen = set(Random(f"{seed}/long").sample(range(count), round(share * count)))
    rows, clipped = _fit(_draw([long if i in chosen else chats for i in range(count)], seed), room)
    about = f"chats {chats} with {len(chosen)} long prompts {long}, all log-normal"
    return Load(about, rows, corpus, seed, room, clipped=clipped)


def _draw(sizes: Sequence[Sizes], seed: int) -> list[Recorded]:
    rng = np.random.default_rng(seed)
    return [Recorded(0.0, s.prompt.draw(rng), s.output.draw(rng)) for s in sizes]
