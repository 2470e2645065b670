"""What LServe's reproduction looks with: a clock inside the layers, and a probe of what choices of pages cover."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from diastole.bench.rig import Rig
from diastole.nn.arena import Arena
from diastole.nn.inside import Inside, Paged
from diastole.nn.selection import Pages
from diastole.slots import KVStore, Selection, View
from diastole.state.pages import PAGE
from diastole.types import Array, Batch


@dataclass(slots=True)
class Clocked:
    """Milliseconds of the parts of decode steps, and what the last of them looked at."""

    steps: int = 0
    select: float = 0.0
    attend: float = 0.0
    seen: dict[int, Array] = field(default_factory=dict)  # (Hkv,) tokens of each layer

    def per_step(self) -> Clocked:
        return Clocked(1, self.select / self.steps, self.attend / self.steps, self.seen)


@dataclass(frozen=True, slots=True)
class _Watch(Inside):
    """What acts inside the layers, timed."""

    spent: Clocked = field(default_factory=Clocked)

    def attend(self, view: View, q: Array, out: Array, arena: Arena) -> None:
        began = perf_counter()
        selection: Selection | None = None if self.select is None else self.select.select(view, q)
        chosen = perf_counter()
        Paged()(view, q, selection, out, None)
        self.spent.attend += 1e3 * (perf_counter() - chosen)
        self.spent.select += 1e3 * (chosen - began)
        self.spent.steps += view.layer == 0
        if isinstance(selection, Pages):
            self.spent.seen[view.layer] = selection.hi[-1]

    @property
    def idle(self) -> bool:
        return False

    def between(self, b: Batch, kv: KVStore, fused: Any, scale: float) -> None:
        """Layer by layer, to be timed."""


@contextmanager
def clocked(rig: Rig) -> Iterator[Clocked]:
    """While inside, a rig's steps are timed."""
    before = rig.service.state
    watch = _Watch(before["inside"].select)
    rig.service.state = {**before, "inside": watch}
    try:
        yield watch.spent
    finally:
        rig.service.state = before


class Covered:
    """A probe: the share of a decoding row's attention that lies in the pages that bounds choose, by how they are kept.

    Args:
        budget: tokens that each way may choose; the first page of 64 and the last two are always in.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self.shares: dict[str, list[float]] = {n: [] for n in ("flat 64", "64 by 16", "flat 16", "oracle 64")}

    def need(self, layer: int, b: Batch) -> bool:
        return len(b.pos) == 1

    def see(self, view: View, q: Array, out: Array, lse: Array) -> None:
        b, heads = view.b, q.shape[1]
        n = int(b.hi[0])
        at = np.arange(n)
        k, _ = view.store.read(view.layer, b.tables[0, at // PAGE].astype(np.int64) * PAGE + at % PAGE)
        groups = k.shape[1]
        s = np.einsum("ghd,ngd->ghn", q[0].reshape(groups, -1, q.shape[2]), k) * view.scale
        weights = np.exp(s - lse[0].reshape(groups, heads // groups, 1))
        mass = np.pad(weights, ((0, 0), (0, 0), (0, -n % PAGE))).sum(1) / (heads // groups)  # (Hkv, tokens)
        by16, by64 = (mass.reshape(groups, -1, tokens).sum(-1) for tokens in (16, PAGE))
        whole = n // PAGE * PAGE  # the page that is begun is always in
        fine, coarse = (_bounds(q[0], k[:whole], tokens) for tokens in (16, PAGE))
        pages = self._budget // PAGE
        self._take("flat 64", by64, coarse, pages)
        self._take("64 by 16", by64, fine.reshape(groups, -1, 4).max(-1), pages)
        self._take("oracle 64", by64, by64[:, : whole // PAGE], pages)
        self._take("flat 16", by16, fine, 4 * pages, 4)

    def _take(self, name: str, mass: Array, bounds: Array, count: int, per: int = 1) -> None:
        """Note the mass in the ``count`` places with the largest bounds, ``per`` of which are 64 tokens."""
        ranks = np.full(mass.shape, np.inf)
        ranks[:, : bounds.shape[1]] = bounds
        ranks[:, :per] = ranks[:, bounds.shape[1] - per :] = np.inf
        chosen = np.argsort(-ranks, axis=1, kind="stable")[:, :count]
        self.shares[name].append(float(np.take_along_axis(mass, chosen, 1).sum(1).mean()))


def _bounds(q: Array, k: Array, tokens: int) -> Array:
    """The largest scores that heads may give to so many tokens in a row: q (H, D), k (n, Hkv, D) -> (Hkv, runs)."""
    _, groups, dim = k.shape
    runs = k.reshape(-1, tokens, groups, dim)
    own = q.reshape(groups, -1, 1, dim)
    most, least = (x.swapaxes(0, 1)[:, None] for x in (runs.max(1), runs.min(1)))
    found: Array = np.maximum(own * most, own * least).sum(-1).max(1)
    return found
