"""A request on its way through a simulated cluster, and the limits that instances keep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from diastole.sim.timeline import Arrival


@dataclass(eq=False, slots=True)
class Life:
    """One request."""

    asked: Arrival
    left: int  # tokens still to come
    times: list[float] = field(default_factory=list)  # seconds at which its tokens came
    context: int = 0  # tokens in its cache where it decodes
    held: int = 0  # tokens there is room for, in whole blocks
    absorbed: int = 0  # tokens of ``known`` whose chunks have been given out

    @property
    def known(self) -> int:
        """Tokens that a prefill has to absorb: the prompt, and what came before its cache was taken away."""
        return self.asked.prompt + len(self.times)

    def emit(self, now: float) -> None:
        """Its next token comes."""
        self.times.append(now)
        self.left -= 1


class Limits(NamedTuple):
    """Of one iteration; the figures are those of DistServe's engine, but for ``chunk``."""

    prompts: int = 128  # requests in a batch of prompts
    prompt_tokens: int = 8192  # tokens in it; a longer prompt runs alone
    saturation: int = 512  # L_m: tokens beyond which another prompt brings nothing
    streams: int = 1024  # in a decode step
    context: int = 65_536  # tokens in their caches together
    waiting: float = 0.05  # share of a decode instance's blocks that may wait there before it pulls no more
    chunk: int = 512  # tokens of a step that mixes pieces of prompts with decoding, as Sarathi-Serve uses


class Link(NamedTuple):
    """What caches move over."""

    bandwidth: float  # bytes per second, one way
    token: float  # bytes of a token's keys and values over this link
    delay: float = 0.0  # seconds before the first byte
    host: float = 25e9  # bytes per second to the host's memory and back: an assumption (PCIe 4.0 x16, about 80 %)

    def seconds(self, tokens: int) -> float:
        """To move so many tokens to another instance."""
        return self.delay + tokens * self.token / self.bandwidth

    def swap(self, tokens: int) -> float:
        """To move them to the host's memory and back."""
        return 2 * tokens * self.token / self.host
