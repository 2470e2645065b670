"""Batches in which drafts branch: every branch is a stream of its own to the model, on pages of its own.

The first branch writes behind the stream's known tokens; the others on forks of its lease. What branches share is
computed once and written to the pages of all. Whichever branch turns out right, its lease is the stream's from then on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diastole.loops import pooling
from diastole.loops.texts import Text
from diastole.spec.tree import branches
from diastole.state.lease import Lease
from diastole.state.pages import PAGE, PagePool
from diastole.types import Batch, Draft, Grant, Sown, Stream


class Twig(NamedTuple):
    """A branch with its lease."""

    nodes: list[int]
    lease: Lease


def grow(pool: PagePool, stream: Stream, draft: Draft) -> list[Twig] | None:
    """Leases with room for each branch, the stream's own first; None, and nothing changed but that, when there is not
    enough room."""
    own = stream.leases["kv"]
    first, *others = branches(draft)
    twigs = [Twig(nodes, pool.fork(own)) for nodes in others]
    for nodes, lease in [*twigs, (first, own)]:
        if not pool.grow(lease, stream.known + len(nodes)):
            for twig in twigs:
                twig.lease.close()
            return None
    return [Twig(first, own), *twigs]


class _Rows:
    """The rows of a batch, piece by piece."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.pos: list[int] = []
        self.starts = [0]
        self.leases: list[Lease] = []
        self.rows: list[int] = []
        self.also: list[tuple[int, int]] = []

    def close(self, lease: Lease) -> None:
        """The rows since the last time belong to this lease."""
        self.leases.append(lease)
        for at in self.pos[self.starts[-1] :]:
            self.rows.append(_place(lease, at))
        self.starts.append(len(self.ids))

    def add(self, token: int, pos: int) -> int:
        self.ids.append(token)
        self.pos.append(pos)
        return len(self.ids) - 1


def _place(lease: Lease, unit: int) -> int:
    return lease.places[unit // PAGE] * PAGE + unit % PAGE


def gather(
    grants: Sequence[Grant],
    starved: tuple[Stream, ...],
    drafts: Mapping[Stream, Draft],
    twigs: Mapping[Stream, Sequence[Twig]],
    width: int,
) -> Batch:
    """The batch of these grants, of which those with drafts absorb their last known token and what is guessed.

    Args:
        twigs: of those whose drafts branch.
        width: as ``AutoRegressive``'s.
    """
    rows = _Rows()
    want: list[int] = []
    sown: list[Sown | None] = []
    for stream, n in grants:
        if stream in drafts:
            draft = drafts[stream]
            alone = Twig([*range(len(draft.tokens))], stream.leases["kv"])
            own = _sow(rows, stream, draft, twigs.get(stream, [alone]))
            sown.append(own)
            want += own.rows
            continue
        ids = stream.own.ids
        for at in range(stream.done, stream.done + n):
            rows.add(int(ids[at]), at)
        rows.close(stream.leases["kv"])
        sown.append(None)
        if n == stream.left and stream.speaks:
            want.append(len(rows.ids) - 1)
    pos = np.array(rows.pos, np.int32)
    return Batch(
        grants=tuple(grants),
        leases=tuple([s.leases for s, _ in grants]),
        inputs=np.array(rows.ids, np.int32),
        pos=pos,
        starts=np.array(rows.starts, np.int32),
        rows=np.array(rows.rows, np.int64),
        tables=PagePool.tables(rows.leases),
        lo=np.zeros(len(pos), np.int32),
        hi=pos + 1,
        want=np.array(want, np.int32),
        starved=starved,
        tap=pooling.tap(grants, np.cumsum([0, *(n for _, n in grants)], dtype=np.int32), width),
        also=np.array(rows.also, np.int64).reshape(-1, 2),
        sown=tuple(sown),
    )


def _sow(rows: _Rows, stream: Stream, draft: Draft, twigs: Sequence[Twig]) -> Sown:
    text: Text = stream.own
    root = rows.add(text.tip, stream.done)
    at: dict[int, int] = {}  # batch row of each node
    for nodes, lease in twigs:
        shared = [] if lease is twigs[0].lease else [(root, stream.done)]
        for depth, node in enumerate(nodes, 1):
            if node in at:
                shared.append((at[node], stream.done + depth))
            else:
                at[node] = rows.add(draft.tokens[node], stream.done + depth)
        rows.also += [(row, _place(lease, unit)) for row, unit in shared]
        rows.close(lease)
    return Sown(draft, [root, *(at[i] for i in range(len(draft.tokens)))])


def chosen(twigs: Sequence[Twig], nodes: Sequence[int]) -> Lease:
    """The lease of a branch that has these nodes; all others are given back."""
    right = next(t.lease for t in twigs if t.nodes[: len(nodes)] == [*nodes])
    for twig in twigs:
        if twig.lease is not right:
            twig.lease.close()
    return right
