"""Step-3's cost model: what a decoded token costs on given devices, computed from a model's configuration alone.

    $ per token = max(attention · U_flop, KV bytes · U_byte) + linear · U_flop     on the best device for attention
                + FFN · U_flop                                                     on the best device for the FFN
    U_flop = $ per second / peak FLOP/s,   U_byte = $ per second / peak B/s

Nothing is measured: devices run at their peaks and weights are read for batches so large that they cost nothing.
The sum leaves out norms, router and head, as the source does; ``Work.outside`` says what that is.

Source: StepFun, "Step-3 is Large yet Affordable" (arXiv 2507.19427): its analysis of decoding costs, and of the batch
and the sparsity that a network between attention and FFN allows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple, Protocol

from diastole.types import UserError

TPOT = 0.05  # seconds per output token that the source plans with
STAGES = 3  # attention, network, FFN: each may take so much of it


# ---- parts of a layer; hidden: numbers in a hidden state


class AttentionShape(Protocol):
    """How a layer attends."""

    @property
    def kv_values(self) -> int:
        """Numbers that are kept of a token."""
        ...

    @property
    def flops(self) -> int:
        """Of one row, per token it attends to: scores and weighted sum."""
        ...

    def weights(self, hidden: int) -> int:
        """Numbers in its projections."""
        ...


@dataclass(frozen=True, slots=True)
class Grouped:
    """Grouped-query attention; one group is MQA, as many as heads is MHA."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def kv_values(self) -> int:
        return 2 * self.kv_heads * self.head_dim

    @property
    def flops(self) -> int:
        return 4 * self.heads * self.head_dim

    def weights(self, hidden: int) -> int:
        return 2 * hidden * self.head_dim * (self.heads + self.kv_heads)


@dataclass(frozen=True, slots=True)
class Factored:
    """MFA: queries through ``rank`` numbers, one key/value head."""

    heads: int
    head_dim: int
    rank: int

    @property
    def kv_values(self) -> int:
        return 2 * self.head_dim

    @property
    def flops(self) -> int:
        return 4 * self.heads * self.head_dim

    def weights(self, hidden: int) -> int:
        wide = self.heads * self.head_dim
        return hidden * (self.rank + 2 * self.head_dim) + self.rank * wide + wide * hidden


@dataclass(frozen=True, slots=True)
class Latent:
    """MLA as it is decoded: heads attend to the latent rows themselves (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    heads: int
    q_rank: int  # 0: queries in one matrix
    kv_rank: int
    plain: int  # dimensions of a head without and with rotary positions, and of its values
    rotary: int
    value: int

    @property
    def kv_values(self) -> int:
        return self.kv_rank + self.rotary

    @property
    def flops(self) -> int:
        return 4 * self.heads * self.kv_values  # as the source counts; the sum is over kv_rank alone: 5.6 % less

    def weights(self, hidden: int) -> int:
        wide = self.heads * (self.plain + self.rotary)
        queries = hidden * self.q_rank + self.q_rank * wide if self.q_rank else hidden * wide
        rows = hidden * self.kv_values + self.kv_rank * self.heads * (self.plain + self.value)
        return queries + rows + self.heads * self.value * hidden


@dataclass(frozen=True, slots=True)
class Gated:
    """A layer's gated FFN: ``width`` for every token, and ``chosen`` of ``experts`` of ``expert_width`` each."""

    width: int
    experts: int = 0
    chosen: int = 0
    expert_width: int = 0

    @property
    def whole(self) -> int:
        return self.width + self.experts * self.expert_width

    @property
    def active(self) -> int:
        return self.width + self.chosen * self.expert_width


# ---- models


class Work(NamedTuple):
    """Of one decoded token over all layers: FLOPs, but for ``kv_bytes``."""

    kv_bytes: float
    attention: float
    linear: float  # attention's projections
    ffn: float
    outside: float  # router and head, which the source's sum leaves out

    @property
    def intensity(self) -> float:
        """Attention's FLOPs per byte."""
        return self.attention / self.kv_bytes


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder; ``ffn``: of each layer."""

    name: str
    hidden: int
    vocab: int
    tied: bool  # the head is the embedding
    attention: AttentionShape
    ffn: tuple[Gated, ...]

    @property
    def layers(self) -> int:
        return len(self.ffn)

    @property
    def parameters(self) -> int:
        """Without norms."""
        tables = self.hidden * self.vocab * (1 if self.tied else 2)
        return self._projections + sum(3 * self.hidden * f.whole for f in self.ffn) + self._router + tables

    @property
    def active_parameters(self) -> int:
        """Those a token is multiplied with: a row of the embedding is only looked up."""
        head = self.hidden * self.vocab
        return self._projections + sum(3 * self.hidden * f.active for f in self.ffn) + self._router + head

    @property
    def sparsity(self) -> float:
        """Share of an expert layer's weights that a token is multiplied with; 1 without experts."""
        return min((f.active / f.whole for f in self.ffn), default=1.0)

    @property
    def _projections(self) -> int:
        return self.layers * self.attention.weights(self.hidden)

    @property
    def _router(self) -> int:
        return sum(self.hidden * f.experts for f in self.ffn)

    def work(self, context: int, kv_bytes: float = 1.0) -> Work:
        """context: tokens attended to. kv_bytes: of one number of the cache.

        Raises:
            UserError: one of them is not positive.
        """
        if context < 1:
            raise UserError(f"context must be at least 1, not {context}", param="context")
        if not (isfinite(kv_bytes) and kv_bytes > 0):
            raise UserError(f"kv_bytes must be more than 0, not {kv_bytes}", param="kv_bytes")
        seen = float(context) * self.layers
        return Work(
            seen * self.attention.kv_values * kv_bytes,
            seen * self.attention.flops,
            2.0 * self._projections,
            2.0 * sum(3 * self.hidden * f.active for f in self.ffn),
            2.0 * (self._router + self.hidden * self.vocab),
        )


# ---- devices


@dataclass(frozen=True, slots=True)
class Device:
    """Price and peaks of one device. ``network``: B/s of a whole server of them, 0: not known."""

    name: str
    dollars_per_hour: float
    flops: float  # per second
    bandwidth: float  # B/s of memory
    network: float = 0.0

    @property
    def per_flop(self) -> float:
        return self.dollars_per_hour / 3600 / self.flops

    @property
    def per_byte(self) -> float:
        return self.dollars_per_hour / 3600 / self.bandwidth

    def attending(self, work: Work) -> float:
        """$ per token of attention and its projections."""
        return max(work.attention * self.per_flop, work.kv_bytes * self.per_byte) + work.linear * self.per_flop

    def feeding(self, work: Work) -> float:
        """$ per token of the FFN."""
        return work.ffn * self.per_flop

    @property
    def dense_batch(self) -> float:
        """Tokens at which reading an 8-bit weight takes as long as using it."""
        return self.flops / (2 * self.bandwidth)


# Prices and peaks as the source gives them; FP8 on H800, FP8 or INT8 on H20, BF16 and FP16 on the others.
DEVICES = (
    Device("H800", 2.0, 1.98e15, 3.35e12, 8 * 400e9 / 8),
    Device("H20", 0.8, 2.96e14, 4.0e12, 8 * 400e9 / 8),
    Device("A800", 0.75, 3.12e14, 2.0e12, 8 * 200e9 / 8),
    Device("910B", 0.67, 2.8e14, 1.6e12, 8 * 200e9 / 8),
)


class Cost(NamedTuple):
    """$ per token, and where it is spent."""

    attention: float  # with its projections
    ffn: float
    attention_on: str
    ffn_on: str

    @property
    def per_million(self) -> float:
        return 1e6 * (self.attention + self.ffn)


def apart(work: Work, devices: Iterable[Device]) -> Cost:
    """Attention and FFN each on the device that does it most cheaply (AFD)."""
    known = tuple(devices)
    a = min(known, key=lambda d: d.attending(work))
    f = min(known, key=lambda d: d.feeding(work))
    return Cost(a.attending(work), f.feeding(work), a.name, f.name)


def together(work: Work, device: Device) -> Cost:
    """Both on one device."""
    return Cost(device.attending(work), device.feeding(work), device.name, device.name)


def stage_seconds(layers: int, tpot: float = TPOT, stages: int = STAGES) -> float:
    """What attention, network or FFN of one layer may take."""
    return tpot / stages / layers


def least_sparsity(model: Model, device: Device, tpot: float = TPOT, stages: int = STAGES) -> float:
    """The sparsity below which the network cannot feed enough tokens to keep FFN devices busy.

    B_moe = dense batch / S tokens send H bytes (8 bit) and get 2 H (16 bit) within a stage: 3 H B_moe / network.
    """
    if not device.network > 0:
        raise UserError(f"{device.name} names no network_bytes_per_second", param="devices")
    return 3 * model.hidden * device.dense_batch / (device.network * stage_seconds(model.layers, tpot, stages))
