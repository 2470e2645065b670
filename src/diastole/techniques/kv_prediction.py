"""KV Prediction: a small auxiliary reads the prompt, and linear maps make the model's keys and values of its own.

Horton, Cao, Sun, Jin, Mehta, Rastegari, Nabi: "KV Prediction for Improved Time to First Token", 2024, arXiv 2410.08391.
The first answer comes sooner, and answers are worse, so only requests with ``allow_approximate_prefill`` are read so.
From the prompt's last token on the model itself runs. Needs maps: ``diastole train kv-prediction``.

    position   0 .. exact - 1    exact .. N - 2    N - 1, answer
    auxiliary  reads             reads             -
    model      reads             is told           reads

The auxiliary is some of the model's own layers, or another model with the same tokens. What it keeps of a prompt lies
on pages of its own, which are given back when the prompt is read. Ours: the first tokens, which all heads look at, are
read by the model too; the auxiliary's last layer stops at its keys and values.

Left out: recomputing exactly in the background. Where the auxiliary's layers are the model's, its keys and values for
just these layers are approximate too, since what came into them skipped layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diastole import registry
from diastole.heads.kv_maps import KVMaps
from diastole.nn.decoder import Decoder
from diastole.nn.linear import Loader
from diastole.nn.tokens import difference
from diastole.slots import Facts, KVStore
from diastole.state.kv import PagedKV
from diastole.state.lease import Lease, Pool
from diastole.state.pages import PagePool
from diastole.types import Array, Batch, Stream, Tap, UserError
from diastole.weights import open_checkpoint
from diastole.weights.calibration import Calibration, find

NEEDS = frozenset({"paged_kv"})
NAME = "kv-prediction"


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    maps: str = ""  # file of the maps; empty: beside the model, or Diastole's own
    aux: str = ""  # file or directory of the auxiliary; empty: the model's own layers that the maps name
    min_prompt: int = 256  # tokens; shorter prompts are read exactly
    exact: int = 4  # first tokens that are read exactly
    refine: str = "none"  # or background, which is not there yet


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a batch that the auxiliary reads."""

    read: Array  # (T,) bool
    told: Array  # (T,) bool: of these, the ones of which the model has nothing but what it is told
    batch: Batch  # the rows that are read, on the auxiliary's own pages


class KVPrediction:
    """Slot ``absorb``."""

    def __init__(self, p: Params, maps: KVMaps) -> None:
        self.maps, self.exact = maps, p.exact
        self.least = max(p.min_prompt, p.exact + 2)  # so that there is a token to be told of

    def settle(self, kv: KVStore, pages: int) -> Mapping[str, Pool]:
        """As many pages as the model has: prompts that are being read lie on no fewer of those, so there is room."""
        self.kv, self.store = kv, PagedKV(kv.fmt)  # type: ignore[arg-type]  # forms that are read are written too
        self.store.alloc(self.maps.auxiliary.spec, pages, self.maps.base.ops)
        self.pool = PagePool(pages, self.store)
        return {NAME: self.pool}

    def takes(self, stream: Stream) -> bool:
        if not stream.speaks or not stream.req.params.allow_approximate_prefill:
            return False
        long: bool = stream.own.prompt >= self.least
        return long

    def grow(self, stream: Stream, n: int) -> bool:
        last: int = stream.own.prompt - 1 if stream.speaks else 0
        if stream.done >= last or not self.takes(stream):
            return True
        lease: Lease | None = stream.leases.get(NAME)
        if lease is None:
            lease = stream.leases[NAME] = self.pool.lease()
        return self.pool.grow(lease, min(stream.done + n, last))

    def ready(self, batch: Batch) -> Batch:
        part = self._part(batch)
        return batch if part is None else replace(batch, relay=partial(self._run, part))

    def absorbed(self, stream: Stream) -> None:
        if NAME in stream.leases and stream.done >= stream.own.prompt - 1:
            stream.leases.pop(NAME).close()

    def _part(self, b: Batch) -> Part | None:
        """None: there are no such rows."""
        read, told = np.zeros(len(b.inputs), bool), np.zeros(len(b.inputs), bool)
        leases, counts = [], []
        for (stream, _), first, behind in zip(b.grants, b.starts[:-1].tolist(), b.starts[1:].tolist(), strict=True):
            n = min(behind - first, stream.own.prompt - 1 - stream.done) if self.takes(stream) else 0
            if n > 0:
                read[first : first + n] = True
                told[first : first + n] = b.pos[first : first + n] >= self.exact
                leases.append(stream.leases[NAME])
                counts.append(n)
        if not leases:
            return None
        pos, tables = b.pos[read], PagePool.tables(leases)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        rows = PagePool.rows(tables, np.repeat(np.arange(len(counts)), counts), pos)
        lo = np.zeros(len(pos), np.int32)
        own = Batch((), (), b.inputs[read], pos, starts, rows, tables, lo, pos + 1, np.empty(0, np.int32))
        return Part(read, told, own)

    def _run(self, part: Part, decoder: Decoder, b: Batch, state: Mapping[str, Any]) -> Array:
        """The batch's way through both: what the model is told lies there when its own rows look at it."""
        which = np.flatnonzero(part.told[part.read])
        self.maps.absorb(part.batch, self.store, state["kv"], b.rows[part.told], which)
        rest = remaining(b, ~part.told)
        if not len(rest.inputs):
            return np.empty((0, decoder.vocab), np.float32)
        return decoder.forward(rest, state)


def remaining(b: Batch, keep: Array) -> Batch:
    """Some of the rows of a batch without drafts, all that are wanted or tapped among them: keep (T,) bool. Who looks
    at grants may not see it.

    Raises:
        ValueError: a row is wanted that is not kept: nobody computes what comes behind it.
    """
    if not keep[b.want].all():
        raise ValueError("what comes behind a token that was absorbed approximately is not known")
    at = np.concatenate([[0], np.cumsum(keep)]).astype(np.int32)
    starts = at[b.starts]
    there = np.flatnonzero(np.diff(starts))
    tap = None if b.tap is None else Tap(at[b.tap.rows], b.tap.hidden)
    return Batch(
        grants=(),
        leases=(),
        inputs=b.inputs[keep],
        pos=b.pos[keep],
        starts=np.append(starts[there], starts[-1:]),
        rows=b.rows[keep],
        tables=np.ascontiguousarray(b.tables[there]),
        lo=b.lo[keep],
        hi=b.hi[keep],
        want=at[b.want],
        tap=tap,
    )


# ---- what is asked for at start


def opened(p: Params, facts: Facts, found: Calibration) -> Decoder | None:
    """The auxiliary; None: it is part of the model itself.

    Raises:
        UserError: it is another than that of the maps, or its tokens are others.
    """
    wanted = found.about.get("aux", "")
    if not p.aux:
        if wanted:
            raise _wrong("aux", f"must name the model {wanted[:12]} that the maps were made for")
        return None
    path = Path(p.aux).expanduser()
    if not path.exists():
        raise _wrong("aux", f"must be the file or directory of a smaller model, not {p.aux!r:.80}")
    other = difference(facts.source, path) if facts.source is not None else ""
    if other:
        raise _wrong("aux", f"{path.name} has other tokens: {other}")
    assert facts.ops is not None
    checkpoint = open_checkpoint(path)
    try:
        if checkpoint.fingerprint != wanted:
            raise _wrong("aux", f"is another model than that of the maps, {wanted[:12] or 'part of the model itself'}")
        load = Loader(facts.ops, checkpoint, "auto")
        model: Decoder = registry.model(str(checkpoint.config.get("model_type"))).build(load, checkpoint.config, 0)
    finally:
        checkpoint.close()
    return model


def fitting(facts: Facts, model: Decoder | None) -> None:
    """Raises:
    UserError: these two models cannot be an auxiliary and its base.
    """
    if facts.windowed or facts.decoder is None:
        raise UserError(f"{NAME} needs a model all of whose layers see the whole context", param="use")
    if model is None:
        return
    if any(block.attn.window is not None for block in model.blocks):
        raise _wrong("aux", "must be a model all of whose layers see the whole context")
    if model.vocab != facts.decoder.vocab:
        raise _wrong("aux", f"has {model.vocab} tokens, not {facts.decoder.vocab}")
    if model.context < facts.context:
        raise _wrong("aux", f"has a context of {model.context}, less than the model's: set context to at most that")


def _check(p: Params) -> None:
    if p.min_prompt < 1:
        raise _wrong("min_prompt", f"must be at least 1, not {p.min_prompt}")
    if p.exact < 0:
        raise _wrong("exact", f"must be at least 0, not {p.exact}")
    if p.refine == "background":
        raise _wrong("refine", "must be none: computing again in the background is not there yet")
    if p.refine != "none":
        raise _wrong("refine", f"must be none, not {p.refine!r:.40}")


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"{NAME}: {knob} {what}", param="use")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    _check(p)
    found = find(NAME, facts, p.maps, NAME)
    model = opened(p, facts, found)
    fitting(facts, model)
    assert facts.decoder is not None
    try:
        maps = KVMaps(facts.decoder, found.tensors, model)
    except (KeyError, ValueError) as e:
        raise _wrong("maps", f"do not fit this model: {e}") from None
    return {"absorb": KVPrediction(p, maps)}
