"""Inside: the policies that act within the layers, and what stands in their places when nobody does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diastole.nn.arena import Arena
from diastole.slots import Kernel, KVStore, Probe, Selection, Selector, Unbroken, View
from diastole.types import Array, Batch


class Paged:
    """The default ``kernel`` policy: the operators' own attention over whatever form the store keeps."""

    reads = frozenset({"f32", "bf16", "int8", "rows", "rows8", "zip"})

    def __call__(self, view: View, q: Array, selection: Selection | None, out: Array, lse: Array | None) -> None:
        if selection is not None:
            selection.attend(view, q, out, lse)
            return
        b = view.b
        view.store.attend(view.layer, q, b.tables, b.starts, view.lo, b.hi, view.scale, out, lse)


class Read:
    """Attention in plain numpy over rows that the store reads out: slow, obvious, for stores that have them all. The
    twin of faster ways."""

    reads = frozenset({"f32", "bf16", "int8", "rows", "rows8", "zip"})

    def __call__(self, view: View, q: Array, selection: Selection | None, out: Array, lse: Array | None) -> None:
        if selection is not None:
            selection.attend(view, q, out, lse)
            return
        b, share = view.b, q.shape[1] // view.store.read(view.layer, view.b.rows[:0])[0].shape[1]
        for i, (first, last) in enumerate(zip(b.starts[:-1], b.starts[1:], strict=True)):
            at = np.arange(b.hi[first:last].max(initial=0))
            k, v = view.store.read(view.layer, b.tables[i, at // 64].astype(np.int64) * 64 + at % 64)
            for t in range(first, last):
                seen = slice(view.lo[t], b.hi[t])
                out[t], total = softmax(q[t], k[seen].repeat(share, 1), v[seen].repeat(share, 1), view.scale)
                if lse is not None:
                    lse[t] = total


def softmax(q: Array, k: Array, v: Array, scale: float) -> tuple[Array, Array]:
    """One row: q (H, D); k, v (n, H, D) -> out (H, D), log of the sum of exponentials (H,)."""
    if not len(k):
        return np.zeros_like(q), np.full(len(q), -np.inf, np.float32)
    scores = np.einsum("hd,nhd->hn", q, k).astype(np.float64) * scale
    most = scores.max(1, keepdims=True)
    weights = np.exp(scores - most)
    total = weights.sum(1, keepdims=True)
    return np.einsum("hn,nhd->hd", weights / total, v), (most + np.log(total))[:, 0]


@dataclass(frozen=True, slots=True)
class Inside:
    """What fills the slots within the layers."""

    select: Selector | None = None  # None: everything is attended to
    kernel: Kernel | None = None  # None: Paged
    probes: tuple[Probe, ...] = ()

    @property
    def idle(self) -> bool:
        """Whether nobody acts there."""
        return self.select is None and self.kernel is None and not self.probes

    def between(self, b: Batch, kv: KVStore, fused: Any, scale: float) -> object | None:
        """What acts there as native code for all layers of a batch, where that is possible."""
        looking_on = any(id(p) != id(self.select) for p in self.probes)  # but for the selector itself
        alone = self.kernel is None and not looking_on and kv.buffers is not None
        return self.select.between(b, kv, fused, scale) if alone and isinstance(self.select, Unbroken) else None

    def attend(self, view: View, q: Array, out: Array, arena: Arena) -> None:
        """q (T, H, D), whose keys are written -> out (T, H, D)."""
        watching = [p for p in self.probes if p.need(view.layer, view.b)]
        lse = arena.get("lse", *q.shape[:2]) if watching else None
        selection = None if self.select is None else self.select.select(view, q)
        (self.kernel or _PAGED)(view, q, selection, out, lse)
        if lse is not None:
            for probe in watching:
                probe.see(view, q, out, lse)


_PAGED = Paged()
NOBODY = Inside()
