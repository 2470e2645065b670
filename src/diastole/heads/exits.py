"""Heads: what a decoder would say after layers before its last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diastole.heads.glide import quantized
from diastole.nn.arena import Arena
from diastole.nn.decoder import Decoder
from diastole.nn.linear import Linear
from diastole.nn.norm import RMSNorm
from diastole.types import Array


class Heads:
    """What the model would say after each exit.

    Args:
        decoder: whose norm and head they share.
        tensors: ``vocab`` (n,) int32, the likeliest ids first, and of exits that have an adapter ``adapter.E.q`` (d, d)
            int8 with ``adapter.E.d`` (d, d/32) float16; empty: exits are bare.
        vocab: of these ids as many; 0: all.

    Raises:
        KeyError, ValueError: the tensors are not of this model.
    """

    def __init__(self, decoder: Decoder, tensors: Mapping[str, Array], vocab: int) -> None:
        self.decoder, self.ids, self.head = decoder, np.arange(decoder.vocab, dtype=np.int32), decoder.head
        ops, width = decoder.ops, decoder.width
        if tensors:
            self.ids = np.ascontiguousarray(tensors["vocab"], np.int32)
        if vocab:  # without counts the first ids: byte-pair vocabularies begin with what is frequent
            self.ids = np.ascontiguousarray(self.ids[:vocab])
        if not len(self.ids) or self.ids.min() < 0 or self.ids.max() >= decoder.vocab:
            raise ValueError("vocab must hold ids of the model's vocabulary")
        if tensors or len(self.ids) < decoder.vocab:
            rows = np.empty((len(self.ids), width), np.float32)
            ops.embed(decoder.head.parts[0], self.ids, rows)
            self.head = Linear(ops, [ops.pack_q8(*quantized(rows))])
        self._unit = RMSNorm(ops, np.ones(width, np.float32), decoder.norm.eps)
        self.adapters: dict[int, Linear] = {}
        for exit in sorted(int(name.split(".")[1]) for name in tensors if name.endswith(".q")):
            q, d = tensors[f"adapter.{exit}.q"], tensors[f"adapter.{exit}.d"].astype(np.float32)
            if q.shape != (width, width) or q.dtype != np.int8 or d.shape != (width, width // 32):
                raise ValueError(f"adapter.{exit} must be {width} x {width} in eight bits, not {q.shape} of {q.dtype}")
            if not np.isfinite(d).all():
                raise ValueError(f"adapter.{exit} must hold finite numbers")
            self.adapters[exit] = Linear(ops, [ops.pack_q8(np.ascontiguousarray(q), d)])
        self._arena = Arena()

    def say(self, hidden: Sequence[tuple[int, Array]]) -> tuple[Array, Array]:
        """Of exits with hidden states (n, d) after them, one after the other: ids and their probabilities, both (sum of
        n,)."""
        x = np.concatenate([self._adapted(exit, states) for exit, states in hidden])
        logits = self.head(self.decoder.norm(x, x), self._arena.get("logits", len(x), len(self.ids)))
        best = logits.argmax(1)
        most = np.take_along_axis(logits, best[:, None], 1)
        return self.ids[best], 1 / np.exp(logits - most).sum(1)

    def _adapted(self, exit: int, x: Array) -> Array:
        if exit not in self.adapters:
            return x
        unit = self._unit(x, self._arena.get("unit", *x.shape))
        return self.adapters[exit](unit, unit.copy(), accumulate=True)  # the norm that follows knows no scale
