"""Steps in which every stream decodes and every draft is a chain: the batch that ``Drafting`` makes for any draft, in
few calls. Such steps are most of all, and their forward pass may take no longer than a few of Python's calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diastole.state.pages import PAGE
from diastole.types import Batch, Draft, Grant, Sown, Stream


def gather(grants: Sequence[Grant], starved: tuple[Stream, ...], drafts: Mapping[Stream, Draft]) -> Batch:
    """The batch where every stream absorbs its last known token and what is guessed behind it; each has a draft, which
    may be empty, and as much room as it needs."""
    ids: list[int] = []
    pos: list[int] = []
    rows: list[int] = []
    starts = [0]
    leases, tables, sown = [], [], []
    for stream, n in grants:
        draft, done, first = drafts[stream], stream.done, len(ids)
        ids.append(stream.own.tip)
        ids += draft.tokens
        pos += range(done, done + n)
        places = stream.leases["kv"].places
        rows += [places[at // PAGE] * PAGE + at % PAGE for at in range(done, done + n)]
        starts.append(first + n)
        leases.append(stream.leases)
        tables.append(places)
        sown.append(Sown(draft, range(first, first + n)))
    t, longest = len(ids), max(map(len, tables))
    flat = [*ids, *pos, *[p + 1 for p in pos], *[0] * t, *range(t), *starts]  # six arrays in one
    for places in tables:
        flat += places
        flat += [0] * (longest - len(places))
    numbers = np.array(flat, np.int32)
    behind = 5 * t + len(starts)
    return Batch(
        grants=tuple(grants),
        leases=tuple(leases),
        inputs=numbers[:t],
        pos=numbers[t : 2 * t],
        starts=numbers[5 * t : behind],
        rows=np.array(rows, np.int64),
        tables=numbers[behind:].reshape(len(tables), longest),
        lo=numbers[3 * t : 4 * t],
        hi=numbers[2 * t : 3 * t],
        want=numbers[4 * t : 5 * t],
        starved=starved,
        sown=tuple(sown),
    )
