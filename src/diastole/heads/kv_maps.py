"""KV maps: linear maps turn the keys and values of an auxiliary decoder into approximate ones of a larger base decoder.

Horton, Cao, Sun, Jin, Mehta, Rastegari, Nabi: "KV Prediction for Improved Time to First Token", 2024, arXiv 2410.08391.
Base layer i is told by auxiliary layer m[i], over all key/value heads side by side:

    K_i = W_i K^A_m[i] + b_i        before the key norm and before rotation: the base's own norm and rotation follow
    V_i = U_i V^A_m[i] + c_i

The auxiliary keeps keys and values of its own for what it attends to; of its last layer only they are computed.
Here its layers may be some of the base's own, which skip those between them; a base layer may be told as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diastole.heads.glide import quantized
from diastole.nn.arena import Arena
from diastole.nn.decoder import Block, Decoder
from diastole.nn.inside import NOBODY
from diastole.nn.linear import Linear
from diastole.types import Array, Batch, PagedSpec

if TYPE_CHECKING:
    from diastole.slots import KVStore

GROUP = 32  # columns of a map that share a scale


@dataclass(frozen=True, slots=True)
class Told:
    """What one auxiliary layer tells."""

    layers: tuple[int, ...]  # of the base, which are mapped
    as_is: tuple[int, ...]  # and which are taken as they are
    k: Linear | None  # stacked: (len(layers) Hkv D, in); None: nothing is mapped
    v: Linear | None


class Auxiliary:
    """Some layers of a decoder, in their order, as a smaller decoder.

    Args:
        decoder: whose layers they are.
        layers: ascending.

    Raises:
        ValueError: it has no such layers.
    """

    def __init__(self, decoder: Decoder, layers: Sequence[int]) -> None:
        depth = len(decoder.blocks)
        if not layers or [*layers] != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < depth:
            raise ValueError(f"layers must rise from 0 to {depth - 1} at most, not {[*layers]}")
        self.decoder, self.blocks = decoder, [decoder.blocks[i] for i in layers]
        attn = self.blocks[0].attn
        self.heads, self.kv_heads, self.dim = attn.heads, attn.kv_heads, attn.head_dim
        self.width = self.kv_heads * self.dim  # of keys
        self.spec = PagedSpec(len(layers), self.kv_heads, self.dim)
        self._arena = Arena()

    def embedded(self, ids: Array) -> Array:
        """ids (T,) int32 -> (T, d), until the next call."""
        return self.decoder.embedded(ids, self._arena.get("x", len(ids), self.decoder.width))

    def projected(self, block: Block, x: Array) -> Array:
        """x (T, d) -> queries, keys and values of a layer, neither normed nor rotated: (T, H + 2 Hkv, D)."""
        h, g, d = self.heads, self.kv_heads, self.dim
        normed = block.attn_norm(x, self._arena.get("normed", *x.shape))
        return block.attn.qkv(normed, self._arena.get("qkv", len(x), (h + 2 * g) * d)).reshape(len(x), h + 2 * g, d)

    def mix(self, at: int, block: Block, x: Array, qkv: Array, b: Batch, store: KVStore) -> None:
        """The rest of its layer number ``at`` over x (T, d), in place."""
        attn, h, g = block.attn, self.heads, self.kv_heads
        if attn.q_norm is not None and attn.k_norm is not None:
            attn.q_norm(qkv[:, :h], qkv[:, :h])
            attn.k_norm(qkv[:, h : h + g], qkv[:, h : h + g])
        attn.ops.rope(qkv[:, : h + g], b.pos, attn.rope)
        out = self._arena.get("heads", len(x), h, self.dim)
        attn.mix(at, qkv, b, store, NOBODY, out, self._arena)
        seen = out.reshape(len(x), -1)
        if block.attn_post is None:
            attn.o(seen, x, accumulate=True)
        else:
            x += block.attn_post(attn.o(seen, self._arena.get("added", *x.shape)), self._arena.get("post", *x.shape))
        block.ffn(x, self._arena)

    def states(self, b: Batch, store: KVStore) -> Array:
        """All of its layers over a batch, as if it were a model by itself: (T, d), not normed, until the next call."""
        x = self.embedded(b.inputs)
        for at, block in enumerate(self.blocks):
            self.mix(at, block, x, self.projected(block, x), b, store)
        return x


class KVMaps:
    """An auxiliary with the maps from its keys and values to the base's.

    Args:
        base: whose keys and values are told.
        tensors: ``layers`` (A,) int32, those of the auxiliary's decoder that are used; ``map`` (L,) int32, m: a number
            within them for each base layer; ``as_is`` (L,) bool; and for the M layers that are not, in their order,
            of each of ``k`` and ``v`` ``NAME.q`` (M, out, in) int8, ``NAME.d`` (M, out, in/32) float16 and
            ``NAME.bias`` (M, out) float32.
        model: the auxiliary's decoder; None: the base itself.

    Raises:
        KeyError, ValueError: a tensor is missing or does not fit the models.
    """

    def __init__(self, base: Decoder, tensors: Mapping[str, Array], model: Decoder | None = None) -> None:
        self.base = base
        self.auxiliary = Auxiliary(model or base, _whole(tensors, "layers").tolist())
        attn, depth = base.blocks[0].attn, len(base.blocks)
        self.kv_heads, self.dim = attn.kv_heads, attn.head_dim
        self.width = self.kv_heads * self.dim
        self.map: list[int] = _whole(tensors, "map").tolist()
        self.as_is: list[bool] = tensors["as_is"].astype(bool).tolist()
        most = len(self.auxiliary.blocks) - 1
        if len(self.map) != depth or min(self.map) < 0 or max(self.map) > most:
            raise ValueError(f"map must hold a number from 0 to {most} for each of {depth} layers, not {self.map}")
        if len(self.as_is) != depth:
            raise ValueError(f"as_is must be told of {depth} layers, not {len(self.as_is)}")
        if any(self.as_is) and self.auxiliary.width != self.width:
            raise ValueError(
                f"keys of {self.auxiliary.width} numbers cannot stand as they are for those of {self.width}"
            )
        matrices = {name: self._matrices(tensors, name) for name in ("k", "v")}
        self.told = [self._told(j, matrices, tensors) for j in range(most + 1)]
        self._arena = Arena()

    def _matrices(self, tensors: Mapping[str, Array], name: str) -> Array:
        q, d, bias = (tensors[f"{name}.{part}"] for part in ("q", "d", "bias"))
        wide, most = self.auxiliary.width, self.as_is.count(False)
        if q.shape != (most, self.width, wide) or q.dtype != np.int8:
            raise ValueError(f"{name} must be {most} maps of {self.width} x {wide} in eight bits, not {q.shape}")
        if wide % GROUP or d.shape != (most, self.width, wide // GROUP) or bias.shape != (most, self.width):
            raise ValueError(f"scales and biases of {name} must be those of {most} maps of {self.width} x {wide}")
        if not np.isfinite(d).all() or not np.isfinite(bias).all():
            raise ValueError(f"{name} must hold finite numbers")
        w: Array = (q.reshape(*d.shape, GROUP) * d.astype(np.float32)[..., None]).reshape(q.shape)
        return w

    def _told(self, j: int, matrices: Mapping[str, Array], tensors: Mapping[str, Array]) -> Told:
        mapped = [i for i, as_is in enumerate(self.as_is) if not as_is]
        own = [at for at, i in enumerate(mapped) if self.map[i] == j]
        same = tuple(i for i, m in enumerate(self.map) if m == j and self.as_is[i])
        if not own:
            return Told((), same, None, None)
        ops = self.base.ops
        k, v = (
            Linear(
                ops,
                [ops.pack_bf16(np.concatenate(w[own]))],
                np.ascontiguousarray(tensors[f"{name}.bias"][own].reshape(-1), np.float32),
            )
            for name, w in matrices.items()
        )
        return Told(tuple(mapped[at] for at in own), same, k, v)

    def absorb(self, b: Batch, own: KVStore, kv: KVStore, rows: Array, which: Array) -> None:
        """Read a batch with the auxiliary and write what it tells of some of its rows as the base's.

        Args:
            b: rows, tables and ranges of ``own``.
            own: keeps the auxiliary's keys and values.
            kv: keeps the base's.
            rows: (P,) int64 places there.
            which: (P,) int64 rows of the batch that are told.
        """
        aux = self.auxiliary
        x, pos, last = aux.embedded(b.inputs), b.pos[which], len(aux.blocks) - 1
        for at, block in enumerate(aux.blocks):
            qkv = aux.projected(block, x)
            if len(which):
                self._tell(self.told[at], qkv[which, aux.heads :], pos, kv, rows)
            if at < last:
                aux.mix(at, block, x, qkv, b, own)

    def _tell(self, told: Told, kv_aux: Array, pos: Array, kv: KVStore, rows: Array) -> None:
        """kv_aux (P, 2 Hkv, D) of an auxiliary layer: keys, then values, neither normed nor rotated."""
        p, g = len(kv_aux), self.auxiliary.kv_heads
        k_aux, v_aux = kv_aux[:, :g].reshape(p, -1), kv_aux[:, g:].reshape(p, -1)
        shape = p, len(told.layers), self.kv_heads, self.dim
        if told.k is not None and told.v is not None:
            k = told.k(k_aux, self._arena.get("k", p, told.k.n)).reshape(shape)
            v = told.v(v_aux, self._arena.get("v", p, told.v.n)).reshape(shape)
            for at, layer in enumerate(told.layers):
                self._write(layer, np.ascontiguousarray(k[:, at]), v[:, at], pos, kv, rows)
        for layer in told.as_is:
            self._write(layer, k_aux.reshape(p, g, -1).copy(), v_aux.reshape(p, g, -1), pos, kv, rows)

    def _write(self, layer: int, k: Array, v: Array, pos: Array, kv: KVStore, rows: Array) -> None:
        """k, v (P, Hkv, D), of which k is used up: normed and rotated as the base's own keys are."""
        attn = self.base.blocks[layer].attn
        if attn.k_norm is not None:
            attn.k_norm(k, k)
        attn.ops.rope(k, pos, attn.rope)
        kv.write(layer, rows, k, v)


def packed(name: str, w: Array, bias: Array) -> dict[str, Array]:
    """Maps w (M, out, in) and bias (M, out) as ``KVMaps`` reads them."""
    q, d = (np.stack(part) for part in zip(*map(quantized, w), strict=True))
    return {f"{name}.q": q, f"{name}.d": d.astype(np.float16), f"{name}.bias": bias.astype(np.float32)}


def as_they_are(layers: Sequence[int], mapping: Sequence[int], width: int) -> dict[str, Array]:
    """No maps at all: base layers take over what the auxiliary has, which is ``width`` numbers wide."""
    none = np.empty((0, width, width), np.float32)
    found: dict[str, Array] = {"layers": np.array(layers, np.int32), "map": np.array(mapping, np.int32)}
    found["as_is"] = np.ones(len(mapping), bool)
    for name in ("k", "v"):
        found |= {f"{name}.q": none.astype(np.int8), f"{name}.bias": none[:, :, 0]}
        found[f"{name}.d"] = np.empty((0, width, width // GROUP), np.float16)
    return found


def _whole(tensors: Mapping[str, Array], name: str) -> Array:
    found = tensors[name]
    if found.ndim != 1 or found.dtype.kind != "i" or not len(found):
        raise ValueError(f"{name} must be whole numbers in a row, not {found.shape} of {found.dtype}")
    return found
