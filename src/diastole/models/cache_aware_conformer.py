"""Cache-aware Conformer: speech to text as it is spoken, the same text as if the whole had been there at once.

A FastConformer whose look-back and look-ahead are limited in training as they are on a stream: convolutions see the
past alone, attention sees a chunk and so many frames before it. So a stream keeps what the layers need of the past and
nothing is computed twice. One model serves several chunk sizes, and two ways of reading: CTC and a transducer.

Source: Noroozi et al., "Stateful Conformer with Cache-based Inference for Streaming Automatic Speech Recognition"
(ICASSP 2024; arXiv 2312.17279), its chunk-aware look-ahead. Otherwise than in the public code a frame of the encoder is
made of the eight spectra that end with it, so that all chunks are alike, the first one too, and subsampling keeps its
own past instead of being given nine spectra again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diastole.live import Reading, Signal, options_of
from diastole.nn.conv import Dense
from diastole.nn.mel import LogMel
from diastole.nn.rowwise import layernorm, sigmoid, silu, softmax
from diastole.nn.transducer import END, NONE, Transducer
from diastole.types import Array, Batch, CellSpec, UserError

if TYPE_CHECKING:
    from diastole.kernels.table import Ops
    from diastole.weights import Checkpoint

RATE = 16_000
SPECTRA = 8  # of an encoder's frame
LEVELS = 3  # of subsampling, each by two
LONGEST = 30.0  # seconds of an utterance
State = dict[str, Array]  # of several streams: (B, ...)


class Shape(NamedTuple):
    """Sizes of the encoder."""

    layers: int
    width: int
    heads: int
    inner: int  # of the feed-forward halves
    kernel: int  # of the convolution
    left: int  # frames that attention sees before its chunk
    rights: tuple[int, ...]  # chunk sizes less one, the default first
    channels: int  # of subsampling
    bands: int

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Shape:
        """From a checkpoint's configuration.

        Raises:
            UserError: chunks do not go into the look-back, or it has learned with whole recordings.
        """
        rights = tuple(int(r) for r in config["rights"])
        numbers = {name: int(config[name]) for name in cls._fields if name != "rights"}
        shape = cls(rights=rights, **numbers)
        if -1 in rights:
            message = "this recogniser has learned with whole recordings to see (rights = -1) and cannot stream"
            raise UserError(message, param="model")
        for right in rights:
            if right < 0 or shape.left % (right + 1):
                message = f"left = {shape.left} frames must be whole chunks of {right + 1} frames"
                raise UserError(message, param="left")
        return shape


def positions(count: int, width: int) -> Array:
    """(count, width): sines and cosines of distances count - 1, ..., 0 of frames, the largest first."""
    at = np.arange(count - 1, -1, -1.0)[:, None]
    rates = np.exp(np.arange(0, width, 2) * -(np.log(10_000) / width))
    table = np.empty((count, width), np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(at * rates), np.cos(at * rates)
    return table


def distances(left: int, chunk: int, width: int) -> Array:
    """(left + 2 chunk - 1, width): of distances left + chunk - 1 down to 1 - chunk."""
    ahead = positions(chunk, width)[::-1].copy()  # of 0, 1, ..., chunk - 1
    ahead[:, 0::2] *= -1  # of 0, -1, ...
    found: Array = np.concatenate([positions(left + chunk, width), ahead[1:]])
    return found


class Subsampling:
    """Three convolutions of stride two over time and bands, the second and third one channel at a time and then mixed.
    Over time output j sees 2j - 1, 2j and 2j + 1."""

    def __init__(self, ops: Ops, weights: Mapping[str, Array]) -> None:
        self._first = weights["sub.0.weight"], weights["sub.0.bias"]  # (N, 1, 3, 3)
        self._later = [
            (
                weights[f"sub.{i}.depth.weight"].transpose(2, 3, 0, 1)[..., 0],
                weights[f"sub.{i}.depth.bias"],
                Dense(ops, weights[f"sub.{i}.point.weight"][..., 0, 0], weights[f"sub.{i}.point.bias"]),
            )
            for i in (1, 2)
        ]
        n = len(self._first[1])
        self._spread = Dense(ops, self._first[0].reshape(n, 9), self._first[1])
        self._out = Dense(ops, weights["sub.out.weight"], weights["sub.out.bias"])

    def __call__(self, mel: Array, state: State) -> Array:
        """mel (B, 8 n, bands) -> (B, n, d)."""
        x = _kept(mel, state, "sub0")[..., None]  # (B, 1 + 8 n, bands, 1)
        taps = _windows(x)  # (B, 4 n, bands / 2, 3, 3, 1)
        x = np.maximum(self._spread(taps.reshape(*taps.shape[:3], 9)), 0)
        for i, (depth, bias, point) in enumerate(self._later, 1):
            taps = _windows(_kept(x, state, f"sub{i}"))
            x = sum((depth[j, k] * taps[:, :, :, j, k] for j in range(3) for k in range(3)), start=bias)
            x = np.maximum(point(x), 0)
        return self._out(np.ascontiguousarray(x.transpose(0, 1, 3, 2)).reshape(*x.shape[:2], -1))


def _windows(x: Array) -> Array:
    """x (B, 1 + 2 n, F, N) -> (B, n, F / 2, 3, 3, N): what each output sees, zeros beyond the first and last band."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    b, t, f, c = x.strides
    shape = (len(x), (x.shape[1] - 1) // 2, (x.shape[2] - 2) // 2, 3, 3, x.shape[3])
    return np.lib.stride_tricks.as_strided(x, shape, (b, 2 * t, 2 * f, t, f, c))


def _kept(x: Array, state: State, name: str) -> Array:
    """x (B, n, ...) with what is kept of the past before it; the end of both is kept then."""
    both = np.concatenate([state[name], x], 1)
    state[name] = both[:, both.shape[1] - state[name].shape[1] :]
    return both


class Layer:
    """Half a feed-forward, attention, convolution, the other half, and a norm."""

    def __init__(self, ops: Ops, weights: Mapping[str, Array], at: str, shape: Shape) -> None:
        def dense(name: str) -> Dense:
            return Dense(ops, weights[f"{at}.{name}.weight"], weights.get(f"{at}.{name}.bias"))

        def norm(name: str) -> tuple[Array, Array]:
            return weights[f"{at}.{name}.weight"], weights[f"{at}.{name}.bias"]

        self.shape = shape
        self.halves = [(norm(f"ff{i}_norm"), dense(f"ff{i}_up"), dense(f"ff{i}_down")) for i in (1, 2)]
        self.mha_norm, self.conv_norm = norm("mha_norm"), norm("conv_norm")
        self.q, self.kv, self.out, place = dense("q"), dense("kv"), dense("out"), dense("place")
        self.u, self.v = weights[f"{at}.u"], weights[f"{at}.v"]  # (H, d / H)
        self.conv_in, self.conv_out, self.depth_norm = dense("conv_in"), dense("conv_out"), norm("depth_norm")
        self.depth = weights[f"{at}.depth.weight"][:, 0].T, weights[f"{at}.depth.bias"]  # (k, d), (d,)
        self.last = norm("norm")
        heads = shape.heads
        self.places = {}  # by frames of a chunk: (H, d / H, left + 2 n - 1)
        for n in range(1, max(shape.rights) + 2):
            table = place(distances(shape.left, n, shape.width))
            self.places[n] = np.ascontiguousarray(table.reshape(len(table), heads, -1).transpose(1, 2, 0))

    def __call__(self, x: Array, seen: Array, state: State, i: int) -> Array:
        """x (B, n, d); seen (B,): frames kept that are the stream's."""
        x = x + 0.5 * self._half(0, x)
        x = x + self._attend(layernorm(x, *self.mha_norm), seen, state, f"layer{i}")
        x = x + self._convolve(layernorm(x, *self.conv_norm), state, f"conv{i}")
        x = x + 0.5 * self._half(1, x)
        return layernorm(x, *self.last)

    def _half(self, i: int, x: Array) -> Array:
        norm, up, down = self.halves[i]
        return down(silu(up(layernorm(x, *norm))))

    def _attend(self, x: Array, seen: Array, state: State, name: str) -> Array:
        (b, n, d), heads, left = x.shape, self.shape.heads, self.shape.left
        both = _kept(x, state, name)
        q = self.q(x).reshape(b, n, heads, -1)
        k, v = self.kv(both).reshape(b, left + n, 2, heads, -1).transpose(2, 0, 3, 1, 4)
        content = np.matmul((q + self.u).transpose(0, 2, 1, 3), k.transpose(0, 1, 3, 2))
        place = np.matmul((q + self.v).transpose(0, 2, 1, 3), self.places[n])
        # Of query i and key j the distance is left + i - j, which is column n - 1 - i + j.
        column = (n - 1 - np.arange(n))[:, None] + np.arange(left + n)
        scores = content + np.take_along_axis(place, column[None, None], 3)
        scores *= np.float32((d // heads) ** -0.5)
        missing = np.arange(left + n) < left - seen[:, None]
        scores = np.where(missing[:, None, None], -np.inf, scores)
        mixed = np.matmul(softmax(scores), v).transpose(0, 2, 1, 3).reshape(b, n, d)
        return self.out(mixed)

    def _convolve(self, x: Array, state: State, name: str) -> Array:
        gate = self.conv_in(x)
        d = x.shape[2]
        both = _kept(gate[..., :d] * sigmoid(gate[..., d:]), state, name)
        taps, bias = self.depth
        n = x.shape[1]
        y = sum((taps[k] * both[:, k : k + n] for k in range(len(taps))), start=bias)
        return self.conv_out(silu(layernorm(y, *self.depth_norm)))


class Encoder:
    """From samples to frames, chunk by chunk, for several streams at once."""

    def __init__(self, ops: Ops, weights: Mapping[str, Array], shape: Shape) -> None:
        self.shape = shape
        self.mel = LogMel(ops, RATE, shape.bands)
        self.mean, self.scale = weights["mel_mean"], weights["mel_scale"]  # of the training's data, fixed
        self.subsampling = Subsampling(ops, weights)
        self.layers = [Layer(ops, weights, f"layers.{i}", shape) for i in range(shape.layers)]

    def specs(self) -> dict[str, CellSpec]:
        """What it keeps of a stream."""
        s = self.shape
        specs = {"samples": CellSpec((self.mel.tail,)), "sub0": CellSpec((1, s.bands))}
        specs |= {f"sub{i}": CellSpec((1, s.bands >> i, s.channels)) for i in (1, 2)}
        for i in range(s.layers):
            specs[f"layer{i}"] = CellSpec((s.left, s.width))
            specs[f"conv{i}"] = CellSpec((s.kernel - 1, s.width))
        return {**specs, "seen": CellSpec((), "int64")}

    def __call__(self, samples: Array, state: State) -> Array:
        """samples (B, n 1280) -> (B, n, d), of one chunk of each stream; ``state`` is that behind it then."""
        mel = self.mel(_kept(samples, state, "samples"))
        x = self.subsampling((mel - self.mean) * self.scale, state)
        for i, layer in enumerate(self.layers):
            x = layer(x, state["seen"], state, i)
        state["seen"] = np.minimum(state["seen"] + x.shape[1], self.shape.left)
        return x


@dataclass(frozen=True, slots=True)
class Options:
    """What a stream may ask for."""

    latency_ms: int = -1  # how far it looks ahead at most; -1: the model's default
    decoder: str = "ctc"  # or rnnt
    endpoint_ms: int = 800  # of nothing said end an utterance, LONGEST does too; 0: only the input's end does

    def __post_init__(self) -> None:
        if self.decoder not in {"rnnt", "ctc"}:
            raise UserError(f"decoder must be rnnt or ctc, not {self.decoder!r:.40}", param="decoder")
        if not 0 <= self.endpoint_ms <= 60_000:
            raise UserError("endpoint_ms must be 0 to 60000", param="endpoint_ms")


def live(ops: Ops, checkpoint: Checkpoint) -> CacheAwareConformer:
    """The model from its checkpoint."""
    weights = {n: checkpoint.f32(n).reshape(checkpoint.raw(n).shape) for n in checkpoint.names()}
    shape = Shape.read(checkpoint.config)
    return CacheAwareConformer(
        Encoder(ops, weights, shape), Transducer(ops, weights), tuple(checkpoint.config["symbols"])
    )


class CacheAwareConformer:
    """The model, as live streams meet it.

    Args:
        symbols: texts of the decoders' outputs but the last, which is none; words begin with a space.
    """

    caps = frozenset({"cells"})

    def __init__(self, encoder: Encoder, transducer: Transducer, symbols: Sequence[str]) -> None:
        self.encoder, self.transducer, self.symbols = encoder, transducer, symbols
        hop = SPECTRA * encoder.mel.hop
        self.frame_ms = round(1000 * hop / RATE)
        self.signal = Signal(RATE, ("mono",), hop, 0, "sound pressure", ("partial", "final", "gap"))

    def state_specs(self) -> Mapping[str, CellSpec]:
        return {**self.encoder.specs(), **self.transducer.specs()}

    def options(self, given: Mapping[str, Any]) -> Options:
        options = options_of(Options, given)
        known = [self.frame_ms * r for r in self.encoder.shape.rights]
        if options.latency_ms not in {-1, *known}:
            said = ", ".join(map(str, sorted(known)))
            raise UserError(f"latency_ms must be one of {said}, not {options.latency_ms}", param="latency_ms")
        return options

    def chunk(self, options: Options) -> int:
        right = self.encoder.shape.rights[0] if options.latency_ms < 0 else options.latency_ms // self.frame_ms
        return right + 1

    def begin(self, options: Options) -> Utterance:
        return Utterance(LONGEST if options.endpoint_ms else np.inf)

    def forward(self, b: Batch, state: Any) -> Array:
        """(T, symbols at most): what each frame says."""
        out = np.full((len(b.inputs), self.transducer.most), NONE, np.int32)
        arrays = state["cell"].arrays
        todo = [
            (stream.own.options, leases["cell"].places[0], lo, hi)
            for (stream, _), leases, lo, hi in zip(b.grants, b.leases, b.starts, b.starts[1:], strict=False)
        ]
        while todo := [t for t in todo if t[2] < t[3]]:
            # One chunk of each stream, as many frames together as there are; only the last chunks are shorter.
            size = min(self.chunk(todo[0][0]), todo[0][3] - todo[0][2])
            now = [t for t in todo if min(self.chunk(t[0]), t[3] - t[2]) == size]
            self._run(now, size, b.inputs, arrays, out)
            todo = [(o, c, lo + size, hi) if (o, c, lo, hi) in now else (o, c, lo, hi) for o, c, lo, hi in todo]
        return out

    def _run(self, now: list[Any], size: int, inputs: Array, arrays: Mapping[str, Array], out: Array) -> None:
        cells = np.array([cell for _, cell, _, _ in now])
        rows = np.stack([np.arange(lo, lo + size) for _, _, lo, _ in now])
        own = self.encoder.specs()
        kept = {name: arrays[name][cells] for name in own}
        frames = self.encoder(inputs[rows].reshape(len(now), -1), kept)
        for name in own:
            arrays[name][cells] = kept[name]
        for decoder, read in (("ctc", self.transducer.ctc), ("rnnt", self.transducer.greedy)):
            these = [i for i, t in enumerate(now) if t[0].decoder == decoder]
            if these:
                ends = np.array([now[i][0].endpoint_ms // self.frame_ms or np.iinfo(np.int64).max for i in these])
                out[rows[these]] = read(frames[these], arrays, cells[these], ends)

    def read(self, record: Utterance, ends: Array, rows: Array, last: bool) -> Sequence[Reading]:
        found, frame = [], self.frame_ms / 1000
        for end, row in zip(ends, rows, strict=True):
            said = [self.symbols[s] for s in row if s >= 0]
            if record.full("".join(said), float(end) / RATE):
                found += record.final()
            record.hear(said, float(end) / RATE, frame)
            if END in row:
                found += record.final()
        if record.fresh and not last:
            found.append(record.partial())
        if last:
            found += record.final()
        return found


@dataclass(slots=True)
class Utterance:
    """What has been said since the last end of one."""

    longest: float  # seconds after which the next word begins another
    letters: list[tuple[str, float, float]] = field(default_factory=list)  # with start and end in seconds
    fresh: bool = False

    def hear(self, said: Sequence[str], at: float, frame: float) -> None:
        """What a frame that ends at so many seconds says."""
        self.letters += [(s, at - frame, at) for s in said]
        self.fresh = self.fresh or bool(said)

    def full(self, said: str, at: float) -> bool:
        """Whether it ends before this is heard: so nobody who speaks without a pause makes it longer and longer."""
        lasted = at - self.letters[0][1] if self.letters else 0.0
        return lasted > 2 * self.longest or (lasted > self.longest and said.startswith(" "))

    def partial(self) -> Reading:
        self.fresh = False
        text = "".join(s for s, _, _ in self.letters).strip()
        return Reading("partial", self.letters[0][1], self.letters[-1][2], {"text": text})

    def final(self) -> list[Reading]:
        """The utterance, if anything was said, and a new one begins."""
        letters, self.letters, self.fresh = self.letters, [], False
        words: list[dict[str, Any]] = []
        for symbol, start, end in letters:
            if symbol.startswith(" ") or not words:  # a word begins
                words.append({"word": "", "start": round(start, 3), "end": 0.0})
            words[-1]["word"] += symbol.strip()
            words[-1]["end"] = round(end, 3)
        words = [w for w in words if w["word"]]
        if not words:
            return []
        text = " ".join(w["word"] for w in words)
        return [Reading("final", letters[0][1], letters[-1][2], {"text": text, "words": words})]
