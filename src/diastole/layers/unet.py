"""What a UNet is made of: its shape and layers by the names of diffusers' UNet2DModel, and how they are read.

A layer of the decoder looks at what comes from below it and at what its counterpart in the encoder saw. All that it
makes of the latter alone, whatever the time is and whatever comes from below, is computed with the encoder and kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diastole.nn.conv import Dense
from diastole.nn.conv2d import Conv2d, GroupNorm
from diastole.nn.rowwise import softmax
from diastole.types import Array, UserError

if TYPE_CHECKING:
    from diastole.kernels.table import Ops
    from diastole.weights import Checkpoint

LARGEST = 4096  # pixels of a side
ATTENTION, OLDER_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0"), ("query", "key", "value", "proj_attn")

Features = list[Array]  # (B, h, w, c) each


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
    rim: int  # of zeros before the pixels of a picture that is halved
    classes: int  # labels, with the one that says nothing
    flip: bool  # cosines before sines
    shift: float

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Shape:
        """Raises:
        UserError: a setting is missing, or of a variant that is not known.
        """
        for name, usual in (("act_fn", "silu"), ("time_embedding_type", "positional"), ("center_input_sample", False),
                            ("resnet_time_scale_shift", "default"), ("downsample_type", "conv"),
                            ("upsample_type", "conv"), ("mid_block_scale_factor", 1), ("class_embed_type", None),
                            ("attn_norm_num_groups", None)):  # fmt: skip
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
            _number(config.get("downsample_padding", 1), "downsample_padding", 0, 1),
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


def scheduler(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Settings of a model's scheduler: in its own, or in a file beside these or, as in a pipeline, in the next folder.

    Raises:
        UserError: there are none, or they are damaged.
    """
    settings, name = checkpoint.config.get("scheduler"), "scheduler_config.json"
    for place in (checkpoint.path / name, checkpoint.path.parent / "scheduler" / name):
        if settings is None and place.is_file():
            try:
                settings = json.loads(place.read_text("utf-8")[: 1 << 20])
            except ValueError as e:
                raise UserError(f"{place} cannot be read: {e!s:.80}", param="model") from None
    if not isinstance(settings, dict):
        raise UserError(f"this model comes without its scheduler's settings ({name})", param="model")
    return settings


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

    def kernel(self, at: str) -> Array:
        """Of a convolution: (N, C, 3, 3)."""
        weight = self.tensor(f"{at}.weight")
        if weight.ndim != 4 or weight.shape[2:] != (3, 3):
            raise UserError(f"{at} must be a convolution of 3 x 3, not {weight.shape}", param="model")
        return weight

    def conv(self, at: str) -> Conv2d:
        return Conv2d(self.ops, self.kernel(at), self.tensor(f"{at}.bias"))

    def halving(self, at: str) -> Conv2d:
        return Conv2d(self.ops, self.kernel(at), self.tensor(f"{at}.bias"), 2, self.shape.rim)

    def norm(self, at: str, channels: slice = slice(None)) -> GroupNorm:
        """Of whole groups of channels."""
        weight, groups = self.tensor(f"{at}.weight"), self.shape.groups
        if len(weight) % groups:
            raise UserError(f"{at} has {len(weight)} channels, no whole groups of {groups}", param="model")
        size, own = len(weight) // groups, weight[channels]
        return GroupNorm(self.ops, own, self.tensor(f"{at}.bias")[channels], len(own) // size, self.shape.eps)


class Resnet:
    """Two convolutions around the time."""

    def __init__(self, w: Weights, at: str) -> None:
        self.norm1, self.conv1 = w.norm(f"{at}.norm1"), w.conv(f"{at}.conv1")
        self.norm2, self.conv2 = w.norm(f"{at}.norm2"), w.conv(f"{at}.conv2")
        self.time = w.dense(f"{at}.time_emb_proj")
        self.short = w.dense(f"{at}.conv_shortcut") if w.has(f"{at}.conv_shortcut.weight") else None

    def __call__(self, x: Array, emb: Array) -> Array:
        """x (B, H, W, C); emb (B, E), after its activation."""
        y = self.conv2(self.conv1(x, self.norm1), partial(self.norm2, add=self.time(emb)))
        y += x if self.short is None else self.short(x)
        return y


class Part:
    """A share of what a Resnet over several inputs sums up: first convolution and shortcut over some channels."""

    def __init__(self, w: Weights, at: str, channels: slice, bias: bool) -> None:
        kernel, short = w.kernel(f"{at}.conv1"), w.tensor(f"{at}.conv_shortcut.weight")
        biases = [w.tensor(f"{at}.{n}.bias") * np.float32(bias) for n in ("conv1", "conv_shortcut")]
        self.norm = w.norm(f"{at}.norm1", channels)
        self.conv = Conv2d(w.ops, kernel[:, channels], biases[0])
        self.short = Dense(w.ops, short.reshape(short.shape[:2])[:, channels], biases[1])

    def __call__(self, x: Array) -> tuple[Array, Array]:
        return self.conv(x, self.norm), self.short(x)


class Joint:
    """A decoder's Resnet, over what comes from below it and what the encoder saw.

    Of the latter's channels all but those that share a group of the norm with the former are summed up by themselves,
    once, however often the decoder runs over them.

    Args:
        below: channels that come from below.
    """

    def __init__(self, w: Weights, at: str, below: int) -> None:
        total = w.kernel(f"{at}.conv1").shape[1]
        if total <= below or total % w.shape.groups:
            message = f"{at} has {total} channels, {below} of them from below: no whole groups of {w.shape.groups} more"
            raise UserError(message, param="model")
        size = total // w.shape.groups
        cut = -(-below // size) * size
        self.shared = cut - below  # of the encoder's channels
        self.near = Part(w, at, slice(cut), bias=True)
        self.far = Part(w, at, slice(cut, None), bias=False) if cut < total else None
        self.norm2, self.conv2, self.time = w.norm(f"{at}.norm2"), w.conv(f"{at}.conv2"), w.dense(f"{at}.time_emb_proj")
        self.parts = (self.shared > 0) + 2 * (self.far is not None)  # arrays that ``ready`` gives

    def ready(self, skip: Array) -> Features:
        """What it makes of the encoder's (B, H, W, C): channels as they are, and shares of sums, if there are some."""
        as_it_is = [skip[..., : self.shared]] if self.shared else []
        return as_it_is if self.far is None else [*as_it_is, *self.far(skip[..., self.shared :])]

    def __call__(self, x: Array, ready: Features, emb: Array) -> Array:
        y, short = self.near(np.concatenate([x, ready[0]], 3) if self.shared else x)
        if self.far is not None:
            y += ready[-2]
            short += ready[-1]
        y = self.conv2(y, partial(self.norm2, add=self.time(emb)))
        y += short
        return y


class Attention:
    """All pixels look at all."""

    def __init__(self, w: Weights, at: str) -> None:
        self.norm, self.head = w.norm(f"{at}.group_norm"), w.shape.head
        self.q, self.k, self.v, self.out = (w.dense(f"{at}.{name}") for name in attention_names(w, at))

    def __call__(self, x: Array) -> Array:
        b, h, wide, c = x.shape
        y = np.empty_like(x)
        self.norm(x, y, silu=False)
        y = y.reshape(b, h * wide, c)
        heads = c // self.head if self.head else 1
        q, k, v = (p(y).reshape(b, h * wide, heads, -1).transpose(0, 2, 1, 3) for p in (self.q, self.k, self.v))
        scores = np.matmul(q, k.transpose(0, 1, 3, 2)) * np.float32((c // heads) ** -0.5)
        seen = np.matmul(softmax(scores), v).transpose(0, 2, 1, 3).reshape(b, h, wide, c)
        found: Array = x + self.out(seen)
        return found


def attention_names(w: Weights, at: str) -> tuple[str, ...]:
    """Of its four matrices, in older files too; none if there is no attention here."""
    for names in (ATTENTION, OLDER_ATTENTION):
        if w.has(f"{at}.{names[0]}.weight"):
            return names
    return ()


def attentions(w: Weights, at: str, count: int, attends: bool) -> list[Attention]:
    """After each of a level's Resnets, where there are some."""
    return [Attention(w, f"{at}.attentions.{i}") for i in range(count)] if attends else []


class Down:
    """A level of the encoder."""

    def __init__(self, w: Weights, at: str, attends: bool) -> None:
        count = w.shape.layers
        self.resnets = [Resnet(w, f"{at}.resnets.{i}") for i in range(count)]
        self.attentions = attentions(w, at, count, attends)

    def __call__(self, x: Array, emb: Array) -> Iterator[Array]:
        """What each of its layers gives."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, emb)
            if self.attentions:
                x = self.attentions[i](x)
            yield x


class Up:
    """A level of the decoder.

    Args:
        below: channels that come from below.
    """

    def __init__(self, w: Weights, at: str, attends: bool, below: int, width: int) -> None:
        count = w.shape.layers + 1
        self.resnets = [Joint(w, f"{at}.resnets.{i}", width if i else below) for i in range(count)]
        self.attentions = attentions(w, at, count, attends)

    def __call__(self, x: Array, ready: Iterator[Features], emb: Array) -> Array:
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, next(ready), emb)
            if self.attentions:
                x = self.attentions[i](x)
        return x
