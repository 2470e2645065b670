"""UNet: takes noise off pictures: an encoder, a middle, and a decoder that is given all that the encoder saw.

Class-conditional, with guidance as a pair of branches (Ho and Salimans, arXiv 2207.12598). Source of the layout:
Ronneberger et al. (arXiv 1505.04597), Ho et al. (arXiv 2006.11239); tensors and settings by the names of diffusers'
UNet2DModel, whose directories are read, with its DDIM scheduler.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from diastole.layers.unet import Attention, Down, Features, Resnet, Shape, Up, Weights, attention_names, scheduler
from diastole.nn.conv2d import doubled
from diastole.nn.noise import Schedule
from diastole.nn.rowwise import silu
from diastole.types import Array, Batch, CellSpec, UserError

if TYPE_CHECKING:
    from diastole.kernels.table import Ops
    from diastole.weights import Checkpoint

MIDDLE = "mid_block.attentions.0"
CACHED = 512 << 10  # bytes of the widest layer's input over the pictures that run in one go: half a core's second cache


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
        self.down = [Down(w, f"down_blocks.{i}", a) for i, a in enumerate(s.down)]
        self.halve = [w.halving(f"down_blocks.{i}.downsamplers.0.conv") for i in range(levels - 1)]
        self.middle = [Resnet(w, f"mid_block.resnets.{i}") for i in range(2)]
        self.attention = Attention(w, MIDDLE) if attention_names(w, MIDDLE) else None
        widths = [s.widths[-1], *s.widths[::-1]]  # from the middle up
        self.up = [Up(w, f"up_blocks.{i}", a, *widths[i : i + 2]) for i, a in enumerate(s.up)]
        self.joints = [joint for level in self.up for joint in level.resnets]
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
        """x (B, H, W, C) -> all that the decoder has to know of it: see ``ready``."""
        return self.ready(self.seen(x, emb))

    def seen(self, x: Array, emb: Array) -> Features:
        """What the middle gives, then what each layer before it gave."""
        x = self.conv_in(x)
        skips = [x]
        for level, of in enumerate(self.down):
            skips += of(x, emb)
            x = skips[-1]
            if level < len(self.halve):
                x = self.halve[level](x)
                skips.append(x)
        x = self.middle[0](x, emb)
        if self.attention is not None:
            x = self.attention(x)
        return [self.middle[1](x, emb), *skips]

    def ready(self, seen: Features) -> Features:
        """What the middle gives, then what each of the decoder's layers makes of what the encoder's counterpart saw."""
        middle, *skips = seen
        return [
            middle,
            *(f for joint, skip in zip(self.joints, reversed(skips), strict=True) for f in joint.ready(skip)),
        ]

    def decode(self, features: Features, emb: Array) -> Array:
        """-> (B, H, W, C): what it finds, noise as a rule. The features stay as they are."""
        *_, x = self.levels(features, emb)
        return self.last(x)

    def levels(self, features: Features, emb: Array) -> Iterator[Array]:
        """What each level of the decoder gives."""
        x, *rest = features
        each = iter(rest)
        ready = ([next(each) for _ in range(joint.parts)] for joint in self.joints)
        for level, of in enumerate(self.up):
            x = of(x, ready, emb)
            if level < len(self.double):
                x = self.double[level](doubled(x))
            yield x

    def last(self, x: Array) -> Array:
        """What is found, from what the last of them gives."""
        return self.conv_out(x, self.norm_out)


def denoiser(ops: Ops, checkpoint: Checkpoint) -> UNet:
    """The model from its checkpoint; its scheduler's settings are in its own, or beside it as in a pipeline."""
    config, settings = checkpoint.config, scheduler(checkpoint)
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
        kept = [a.reshape(-1, *a.shape[2:]) for a in state["cell"].arrays.values()] if "cell" in state else []
        if kept:  # both branches of a cell side by side
            first = [2 * leases["cell"].places[0] for leases in b.leases]
        else:  # every stream's encoder runs
            first = [0, *accumulate(len(p.labels) for p in plans)][:-1]
        seen = self._seen(plans, first, kept)
        rows = [
            (at + j, t, x) for p, at in zip(plans, first, strict=True) for t in p.times for j, x in enumerate(p.labels)
        ]
        out = []
        for at in range(0, len(rows), self.decoded):
            which, times, labels = (np.array(x) for x in zip(*rows[at : at + self.decoded], strict=True))
            out.append(self.net.decode([f[_span(which)] for f in seen], self.net.embedded(times, labels)))
        found: Array = np.concatenate(out)
        return found

    def _seen(self, plans: Sequence[Any], first: Sequence[int], kept: Features) -> Features:
        """What was seen by each branch of each stream, (n, h, w, c) each; ``first`` says where a stream's begin.

        Args:
            kept: what was seen before, to which fresh ones are written; none where all are fresh.
        """
        rows = [
            (at + j, p.x, p.times[0], x)
            for p, at in zip(plans, first, strict=True)
            if p.encode
            for j, x in enumerate(p.labels)
        ]
        fresh = []
        for at in range(0, len(rows), self.encoded):
            which, pictures, times, labels = zip(*rows[at : at + self.encoded], strict=True)
            found = self.net.encode(np.stack(pictures), self.net.embedded(np.array(times), np.array(labels)))
            for array, new in zip(kept, found, strict=False):
                array[list(which)] = new
            fresh.append(found)
        return kept or [np.concatenate(parts) if len(parts) > 1 else parts[0] for parts in zip(*fresh, strict=True)]


def _span(which: Array) -> slice | Array:
    """Rows as a stretch, which need not be copied, where they are one."""
    stretch = bool((np.diff(which) == 1).all())
    return slice(int(which[0]), int(which[-1]) + 1) if stretch else which
