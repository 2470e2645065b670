"""DBConformer: two small transformers over a window of EEG, one over stretches of time and one over channels.

Their means, the channels' weighted by a learned attention, give the classes. A window may be aligned first: multiplied
by the inverse root of the mean covariance of its person's windows, which makes people alike (Euclidean alignment). On a
live stream that mean can be the training's, or one that runs along.

Source: Wang et al., "DBConformer" (IEEE JBHI 2025; arXiv 2506.21140); of the public code the widths, the scale of
attention and the order of layers. Here an odd number of samples is told by the patch, not by a data set's name, and
GELU is its usual approximation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diastole.live import Reading, Signal, options_of
from diastole.nn.conv import Conv, Dense, folded
from diastole.nn.rowwise import elu, gelu, layernorm, softmax
from diastole.types import Array, Batch, CellSpec, UserError

if TYPE_CHECKING:
    from diastole.kernels.table import Ops
    from diastole.weights import Checkpoint

HEADS = 10
KERNEL, SPATIAL, SPATIAL_STRIDE = 63, 25, 5  # widths of the convolutions over time
EPS = 1e-5
FEW = 8  # windows that are filtered together: what comes of more does not stay in a core's cache
BEFORE = 2  # windows per channel that the training's covariance counts for, where one runs along


@dataclass(frozen=True, slots=True)
class Options:
    """What a stream may ask for."""

    align: str = "stored"  # stored, running, none
    smooth: float = 0.0  # of the probabilities told, the share that the last ones have
    weights: bool = False  # tell how much each channel counts

    def __post_init__(self) -> None:
        if self.align not in {"stored", "running", "none"}:
            raise UserError(f"align must be stored, running or none, not {self.align!r:.40}", param="align")
        if not 0 <= self.smooth < 1:
            raise UserError("smooth must be at least 0 and less than 1", param="smooth")


class Encoder:
    """Pre-norm layers whose scores are divided by the root of the whole width, not of a head's."""

    def __init__(self, ops: Ops, weights: Mapping[str, Array], prefix: str) -> None:
        self.layers = []
        i = 0
        while f"{prefix}.{i}.qkv.weight" in weights:
            at = f"{prefix}.{i}"
            norms = [(weights[f"{at}.{n}.weight"], weights[f"{at}.{n}.bias"]) for n in ("norm1", "norm2")]
            dense = [
                Dense(ops, weights[f"{at}.{n}.weight"], weights[f"{at}.{n}.bias"]) for n in ("qkv", "out", "up", "down")
            ]
            self.layers.append((norms, dense))
            i += 1

    def __call__(self, x: Array) -> Array:
        """x (B, N, D) -> (B, N, D)."""
        b, n, d = x.shape
        for ((w1, b1), (w2, b2)), (qkv, out, up, down) in self.layers:
            parts = qkv(layernorm(x, w1, b1)).reshape(b, n, 3, HEADS, d // HEADS).transpose(2, 0, 3, 1, 4)
            q, k, v = (np.ascontiguousarray(p) for p in parts)
            scores = softmax(np.matmul(q, k.transpose(0, 1, 3, 2)) * np.float32(d**-0.5))
            mixed = np.matmul(scores, v).transpose(0, 2, 1, 3).reshape(b, n, d)
            x = x + out(mixed)
            x = x + down(gelu(up(layernorm(x, w2, b2))))
        return x


class Net:
    """The classifier of windows.

    Args:
        branch: "both"; "temporal" or "spatial" alone, for comparison.
    """

    def __init__(self, ops: Ops, weights: Mapping[str, Array], patch: int, branch: str = "both") -> None:
        self.patch, self.branch = patch, branch
        self.time, self.channels = Encoder(ops, weights, "time"), Encoder(ops, weights, "channels")
        if branch != "spatial":
            self._stem(ops, weights)
            self.time_place = weights["time_place"]
        if branch != "temporal":
            self.each = Conv(ops, weights["each.weight"], weights["each.bias"], SPATIAL_STRIDE)
            self.widen = Dense(ops, weights["widen.weight"], weights["widen.bias"])
            self.channel_place = weights["channel_place"]
            self.look = Dense(ops, weights["look.weight"], weights["look.bias"])
            self.score = Dense(ops, weights["score.weight"], weights["score.bias"])
        self.head = [Dense(ops, weights[f"head.{i}.weight"], weights[f"head.{i}.bias"]) for i in range(3)]

    def _stem(self, ops: Ops, weights: Mapping[str, Array]) -> None:
        """Mixing the channels and then filtering each mixture is one convolution, except that zeros stand before and
        behind what is filtered, not what is mixed: there the mixture's own bias is missing."""
        mix, mix_bias = folded(weights, "mix", "mix_norm", EPS)  # (D, C, 1), (D,)
        scale, bias = folded(weights, "filter", "filter_norm", EPS)  # (D, 1, 63), (D,)
        self.stem = Conv(ops, np.matmul(mix, scale), np.zeros_like(bias))  # (D, C, 63)
        self._taps, self._mixed, self._bias = scale[:, 0], mix_bias, bias
        self._constant: dict[int, Array] = {}  # by length of a window

    def constant(self, length: int) -> Array:
        """(T, D): what the stem adds at each sample."""
        if length not in self._constant:
            half = KERNEL // 2
            inside = np.pad(np.ones(length), half)
            share = np.stack([np.convolve(inside, taps[::-1], "valid") for taps in self._taps], 1)
            self._constant[length] = (share * self._mixed + self._bias).astype(np.float32)
        return self._constant[length]

    def _stretches(self, x: Array) -> Array:
        """x (B, T, C) -> (B, P, D): means over stretches of time of the mixed and filtered channels."""
        b, t, _ = x.shape
        y = gelu(self.stem(x, KERNEL // 2, KERNEL // 2) + self.constant(t))
        found: Array = y[:, : t // self.patch * self.patch].reshape(b, -1, self.patch, y.shape[2]).mean(2)
        return found

    def _filtered(self, x: Array) -> Array:
        """x (B, T, C) -> (B·C, F): means over time of each channel by itself, filtered."""
        b, t, c = x.shape
        each = np.ascontiguousarray(x.transpose(0, 2, 1)).reshape(b * c, t, 1)
        found: Array = elu(self.each(each, SPATIAL // 2, SPATIAL // 2)).mean(1)
        return found

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """x (B, T, C) -> logits (B, classes), and how much each channel counts (B, C); equally much if nobody says."""
        b, _, c = x.shape
        found = []
        weights = np.full((b, c), 1 / c, np.float32)
        few = [x[at : at + FEW] for at in range(0, b, FEW)]
        if self.branch != "spatial":
            tokens = np.concatenate([self._stretches(part) for part in few])
            found.append(self.time(tokens + self.time_place).mean(1))
        if self.branch != "temporal":
            y = np.concatenate([self._filtered(part) for part in few])
            tokens = self.channels(self.widen(y).reshape(b, c, -1) + self.channel_place)
            weights = softmax(self.score(np.tanh(self.look(tokens)))[..., 0])
            found.append((weights[..., None] * tokens).sum(1))
        y = np.concatenate(found, 1)
        for dense in self.head[:-1]:
            y = elu(dense(y))
        return self.head[-1](y), weights


def live(ops: Ops, checkpoint: Checkpoint) -> DBConformer:
    """The model from its checkpoint."""
    weights = {n: checkpoint.f32(n).reshape(checkpoint.raw(n).shape) for n in checkpoint.names()}
    config = checkpoint.config
    signal = Signal(
        float(config["rate"]),
        tuple(config["channels"]),
        int(config["stride"]),
        int(config["window"]),
        str(config.get("quantity", "")),
        ("label", "gap"),
        str(config.get("unit", "")),
    )
    return DBConformer(Net(ops, weights, int(config["patch"])), signal, tuple(config["labels"]), weights["covariance"])


class DBConformer:
    """The model, as live streams meet it.

    Args:
        covariance: (C, C) mean of X Xᵀ / T over the training's windows.
    """

    caps = frozenset({"cells"})

    def __init__(self, net: Net, signal: Signal, labels: Sequence[str], covariance: Array) -> None:
        self.net, self.signal, self.labels, self.covariance = net, signal, labels, covariance.astype(np.float64)
        self._root = inverse_root(self.covariance)

    def state_specs(self) -> Mapping[str, CellSpec]:
        c = len(self.signal.channels)
        return {"covariance": CellSpec((c, c), "float64"), "windows": CellSpec((), "int64")}

    def options(self, given: Mapping[str, Any]) -> Options:
        return options_of(Options, given)

    def chunk(self, options: Options) -> int:
        return 1

    def begin(self, options: Options) -> Smoothed:
        return Smoothed(options)

    def forward(self, b: Batch, state: Any) -> Array:
        """(T, classes + C): probabilities, and how much each channel counts."""
        classes = len(self.labels)
        if not len(b.inputs):
            return np.empty((0, classes + len(self.signal.channels)), np.float32)
        x = np.empty_like(b.inputs)
        for (stream, _), leases, lo, hi in zip(b.grants, b.leases, b.starts, b.starts[1:], strict=False):
            align = stream.own.options.align
            for i in range(lo, hi):
                x[i] = b.inputs[i] if align == "none" else self._aligned(b.inputs[i], align, leases, state)
        logits, weights = self.net(x)
        return np.concatenate([softmax(logits), weights], 1)

    def _aligned(self, x: Array, align: str, leases: Mapping[str, Any], state: Any) -> Array:
        root = self._root
        if align == "running":
            arrays, cell = state["cell"].arrays, leases["cell"].places[0]
            wide = x.astype(np.float64)
            arrays["covariance"][cell] += wide.T @ wide / len(x)
            arrays["windows"][cell] += 1
            weight = BEFORE * len(self.signal.channels)
            mean = (self.covariance * weight + arrays["covariance"][cell]) / (weight + arrays["windows"][cell])
            root = inverse_root(mean)
        return x @ root.astype(np.float32)  # it is symmetric

    def read(self, record: Smoothed, ends: Array, rows: Array, last: bool) -> Sequence[Reading]:
        found = []
        for end, row in zip(ends, rows, strict=True):
            chances = record.next(row[: len(self.labels)].astype(np.float64))
            data: dict[str, Any] = {
                "label": self.labels[int(chances.argmax())],
                "probabilities": {n: round(float(p), 4) for n, p in zip(self.labels, chances, strict=True)},
            }
            if record.options.weights:
                told = zip(self.signal.channels, row[len(self.labels) :], strict=True)
                data["channel_weights"] = {n: round(float(w), 4) for n, w in told}
            rate = self.signal.rate
            found.append(Reading("label", (float(end) - self.signal.window) / rate, float(end) / rate, data))
        return found


class Smoothed:
    """The probabilities of a stream, as told."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._last: Array | None = None

    def next(self, chances: Array) -> Array:
        """Those of one more window."""
        if self._last is not None:
            chances = self.options.smooth * self._last + (1 - self.options.smooth) * chances
        self._last = chances
        return chances


def inverse_root(covariance: Array) -> Array:
    """Its inverse square root; directions in which nothing varies stay as they are."""
    values, vectors = np.linalg.eigh(covariance)
    floor = max(float(values[-1]), 1e-30) * 1e-10
    scale = np.where(values > floor, 1 / np.sqrt(np.maximum(values, floor)), 1.0)
    found: Array = (vectors * scale) @ vectors.T
    return found
