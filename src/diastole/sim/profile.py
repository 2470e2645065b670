"""Profile: how one model runs on one kind of GPU, from published fits where there are any, else from a roofline.

The roofline (in the form of ``sim.latency``), for t GPUs that share every layer:

    prefill token    2 · parameters / (t · FLOP/s)  +  two sums of hidden states per layer over the link
    prefill square   2 · layers · heads · head_dim / (t · FLOP/s)     half of the scores and weighted sums is masked
    decode base      weight bytes / (t · bytes/s);   per cached token: its bytes / (t · bytes/s)
    many streams     where 2 · parameters · streams / (t · FLOP/s) exceeds that base, it takes its place

Peaks are published, shares of them are ``Assumptions``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diastole.sim.hardware import Fitted, Hardware
from diastole.sim.latency import Decode, Latency, Line, Prefill
from diastole.sim.shape import Shape

MOST_TENSOR = 8  # GPUs that share a layer, in a roofline


@dataclass(frozen=True, slots=True)
class Profile:
    """One model on one kind of GPU."""

    shape: Shape
    hardware: Hardware
    fitted: Fitted | None

    @property
    def source(self) -> str:
        """Where iteration times come from, in words."""
        if self.fitted is not None:
            return f"published fits: {self.fitted.source}"
        a = self.hardware.assumptions
        return (
            f"roofline of published peaks; assumed: {a.compute:.0%} of FLOP/s, {a.bandwidth:.0%} of memory bandwidth, "
            f"{a.link:.0%} of links"
        )

    @property
    def tensors(self) -> Sequence[int]:
        """How many GPUs may share every layer: what divides the heads, and is known."""
        if self.fitted is not None:
            return sorted(int(t) for t in self.fitted.tensor if self.shape.heads % int(t) == 0)
        return [t for t in range(1, MOST_TENSOR + 1) if self.shape.heads % t == 0]

    @property
    def pipelines(self) -> Sequence[int]:
        """Into how many stages the layers can be cut."""
        return [p for p in range(1, self.shape.layers + 1) if self.shape.layers % p == 0]

    def tokens(self, gpus: int) -> int:
        """That the memory of ``gpus`` GPUs has room for beside the weights, once; 0: none, or nobody says."""
        if self.fitted is not None:
            return self.fitted.kv_tokens.get(str(gpus), 0)
        room = gpus * self.hardware.memory * self.hardware.assumptions.memory - self.shape.weight_bytes
        return max(int(room / self.shape.token_bytes), 0)

    def latency(self, tensor: int, stages: int) -> Latency:
        """Of an instance of ``tensor`` times ``stages`` GPUs."""
        if self.fitted is not None:
            prefill, decode = self.fitted.tensor[str(tensor)].engines(self.fitted.bound)
        else:
            prefill, decode = roofline(self.shape, self.hardware, tensor)
        return Latency(prefill, decode, stages)


def profile(shape: Shape, hardware: Hardware, variant: str = "") -> Profile:
    """With published fits if the hardware's file has some of this model. ``variant``: "@NAME" of another engine's."""
    return Profile(shape, hardware, hardware.fitted.get(shape.name + variant))


def roofline(shape: Shape, hardware: Hardware, tensor: int) -> tuple[Prefill, Decode]:
    """Coefficients in seconds; see above."""
    a = hardware.assumptions
    flops = tensor * hardware.flops * a.compute
    memory = tensor * hardware.bandwidth * a.bandwidth
    sums = 2 * shape.layers * (tensor > 1)
    constant = shape.layers * a.layer_us / 1e6 + sums * a.reduce_us / 1e6
    # A ring moves every hidden state's bytes 2 (t - 1) / t times.
    moved = sums * 2 * shape.hidden * 2 * (tensor - 1) / tensor / (hardware.link * a.link)
    row = 2 * shape.parameters / flops + moved
    weights = shape.weight_bytes / memory
    context = shape.token_bytes / memory
    square = 2 * shape.layers * shape.heads * shape.head_dim / flops
    prefill = Prefill(constant + weights, row, square)
    few = Line(constant + weights, context, moved)
    bound = max(int(weights * flops / (2 * shape.parameters)) + 1, 1)
    return prefill, Decode(few, Line(constant, context, row), bound)
