"""Long contexts for reproductions: a context absorbed once and read through many stacks, and questions about one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diastole.bench.longcontext.study import Kept, mean
from diastole.bench.longcontext.tasks import ALL
from diastole.bench.longtext import Corpus
from diastole.bench.quality import log_softmax
from diastole.bench.rig import Rig
from diastole.reproduce.study import Study
from diastole.state.lease import Blob
from diastole.types import Array, Stream


@dataclass(frozen=True, slots=True)
class Rigs:
    """Makes rigs of one size, whose streams can be saved in one and loaded in another."""

    context: int
    streams: int = 2  # forks of one context need less than their number

    def __call__(self, *use: str, kv: str = "rows") -> Rig:
        return Rig(use=use, kv=kv, context=self.context, streams=self.streams)


class Text:
    """A text cut into a context, absorbed once and kept, and the tokens that follow it."""

    def __init__(self, rig: Rig, ids: Sequence[int], follow: int) -> None:
        self.context, self.follow = list(ids[:-follow]), list(ids[-follow:])
        stream = rig.open(self.context)
        rig.absorb(stream)
        self._blob: Blob = rig.save(stream)
        rig.close(stream)

    def on(self, rig: Rig) -> Stream:
        """The context as a stream of any rig with the same form of rows."""
        return rig.load(self._blob)

    def read(self, rig: Rig, steps: int = 0) -> Array:
        """Log probabilities (steps - 1, V) of what follows each token but the last, fed one by one."""
        stream = self.on(rig)
        rows = [rig.step({stream: token})[0] for token in self.follow[: steps or None][:-1]]
        rig.close(stream)
        return log_softmax(np.stack(rows))

    def perplexity(self, read: Array) -> float:
        answers = np.array(self.follow[1 : len(read) + 1])
        return float(np.exp(-read[np.arange(len(read)), answers].mean()))


def copied(source: Rig, stream: Stream, to: Rig) -> Stream:
    """A stream with the same past in another rig, whatever that one keeps of it."""
    twin = to.open(stream.own.ids[: stream.done])
    if not to.loop.pool.grow(twin.leases["kv"], stream.done):
        raise RuntimeError("the rig is too small for this context")
    at = np.arange(stream.done, dtype=np.int32)
    rows = [
        rig.loop.pool.rows(rig.loop.pool.tables([s.leases["kv"]]), np.zeros_like(at), at)
        for rig, s in ((source, stream), (to, twin))
    ]
    for layer in range(source.spec.layers):
        k, v = source.service.state["kv"].read(layer, rows[0])
        to.service.state["kv"].write(layer, rows[1], k, v)
    to.loop.absorbed(twin, stream.done)
    return twin


def divergence(read: Array, dense: Array) -> Array:
    """Of each position, in nats: (steps,)."""
    found: Array = (np.exp(dense) * (dense - read)).sum(-1)
    return found


def answers(
    study: Study, task: str, n: int, cases: int, stacks: Mapping[str, Sequence[str]], mark: str = "exact"
) -> dict[str, float]:
    """A mark of the long-context suite for dense attention ("dense") and each stack, over contexts of ``n`` tokens."""
    found: dict[str, list[float]] = {"dense": [], **{name: [] for name in stacks}}
    rigs = Rigs(n + 512, streams=8)
    with rigs(kv="auto") as dense, study.progress(f"{task} at {n} tokens", cases * (1 + len(stacks))) as told:
        kept = []
        for case in ALL[task].cases(Corpus.of(dense.tokenizer), n, cases, study.seed):
            kept.append(Kept.of(dense, case))
            found["dense"].append(mean(kept[-1].judge_dense(), mark))
            told()
        for name, use in stacks.items():
            with rigs(*use, kv="auto") as rig:
                for one in kept:
                    found[name].append(mean(one.judge(rig), mark))
                    told()
    return {name: float(np.mean(values)) for name, values in found.items()}
