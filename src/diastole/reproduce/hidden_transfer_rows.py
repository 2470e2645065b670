"""Pseudo rows beside real ones: what they change of these, which must be nothing, and what a step costs with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from diastole.bench.rig import Rig
from diastole.engine.service import Service
from diastole.heads.transfer import Transfer
from diastole.nn.decoder import Decoder
from diastole.reproduce.study import Study
from diastole.state.pages import PAGE
from diastole.types import Array, Batch

UNITS = 512  # tokens before the rows that are timed
EACH = 5  # passes of a turn: one alone lasts too short a time
Costs = Mapping[tuple[int, int], float]  # (real rows, pseudo rows of each): seconds of a step


class Twice:
    """Stands in for a service's model: runs every batch that has pseudo rows without them too, from the same pages."""

    def __init__(self, service: Service) -> None:
        self.model, self.caps = service.model, service.model.caps
        self.batches = self.rows = 0  # of those
        self.branched = self.mixed = 0  # batches in which a draft branched; in which some stream had none
        self.difference = 0.0  # of logits, the largest
        self.changed = 0  # bytes of pages that are others with pseudo rows
        service.model = self

    def forward(self, b: Batch, state: Any) -> Array:
        if b.relay is None:
            return self.model.forward(b, state)
        pages: Sequence[Array] = state["kv"].buffers
        before = [x.copy() for x in pages]
        plain = self.model.forward(replace(b, relay=None), state).copy()
        after = [x.copy() for x in pages]
        for now, was in zip(pages, before, strict=True):
            now[:] = was
        found = self.model.forward(b, state)
        self.batches, self.rows = self.batches + 1, self.rows + len(b.want)
        self.branched += len(b.starts) > len(b) + 1
        self.mixed += None in b.sown
        if len(found):
            self.difference = float(np.maximum(self.difference, np.abs(found - plain).max()))  # nan stays
        self.changed += sum(int((x != y).sum()) for x, y in zip(pages, after, strict=True))
        return found


def costs(study: Study, rig: Rig, tensors: Mapping[str, Array], real: Sequence[int]) -> Costs:
    """Seconds of a step by its rows, ``real`` ones of one stream: with pseudo rows until these tell the next draft."""
    state, work = rig.service.state, _work(rig.decoder, tensors, real)
    names = {(t, n): f"{t} rows, {n} pseudo rows each" for t, n in work}
    turns = {names[key]: partial(_passes, run, state) for key, run in work.items()}
    times = study.interleaved(turns, rounds=3 if study.quick else 9, what="steps with pseudo rows")
    return {key: times.median(name) / EACH for key, name in names.items()}


def tell(study: Study, found: Costs) -> None:
    """The table and the curves."""
    one = found[1, 0]
    study.table(
        f"what a step takes, one stream at {UNITS} tokens",
        ("real rows", "pseudo rows of each", "rows in all", "ms", "times one real row"),
        [(t, n, t * (1 + n), seconds * 1e3, seconds / one) for (t, n), seconds in found.items()],
    )
    for n in sorted({n for _, n in found}):
        rows = [t for t, m in found if m == n]
        study.curve(
            "what a step takes", rows, [found[t, n] / one for t in rows],
            label=f"{n} pseudo rows each", xlabel="real rows", ylabel="times one real row",
        )  # fmt: skip


Run = Callable[[Mapping[str, Any]], object]


def _work(decoder: Decoder, tensors: Mapping[str, Array], real: Sequence[int]) -> dict[tuple[int, int], Run]:
    found: dict[tuple[int, int], Run] = {(t, 0): partial(decoder.forward, _batch(t)) for t in real}
    for n in range(1, len(tensors["maps"]) + 1):
        transfer = Transfer(decoder, tensors, n)
        found |= {(t, n): partial(_beside, transfer, _batch(t)) for t in real}
    return found


def _beside(transfer: Transfer, b: Batch, state: Mapping[str, Any]) -> None:
    _, states = transfer.forward(b, state, np.arange(len(b.inputs)))
    transfer.logits(states[0])  # of the one that was right


def _passes(run: Run, state: Mapping[str, Any]) -> None:
    for _ in range(EACH):
        run(state)


def _batch(rows: int) -> Batch:
    """So many rows of one stream behind UNITS others, on pages that nobody holds: only time is looked at."""
    pos = np.arange(UNITS, UNITS + rows, dtype=np.int32)
    tables = np.arange(UNITS // PAGE + 1, dtype=np.int32)[None]
    starts, zeros = np.array([0, rows], np.int32), np.zeros(rows, np.int32)
    want = np.arange(rows, dtype=np.int32)
    return Batch((), (), zeros, pos, starts, pos.astype(np.int64), tables, zeros, pos + 1, want)
