"""PhaseNet: a small one-dimensional U-Net that marks the arrivals of P and S waves in three-component ground motion.

It looks at 30 s at 100 Hz and gives each sample's probability of an arrival; over a live stream it looks again every
second. Overlapping windows are averaged, the closer to a window's middle the more, and a peak becomes a pick once it is
``settle`` seconds old: nearer to the newest sample a pick would still move, since the net looks both ways.

Source: Zhu and Beroza, "PhaseNet" (Geophysical Journal International 216, 2019; arXiv 1803.03211); of the public code
the sizes, the padding and the cropping. The normalisation is a window's own, as in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from diastole.live import Reading, Signal, options_of
from diastole.nn.conv import Conv, folded
from diastole.types import Array, Batch, CellSpec, UserError

if TYPE_CHECKING:
    from diastole.kernels.table import Ops
    from diastole.weights import Checkpoint

RATE = 100.0  # Hz
WINDOW = 3000  # samples
HOP = 100
CHANNELS = ("E", "N", "Z")
PHASES = ("P", "S")
WIDTH, STRIDE, DEPTH, ROOT = 7, 4, 5, 8  # of convolutions; levels; channels of the first
EPS = 1e-5  # of batch norms
APART = 50  # samples between two picks of a phase
BEFORE, AFTER = 100, 400  # samples around a pick in which its amplitude is looked for


@dataclass(frozen=True, slots=True)
class Options:
    """What a stream may ask for."""

    threshold_p: float = 0.3  # smallest probability of a P pick
    threshold_s: float = 0.3
    settle: float = 3.0  # seconds that a pick must be old
    probability: bool = False  # send the traces of probability too

    def __post_init__(self) -> None:
        for name in ("threshold_p", "threshold_s"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name} must be between 0 and 1", param=name)
        if not 1.0 <= self.settle <= 15.0:
            raise UserError("settle must be 1 to 15 seconds", param="settle")


def padding(length: int, stride: int) -> tuple[int, int]:
    """Zeros before and after, so that ceil(length / stride) outputs come out."""
    total = max((-(-length // stride) - 1) * stride + WIDTH - length, 0)
    return total // 2, total - total // 2


class Up:
    """A transposed convolution of stride 4, cut to four times its input: four convolutions of width 3 side by side."""

    def __init__(self, ops: Ops, weight: Array, bias: Array) -> None:
        """weight (C, N, 7), as torch's ConvTranspose1d has it."""
        channels, n, _ = weight.shape
        phases = np.zeros((STRIDE, n, channels, 3), np.float32)
        for r in range(STRIDE):
            for j in range(3):  # of the inputs before, at and behind
                k = r + 1 + STRIDE * (1 - j)
                if 0 <= k < WIDTH:
                    phases[r, :, :, j] = weight[:, :, k].T
        self._conv = Conv(ops, phases.reshape(STRIDE * n, channels, 3), np.tile(bias, STRIDE))

    def __call__(self, x: Array) -> Array:
        """x (B, L, C) -> (B, 4 L, N)."""
        out = self._conv(x, 1, 1)
        return out.reshape(len(x), STRIDE * x.shape[1], -1)


class UNet:
    """The net, with its batch norms folded in."""

    def __init__(self, ops: Ops, weights: Mapping[str, Array]) -> None:
        def conv(name: str, stride: int = 1) -> Conv:
            return Conv(ops, *folded(weights, f"{name}.conv", f"{name}.norm", EPS), stride)

        self.first = conv("first")
        self.down = [conv(f"down.{d}") for d in range(DEPTH)]
        self.stride = [conv(f"stride.{d}", STRIDE) for d in range(DEPTH - 1)]
        self.up = []
        for d in range(DEPTH - 1):
            turned = {**weights, f"up.{d}.conv.weight": weights[f"up.{d}.conv.weight"].transpose(1, 0, 2)}
            weight, bias = folded(turned, f"up.{d}.conv", f"up.{d}.norm", EPS)
            self.up.append(Up(ops, weight.transpose(1, 0, 2), bias))
        self.join = [conv(f"join.{d}") for d in range(DEPTH - 1)]
        self.last = Conv(ops, weights["last.weight"], weights["last.bias"])

    def __call__(self, x: Array) -> Array:
        """x (B, 3000, 3), normalised -> (B, 3000, 3): noise, P and S."""
        x = _run(self.first, x)
        skips = []
        for d in range(DEPTH):
            x = _run(self.down[d], x)
            if d < DEPTH - 1:
                skips.append(x)
                x = _run(self.stride[d], x)
        for d in reversed(range(DEPTH - 1)):
            x, skip = np.maximum(self.up[d](x), 0), skips[d]
            off = (x.shape[1] - skip.shape[1]) // 2
            x = _run(self.join[d], np.concatenate([skip, x[:, off : off + skip.shape[1]]], axis=2))
        logits = self.last(x)
        e = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities: Array = e / e.sum(-1, keepdims=True)
        return probabilities


def _run(conv: Conv, x: Array) -> Array:
    y = conv(x, *padding(x.shape[1], conv.stride))
    return np.maximum(y, 0, out=y)


def normalised(x: Array, lo: int = 0) -> Array:
    """x (3000, 3), of which the first ``lo`` samples are none: mean 0 and deviation 1 per channel; a channel that does
    not move is zero, and the others stand for it."""
    out = np.zeros_like(x)
    part = x[lo:].astype(np.float64)  # counts of 24 bits
    part -= part.mean(0)
    deviation = part.std(0)
    alive = deviation > 0
    out[lo:] = part / np.where(alive, deviation, 1)
    return out * (len(CHANNELS) / max(int(alive.sum()), 1))


@dataclass(slots=True)
class Trace:
    """What is known of a stream's latest probabilities, and which picks were told."""

    options: Options
    sums: Array = field(default_factory=lambda: np.zeros((WINDOW, len(PHASES))))  # weighted, of the last samples
    weights: Array = field(default_factory=lambda: np.zeros(WINDOW))
    motion: Array = field(default_factory=lambda: np.zeros(WINDOW, np.float32))  # largest of the channels
    end: int = 0  # the sample behind them
    told: int = 0  # picks before this sample are told
    latest: list[int] = field(default_factory=lambda: [-APART, -APART])  # last pick of each phase


def live(ops: Ops, checkpoint: Checkpoint) -> PhaseNet:
    """The model from its checkpoint."""
    return PhaseNet(UNet(ops, {n: checkpoint.f32(n).reshape(checkpoint.raw(n).shape) for n in checkpoint.names()}))


class PhaseNet:
    """The model, as live streams meet it."""

    caps = frozenset({"cells"})

    signal = Signal(RATE, CHANNELS, HOP, WINDOW, "ground motion", ("pick", "probability", "gap"))

    def __init__(self, net: UNet) -> None:
        self.net = net
        distance = np.minimum(np.arange(WINDOW), WINDOW - 1 - np.arange(WINDOW))
        self._trust = np.clip((distance + 1) / (3 * RATE), 0, 1) ** 2  # of a place in a window

    def state_specs(self) -> Mapping[str, CellSpec]:
        return {}

    def options(self, given: Mapping[str, Any]) -> Options:
        return options_of(Options, given)

    def chunk(self, options: Options) -> int:
        return 1

    def begin(self, options: Options) -> Trace:
        return Trace(options)

    def forward(self, b: Batch, state: Any) -> Array:
        """(T, 3000, 3): the probabilities of P and S, and how much the ground moves."""
        x = np.stack([normalised(w, lo) for w, lo in zip(b.inputs, b.lo, strict=True)]) if len(b.inputs) else b.inputs
        out = np.empty_like(x)
        if len(x):
            out[:, :, :2] = self.net(x)[:, :, 1:]
            for row, window, lo in zip(out, b.inputs, b.lo, strict=True):
                row[:lo] = 0
                row[lo:, 2] = np.abs(window[lo:] - window[lo:].mean(0)).max(1)
        return out

    def read(self, record: Trace, ends: Array, rows: Array, last: bool) -> Sequence[Reading]:
        found = []
        for i, (end, row) in enumerate(zip(ends, rows, strict=True)):
            self._add(record, int(end), row)
            if not (last and i == len(rows) - 1):
                found += self._settled(record, record.end - int(record.options.settle * RATE))
        if last and record.end:
            found += self._settled(record, record.end)
        return found

    def _add(self, record: Trace, end: int, row: Array) -> None:
        step = min(end - record.end, WINDOW) if record.end else WINDOW
        for array in (record.sums, record.weights, record.motion):
            array[: WINDOW - step] = array[step:]
            array[WINDOW - step :] = 0
        if not record.end:
            record.told = end - WINDOW
        record.end = end
        record.sums += self._trust[:, None] * row[:, :2]
        record.weights += self._trust
        np.maximum(record.motion, row[:, 2], out=record.motion)

    def _settled(self, record: Trace, upto: int) -> list[Reading]:
        """Picks before this sample that have not been told."""
        first = record.end - WINDOW
        trace = record.sums / np.maximum(record.weights, 1e-9)[:, None]
        found = []
        for phase, name in enumerate(PHASES):
            threshold = (record.options.threshold_p, record.options.threshold_s)[phase]
            for at in peaks(trace[:, phase], threshold):
                sample = first + at
                if not record.told <= sample < upto or sample - record.latest[phase] < APART:
                    continue
                record.latest[phase] = sample
                around = record.motion[max(at - BEFORE, 0) : at + AFTER]
                data = {"phase": name, "probability": float(trace[at, phase]), "amplitude": float(around.max())}
                found.append(Reading("pick", sample / RATE, sample / RATE, data))
        if record.options.probability and upto > record.told:
            lo, hi = max(record.told - first, 0), upto - first
            told = {name: [round(float(v), 4) for v in trace[lo:hi, i]] for i, name in enumerate(PHASES)}
            found.append(Reading("probability", (first + lo) / RATE, (first + hi) / RATE, told))
        record.told = max(record.told, upto)
        return sorted(found, key=lambda r: r.start)


def peaks(trace: Array, threshold: float) -> list[int]:
    """Local maxima of at least this height, of those that are too close together the highest."""
    inner = trace[1:-1]
    at = np.flatnonzero((inner >= threshold) & (inner > trace[:-2]) & (inner >= trace[2:])) + 1
    kept: list[int] = []
    for i in sorted(at, key=lambda i: -trace[i]):
        if all(abs(i - k) >= APART for k in kept):
            kept.append(int(i))
    return sorted(kept)
