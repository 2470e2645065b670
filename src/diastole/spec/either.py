"""Either: several drafters, asked in turn: a stream's draft is the first that has something to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diastole.sample import Chosen
from diastole.slots import KVStore
from diastole.slots_drafts import Drafter, Span
from diastole.state.lease import Pool
from diastole.types import Batch, Draft, Stream

NOTHING = Draft(())


class Either:
    """Slot ``draft``."""

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self.drafters = tuple(drafters)
        self.most = max(d.most for d in drafters)
        self.looks = any(d.looks for d in drafters)

    def settle(self, kv: KVStore, streams: int, spans: Sequence[Span]) -> Mapping[str, Pool]:
        pools: dict[str, Pool] = {}
        for drafter in self.drafters:
            pools |= drafter.settle(kv, streams, spans)
        return pools

    def draft(self, streams: Sequence[Stream], lengths: Sequence[int]) -> Sequence[Draft]:
        found: dict[Stream, Draft] = {}
        for drafter in self.drafters:
            left = [(s, min(n, drafter.most)) for s, n in zip(streams, lengths, strict=True) if s not in found]
            if not left:
                break
            guessed = drafter.draft([s for s, _ in left], [n for _, n in left])
            found.update({s: draft for (s, _), draft in zip(left, guessed, strict=True) if draft.tokens})
        return [found.get(s, NOTHING) for s in streams]

    def ready(self, batch: Batch) -> Batch:
        for drafter in self.drafters:
            batch = drafter.ready(batch)
        return batch

    def verified(self, stream: Stream, draft: Draft, nodes: Sequence[int], chosen: Sequence[Chosen]) -> None:
        for drafter in self.drafters:
            drafter.verified(stream, draft, nodes, chosen)
