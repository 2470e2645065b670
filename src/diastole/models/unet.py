"""UNet: takes noise off pictures: an encoder, a middle, and a decoder that is given all that the encoder saw.

Class-conditional, with guidance as a pair of branches (Ho and Salimans, arXiv 2207.12598). Source of the layout:
Ronneberger et al. (arXiv 1505.04597), Ho et al. (arXiv 2006.11239); tensors and settings by the names of diffusers'
UNet2DModel, whose directories are read, with its DDIM scheduler.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diastole.nn.conv import Dense
from diastole.nn.conv2d import Conv2d, GroupNorm, doubled
from diastole.nn.noise import Schedule
from diastole.nn.rowwise import silu, softmax
from diastole.types import Array, Batch, CellSpec, UserError

if TYPE_CHECKING:
    from diastole.kernels.table import Ops
    from diastole.weights import Checkpoint

CACHED = 512 << 10  # bytes of the widest layer's input over the pictures that run in one go: half a core's second cache
LARGEST = 4096  # pixels of a side


class Shape(NamedTuple):
    """What the configuration says, checked."""

    side: int
    channels: int
    widths: tuple[int, ...]
    down: tuple[bool, ...]  # whether a level's encoder attends
    up: tuple[bool, ...]  # whether its decoder does, from the lowest level up
    layers: int
    groups: int
    eps: float
    head: int  # channels of an attention head; 0: one head
    classes: int  # labels, with the one that says nothing
    flip: bool  # cosines before sines
    shift: float

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Shape:
        """Raises:
        UserError: a setting is missing, or of a variant that is not known.
        """
        for name, usual in (("act_fn", "silu"), ("time_embedding_type", "positional"), ("center_input_sample", False),
                            ("resnet_time_scale_shift", "default"), ("downsample_padding", 1),
                            ("mid_block_scale_factor", 1), ("class_embed_type", None)):  # fmt: skip
            if config.get(name, usual) != usual:
                raise UserError(f"{name} must be {usual!r}, not {config[name]!r:.40}", param=name)
        down = tuple(_attends(config, "down_block_types", "DownBlock2D"))
        up = tuple(_attends(config, "up_block_types", "UpBlock2D"))
        widths = tuple(_number(w, "block_out_channels", 1, 8192) for w in config.get("block_out_channels", ()))
        if not len(widths) == len(down) == len(up) > 0:
            raise UserError("block_out_channels and the block types must be as many", param="block_out_channels")
        side = _number(config.get("sample_size"), "sample_size", 1, LARGEST)
        if side % (1 << (len(widths) - 1)):
            message = f"sample_size {side} cannot be halved {len(widths) - 1} times"
            raise UserError(message, param="sample_size")
        groups = _number(config.get("norm_num_groups", 32), "norm_num_groups", 1, 1024)
        head = config.get("attention_head_dim", 8)
        head = 0 if head is None else _number(head, "attention_head_dim", 1, 8192)
        for i, width in enumerate(widths):
            attends = down[i] or up[len(widths) - 1 - i] or i == len(widths) - 1  # so does the middle, after the last
            if width % groups or width % 2 or (head and attends and width % head):
                message = f"block_out_channels: {width} must be even and whole groups of {groups} and heads of {head}"
                raise UserError(message, param="block_out_channels")
        return cls(
            side,
            _number(config.get("in_channels", 3), "in_channels", 1, 64),
            widths,
            down,
            up,
            _number(config.get("layers_per_block", 2), "layers_per_block", 1, 16),
            groups,
            float(config.get("norm_eps", 1e-5)),
            head,
            _number(config.get("num_class_embeds") or 1, "num_class_embeds", 1, 1 << 20),
            bool(config.get("flip_sin_to_cos", True)),
            float(config.get("freq_shift", 0)),
        )


def _number(value: Any, name: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"{name} must be an integer from {low} to {high}, not {value!r:.40}", param=name)
    return value


def _attends(config: Mapping[str, Any], name: str, plain: str) -> list[bool]:
    kinds = config.get(name, ())
    for kind in kinds:
        if kind not in {plain, f"Attn{plain}"}:
            raise UserError(f"{name}: {kind!r:.40} is not known; {plain} and Attn{plain} are", param=name)
    return [kind != plain for kind in kinds]


class Weights:
    """Reads a checkpoint's tensors as layers."""

    def __init__(self, ops: Ops, checkpoint: Checkpoint, shape: Shape) -> None:
        self.ops, self.shape, self._checkpoint = ops, shape, checkpoint
        self._names = frozenset(checkpoint.names())

    def tensor(self, name: str) -> Array:
        return self._checkpoint.f32(name).reshape(self._checkpoint.raw(name).shape)

    def has(self, name: str) -> bool:
        return name in self._names

    def dense(self, at: str) -> Dense:
        weight = self.tensor(f"{at}.weight")
        return Dense(self.ops, weight.reshape(weight.shape[:2]), self.tensor(f"{at}.bias"))

    def conv(self, at: str, stride: int = 1) -> Conv2d:
        weight = self.tensor(f"{at}.weight")
        if weight.ndim != 4 or weight.shape[2:] != (3, 3):
            raise UserError(f"{at} must be a convolution of 3 x 3, not {weight.shape}", param="model")
        return Conv2d(self.ops, weight, self.tensor(f"{at}.bias"), stride)

    def norm(self, at: str) -> GroupNorm:
        weight = self.tensor(f"{at}.weight")
        if len(weight) % self.shape.groups:
            raise UserError(f"{at} has {len(weight)} channels, no whole groups of {self.shape.groups}", param="model")
        return GroupNorm(weight, self.tensor(f"{at}.bias"), self.shape.groups, self.shape.eps)


class Resnet:
    """Two convolutions around the time."""

    def __init__(self, w: Weights, at: str) -> None:
        self.norm1, self.conv1 = w.norm(f"{at}.norm1"), w.conv(f"{at}.conv1")
        self.norm2, self.conv2 = w.norm(f"{at}.norm2"), w.conv(f"{at}.conv2")
        self.time = w.dense(f"{at}.time_emb_proj")
        self.short = w.dense(f"{at}.conv_shortcut") if w.has(f"{at}.conv_shortcut.weight") else None

    def __call__(self, x: Array, emb: Array) -> Array:
        """x (B, H, W, C); emb (B, E), after its activation."""
        y = self.conv1(silu(self.norm1(x))) + self.time(emb)[:, None, None]
        y = self.conv2(silu(self.norm2(y)))
        found: Array = y + (x if self.short is None else self.short(x))
        return found


class Attention:
    """All pixels look at all."""

    def __init__(self, w: Weights, at: str) -> None:
        self.norm, self.out = w.norm(f"{at}.group_norm"), w.dense(f"{at}.to_out.0")
        self.q, self.k, self.v = (w.dense(f"{at}.to_{n}") for n in "qkv")
        self.head = w.shape.head

    def __call__(self, x: Array) -> Array:
        b, h, wide, c = x.shape
        y = self.norm(x).reshape(b, h * wide, c)
        heads = c // self.head if self.head else 1
        q, k, v = (p(y).reshape(b, h * wide, heads, -1).transpose(0, 2, 1, 3) for p in (self.q, self.k, self.v))
        scores = np.matmul(q, k.transpose(0, 1, 3, 2)) * np.float32((c // heads) ** -0.5)
        seen = np.matmul(softmax(scores), v).transpose(0, 2, 1, 3).reshape(b, h, wide, c)
        found: Array = x + self.out(seen)
        return found


class Level:
    """Resnets of one width of pictures, with attention after each where there is some."""

    def __init__(self, w: Weights, at: str, count: int, attends: bool) -> None:
        self.resnets = [Resnet(w, f"{at}.resnets.{i}") for i in range(count)]
        self.attentions = [Attention(w, f"{at}.attentions.{i}") for i in range(count)] if attends else []

    def run(self, i: int, x: Array, emb: Array) -> Array:
        x = self.resnets[i](x, emb)
        return self.attentions[i](x) if self.attentions else x


Features = list[Array]  # what the middle gives, then what each layer before it gave: (B, h, w, c) each


class Net:
    """Encoder and decoder apart."""

    def __init__(self, w: Weights) -> None:
        s = self.shape = w.shape
        levels = len(s.widths)
        self.conv_in, self.conv_out = w.conv("conv_in"), w.conv("conv_out")
        self.time = w.dense("time_embedding.linear_1"), w.dense("time_embedding.linear_2")
        self.labels = w.tensor("class_embedding.weight") if w.has("class_embedding.weight") else None
        if self.labels is not None and self.labels.shape != (s.classes, 4 * s.widths[0]):
            raise UserError(
                f"class_embedding is {self.labels.shape}, for {s.classes} classes", param="num_class_embeds"
            )
        self.down = [Level(w, f"down_blocks.{i}", s.layers, a) for i, a in enumerate(s.down)]
        self.halve = [w.conv(f"down_blocks.{i}.downsamplers.0.conv", 2) for i in range(levels - 1)]
        self.middle = [Resnet(w, f"mid_block.resnets.{i}") for i in range(2)]
        self.attention = Attention(w, "mid_block.attentions.0") if w.has("mid_block.attentions.0.to_q.weight") else None
        self.up = [Level(w, f"up_blocks.{i}", s.layers + 1, a) for i, a in enumerate(s.up)]
        self.double = [w.conv(f"up_blocks.{i}.upsamplers.0.conv") for i in range(levels - 1)]
        self.norm_out = w.norm("conv_norm_out")

    def embedded(self, t: Array, labels: Array) -> Array:
        """t (B,), labels (B,) -> (B, E), after its activation."""
        half, s = self.shape.widths[0] // 2, self.shape
        angle = t[:, None] * np.exp(np.arange(half) * (-np.log(10_000) / (half - s.shift)))
        waves = [np.cos(angle), np.sin(angle)] if s.flip else [np.sin(angle), np.cos(angle)]
        first, second = self.time
        emb = second(silu(first(np.concatenate(waves, 1).astype(np.float32))))
        return silu(emb if self.labels is None else emb + self.labels[labels])

    def encode(self, x: Array, emb: Array) -> Features:
        """x (B, H, W, C)."""
        x = self.conv_in(x)
        skips = [x]
        for level, of in enumerate(self.down):
            for i in range(self.shape.layers):
                x = of.run(i, x, emb)
                skips.append(x)
            if level < len(self.halve):
                x = self.halve[level](x)
                skips.append(x)
        x = self.middle[0](x, emb)
        if self.attention is not None:
            x = self.attention(x)
        return [self.middle[1](x, emb), *skips]

    def decode(self, features: Features, emb: Array) -> Array:
        """-> (B, H, W, C): what it finds, noise as a rule. The features stay as they are."""
        *_, x = self.levels(features, emb)
        return self.last(x)

    def levels(self, features: Features, emb: Array) -> Iterator[Array]:
        """What each level of the decoder gives."""
        x, *skips = features
        for level, of in enumerate(self.up):
            for i in range(self.shape.layers + 1):
                x = of.run(i, np.concatenate([x, skips.pop()], 3), emb)
            if level < len(self.double):
                x = self.double[level](doubled(x))
            yield x

    def last(self, x: Array) -> Array:
        """What is found, from what the last of them gives."""
        return self.conv_out(silu(self.norm_out(x)))


def denoiser(ops: Ops, checkpoint: Checkpoint) -> UNet:
    """The model from its checkpoint; its scheduler's settings are in its own, or beside it as in a pipeline."""
    config = checkpoint.config
    settings = config.get("scheduler")
    beside = checkpoint.path.parent / "scheduler" / "scheduler_config.json"
    if settings is None and beside.is_file():
        settings = json.loads(beside.read_text("utf-8")[: 1 << 20])
    if not isinstance(settings, dict):
        raise UserError("this model comes without its scheduler's settings (scheduler_config.json)", param="model")
    labels = config.get("labels", ())
    return UNet(Net(Weights(ops, checkpoint, Shape.read(config))), Schedule(settings), [str(x) for x in labels])


class UNet:
    """The model, as its loop meets it.

    Args:
        names: of labels, in their order; one number more stands for none.
    """

    caps = frozenset({"steps", "unet"})

    def __init__(self, net: Net, schedule: Schedule, names: Sequence[str]) -> None:
        s = net.shape
        self.net, self.schedule, self.names = net, schedule, list(names)
        self.size = s.side, s.side, s.channels
        widest = s.side * s.side * s.widths[0] * 4
        self.encoded, self.decoded = max(CACHED // widest, 1), max(CACHED // (2 * widest), 1)  # pictures in one go
        self.classes = s.classes - 1 if net.labels is not None else 0  # that can be asked for
        if len(self.names) != self.classes and self.names:
            raise UserError(f"there are {len(self.names)} labels for {self.classes} classes", param="labels")

    def features(self) -> Mapping[str, CellSpec]:
        """What a stream keeps of its encoder, for both branches."""
        h, w, c = self.size
        x, t, label = np.zeros((1, h, w, c), np.float32), np.zeros(1), np.zeros(1, np.int64)
        found = self.net.encode(x, self.net.embedded(t, label))
        return {f"feature{i}": CellSpec((2, *f.shape[1:])) for i, f in enumerate(found)}

    def forward(self, b: Batch, state: Any) -> Array:
        """What is found in every picture, step by step, branch by branch: (R, H, W, C).

        The batch brings, in ``extra``, a plan for each stream: the picture, the times of its steps, the labels of its
        branches, and whether the encoder runs on the first of them or what is kept of it counts.
        """
        plans = b.extra["plans"]
        arrays = state["cell"].arrays if "cell" in state else {}
        cells = [leases["cell"].places[0] for leases in b.leases]
        features = self._features(plans, cells, arrays)
        out = []
        rows = [(i, j, t, label) for i, p in enumerate(plans) for t in p.times for j, label in enumerate(p.labels)]
        for at in range(0, len(rows), self.decoded):
            part = rows[at : at + self.decoded]
            emb = self.net.embedded(np.array([t for _, _, t, _ in part]), np.array([x for _, _, _, x in part]))
            own = [np.stack([features[i][k][j] for i, j, _, _ in part]) for k in range(len(features[0]))]
            out.append(self.net.decode(own, emb))
        found: Array = np.concatenate(out)
        return found

    def _features(self, plans: Sequence[Any], cells: Sequence[int], arrays: Mapping[str, Array]) -> list[Features]:
        """Of each stream, with a branch for each of its labels; fresh ones are kept, where there is room for that."""
        rows = [(i, j) for i, p in enumerate(plans) if p.encode for j in range(len(p.labels))]
        fresh: dict[tuple[int, int], Features] = {}
        for at in range(0, len(rows), self.encoded):
            part = rows[at : at + self.encoded]
            emb = self.net.embedded(
                np.array([plans[i].times[0] for i, _ in part]), np.array([plans[i].labels[j] for i, j in part])
            )
            found = self.net.encode(np.stack([plans[i].x for i, _ in part]), emb)
            fresh |= {row: [f[n] for f in found] for n, row in enumerate(part)}
        features = []
        for i, plan in enumerate(plans):
            own = arrays.values()
            if plan.encode:
                branches = [fresh[i, j] for j in range(len(plan.labels))]
                for k, array in enumerate(own):
                    for j, branch in enumerate(branches):
                        array[cells[i], j] = branch[k]
                features.append([np.stack(f) for f in zip(*branches, strict=True)])
            else:
                features.append([array[cells[i]] for array in own])
        return features
