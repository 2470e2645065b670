"""What labels are worth beside other ways to choose tokens: from the queries and keys of single decode steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from diastole.nn.arena import Arena
from diastole.nn.attention import Attention
from diastole.nn.decoder import Block, Decoder
from diastole.nn.inside import Inside
from diastole.nn.selection import decoding
from diastole.slots import KVStore, View
from diastole.types import Array, Batch

SINK, RECENT = 4, 16
PAGE = 16  # tokens of Quest's pages

Choose = Callable[["Seen"], Array]  # how much each token is wanted: (G, n)


@dataclass(frozen=True, slots=True)
class Seen:
    """One layer's attention of one decoding row: G groups of S query heads."""

    layer: int
    q: Array  # (G, S, D)
    k: Array  # (n, G, D)
    weights: Array  # (G, S, n): the softmax's

    def scored(self, channels: Array) -> Array:
        """The largest product of any query head with some channels (G, r) of a key: (G, n)."""
        q = np.take_along_axis(self.q, channels[:, None], 2)
        return np.einsum("gsr,ngr->gsn", q, np.take_along_axis(self.k, channels[None], 2)).max(1)


@dataclass(eq=False, slots=True)
class Spy:
    """A probe that keeps what every layer saw of the only decoding stream."""

    layers: dict[int, Seen] = field(default_factory=dict)

    def need(self, layer: int, b: Batch) -> bool:
        return decoding(b, 1) is not None

    def see(self, view: View, q: Array, out: Array, lse: Array) -> None:
        at = np.arange(view.b.hi[0])
        k, _ = view.store.read(view.layer, view.b.tables[0, at // 64].astype(np.int64) * 64 + at % 64)
        own = q[0].reshape(k.shape[1], -1, k.shape[2])
        logs = np.einsum("gsd,ngd->gsn", own, k) * view.scale - lse[0].reshape(*own.shape[:2], 1)
        self.layers[view.layer] = Seen(view.layer, own.copy(), k, np.exp(logs))


def forced(wanted: Array) -> Array:
    """First and latest tokens before all others."""
    wanted = wanted.copy()
    wanted[:, :SINK] = wanted[:, -RECENT:] = np.inf
    return wanted


def best(wanted: Array, budget: int) -> Array:
    """The tokens that are chosen: (G, n) of 0 and 1."""
    budget = min(budget, wanted.shape[1])
    chosen = np.zeros(wanted.shape, np.float32)
    np.put_along_axis(chosen, np.argpartition(-wanted, budget - 1, axis=1)[:, :budget], 1.0, axis=1)
    return chosen


def covered(seen: Seen, chosen: Array) -> float:
    """The share of softmax weight that falls on what is chosen, mean over heads."""
    return float(np.einsum("gsn,gn->gs", seen.weights, chosen).mean())


def top(importance: Array, r: int) -> Array:
    """The r most important channels of each head (..., D) -> (..., r)."""
    return np.argsort(-importance, -1, kind="stable")[..., :r]


def paired(importance: Array, r: int) -> Array:
    """The same by pairs that rotate together."""
    half = importance.shape[-1] // 2
    first = top(importance[..., :half] + importance[..., half:], r // 2)
    return np.concatenate([first, first + half], -1)


def ladder(importance: Mapping[str, Array], seed: int) -> dict[str, Choose]:
    """Ways to choose, by name; importance of channels as a calibration holds it."""
    layers, groups, dim = importance["qk"].shape
    rng = np.random.default_rng(seed)
    channels = {f"qk, {r} channels": top(importance["qk"], r) for r in (4, 8, 16, 32)}
    channels |= {f"{by}, 16 channels": top(importance[by], 16) for by in ("q", "k")}
    channels["qk in pairs, 16 channels"] = paired(importance["qk"], 16)
    channels["random, 16 channels"] = top(rng.random((layers, groups, dim)), 16)

    def by_channels(own: Array) -> Choose:
        return lambda seen: seen.scored(own[seen.layer])

    ways: dict[str, Choose] = {"oracle": lambda seen: seen.weights.sum(1)}
    ways["all channels"] = by_channels(np.broadcast_to(np.arange(dim), (layers, groups, dim)))
    ways |= {name: by_channels(own) for name, own in channels.items()}
    ways["Quest, pages of 16"] = quest
    ways["sink and window"] = lambda seen: np.broadcast_to(np.arange(float(len(seen.k))), (len(seen.q), len(seen.k)))
    return ways


def quest(seen: Seen) -> Array:
    """Bounds of a page's scores, from its keys' extremes, for all of its tokens."""
    n = len(seen.k)
    pages = -(-n // PAGE)
    k = np.concatenate([seen.k, np.repeat(seen.k[-1:], pages * PAGE - n, 0)]).reshape(pages, PAGE, *seen.k.shape[1:])
    plus, minus = np.maximum(seen.q, 0), np.minimum(seen.q, 0)
    bounds = np.einsum("gsd,pgd->gsp", plus, k.max(1)) + np.einsum("gsd,pgd->gsp", minus, k.min(1))
    found: Array = bounds.max(1).repeat(PAGE, 1)[:, :n]
    return found


# ---- queries foretold a layer early


class Foretelling:
    """A decoder each of whose layers also projects its own input to the next layer's queries, as if that input were the
    next layer's: what a prefetch from slower memory would choose by.

    Args:
        own_norm: with the norm of this layer, in one product with its own projections; else with the next layer's.
    """

    def __init__(self, decoder: Decoder, own_norm: bool = False) -> None:
        self.queries: dict[int, Array] = {}  # of each layer, as foretold by the one before: (T, H, D)
        self._own_norm, self._decoder, self._blocks = own_norm, decoder, decoder.blocks

    def forward(self, b: Batch, state: Mapping[str, Any]) -> Array:
        whole = self._decoder
        blocks = whole.blocks
        try:
            whole.blocks = tuple(cast(Block, _Foretold(self, i, block)) for i, block in enumerate(blocks))
            return whole.open_forward(b, state["kv"], state["inside"])
        finally:
            whole.blocks = blocks

    def tell(self, layer: int, x: Array, b: Batch) -> None:
        """x (T, d): the input of ``layer``."""
        blocks = self._blocks
        if layer + 1 == len(blocks):
            return
        attn: Attention = blocks[layer + 1].attn
        norm = blocks[layer if self._own_norm else layer + 1].attn_norm
        width = attn.heads + 2 * attn.kv_heads
        qkv = attn.qkv(norm(x, np.empty_like(x)), np.empty((len(x), width * attn.head_dim), np.float32))
        q = np.ascontiguousarray(qkv.reshape(len(x), width, -1)[:, : attn.heads])
        attn.ops.rope(q, b.pos, attn.rope)
        self.queries[layer + 1] = q


@dataclass(frozen=True, slots=True)
class _Foretold:
    """A block that tells its input before it runs."""

    whole: Foretelling
    layer: int
    block: Block

    def mix(self, layer: int, x: Array, b: Batch, kv: KVStore, inside: Inside, arena: Arena) -> None:
        self.whole.tell(layer, x, b)
        self.block.mix(layer, x, b, kv, inside, arena)

    def ffn(self, x: Array, arena: Arena) -> None:
        self.block.ffn(x, arena)
