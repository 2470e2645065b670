"""Which key/value heads look far back: measured where a model recites pass keys from all over a long text.

    prose, ten sentences that tell a pass key each .......... | the ten once more, in another order
                                                                       ^ rows before the numbers are looked at

gates (layers, kv heads) float32: of the attention that these rows give, the share that lies outside the first tokens
and the latest, in the mean over rows, of the query head of a group that has most. Heads with small gates may stream.
"""

from __future__ import annotations

from itertools import chain
from random import Random
from typing import Any

import numpy as np

from diastole.calibrate.job import Job
from diastole.slots import View
from diastole.state.pages import PAGE
from diastole.text import Tokenizer
from diastole.types import Array, Batch, PagedSpec, UserError

TOKENS = 32_768
CONTEXT = 2_048  # tokens of one text
KEYS = 10
SINK, LOCAL = 64, 128  # tokens that count as near
_NAMES = (
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "ivory", "jasper", "koala", "lotus",
    "maple", "noble", "ochre", "plume",
)  # fmt: skip


class Far:
    """A probe: the mass that some rows of a text give to what is far from them."""

    def __init__(self, layers: int) -> None:
        self.mass: list[Array] = [np.zeros(1)] * layers  # of each, by query head
        self.rows = 0
        self.wanted = np.empty(0, np.int32)  # positions

    def _rows(self, b: Batch) -> Array:
        return np.flatnonzero(np.isin(b.pos, self.wanted))

    def need(self, layer: int, b: Batch) -> bool:
        return len(self._rows(b)) > 0

    def see(self, view: View, q: Array, out: Array, lse: Array) -> None:
        b, rows = view.b, self._rows(view.b)
        tables = np.repeat(b.tables, np.diff(b.starts), axis=0)[rows]
        starts = np.arange(len(rows) + 1, dtype=np.int32)
        s = np.empty((len(rows), q.shape[1], int(b.hi[rows].max())), np.float32)
        own = np.ascontiguousarray(q[rows])
        view.ops.scores(own, view.pages, view.store.fmt, tables, starts, view.lo[rows], b.hi[rows], view.scale, s)
        weights = np.exp(s - lse[rows][..., None])
        for i, pos in enumerate(b.pos[rows].tolist()):
            far = weights[i, :, SINK : max(pos // PAGE * PAGE - LOCAL, SINK)]
            self.mass[view.layer] = self.mass[view.layer] + far.sum(-1, dtype=np.float64)
        self.rows += len(rows) if view.layer == 0 else 0


def text(tokenizer: Tokenizer, prose: list[int], rng: Random) -> tuple[list[int], list[int]]:
    """As many tokens as the prose has, with pass keys told in it and recited at its end, and the positions of the
    tokens before those of the numbers."""
    told = {name: rng.randrange(10_000, 100_000) for name in rng.sample(_NAMES, KEYS)}

    def sentence(name: str) -> tuple[list[int], list[int]]:
        words = tokenizer.encode(f"\n\nThe pass key of {name} is", special=False)
        return words, tokenizer.encode(f" {told[name]}", special=False)

    recital: list[int] = []
    at: list[int] = []
    for name in rng.sample(sorted(told), KEYS):
        words, number = sentence(name)
        at += range(len(recital) + len(words) - 1, len(recital) + len(words) + len(number) - 1)
        recital += words + number
    parts = [[*chain(*sentence(name), tokenizer.encode(".\n\n", special=False))] for name in told]
    room = len(prose) - len(recital) - sum(map(len, parts))
    if room < KEYS:
        raise UserError(f"texts of {len(prose)} tokens have no room for {KEYS} pass keys", param="texts")
    ids: list[int] = []
    for i, part in enumerate(parts):
        ids += prose[room * i // KEYS : room * (i + 1) // KEYS] + part
    return ids + recital, [len(ids) + i for i in at]


def measure(job: Job) -> dict[str, Array]:
    """Raises:
    UserError: there is less than one text.
    """
    if len(job.ids) < CONTEXT:
        raise UserError(f"the texts have {len(job.ids)} tokens; at least {CONTEXT} are needed", param="texts")
    model: Any = job.rig.service.model
    spec: PagedSpec = model.state_specs()["kv"]
    probe, rng = Far(spec.layers), Random(0)
    with job.rig.watched(probe):
        for at in range(0, len(job.ids) - CONTEXT + 1, CONTEXT):
            ids, wanted = text(job.rig.tokenizer, list(job.ids[at : at + CONTEXT]), rng)
            probe.wanted = np.array(wanted, np.int32)
            with job.rig.stream(ids) as stream:
                job.rig.absorb(stream)
            job.tell(CONTEXT)
    mass = (np.stack(probe.mass) / probe.rows).astype(np.float32)
    return {"gates": mass.reshape(spec.layers, spec.kv_heads, -1).max(-1), "mass": mass}
