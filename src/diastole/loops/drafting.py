"""Autoregressive decoding with drafts: a stream absorbs its last known token and guesses behind it in one step.

A guess that turns out right has its state already; what is wrong is rolled back. The rows of a draft lie behind the
stream's last known token, as a prompt's would, so that they are the same as if the tokens had come one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diastole.loops import branching, chains
from diastole.loops.ar import AutoRegressive
from diastole.loops.texts import Text
from diastole.metrics import Meter
from diastole.sample import Chosen
from diastole.slots import CostModel
from diastole.slots_drafts import Drafter, Pacer, Span, Verifier
from diastole.spec.tree import part, straightened
from diastole.spec.verify import Guess
from diastole.types import Array, Ask, Batch, Draft, Event, Grant, Outcome, Sown, Stream

NOTHING = Draft(())


class Drafting(AutoRegressive):
    """The loop of language models whose answers are guessed ahead.

    Args:
        drafter: guesses.
        verify: keeps what is right.
        pace: how much of that is verified; it is told what was right.
        cost: predicts steps.
        branches: whether drafts may branch; else only the first branch of each is verified.
        spans: how many units of a stream may come in one step if all but the first may be guesses.
        meter: counts.
        timer: seconds, to tell what guessing takes.
    """

    def __init__(
        self,
        *args: Any,
        drafter: Drafter,
        verify: Verifier,
        pace: Pacer,
        cost: CostModel,
        meter: Meter,
        branches: bool,
        spans: Sequence[Span] = (),
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(*args)
        self.drafter, self.verify, self.pace, self.cost, self.meter = drafter, verify, pace, cost, meter
        self.branches, self.spans, self.timer = branches, tuple(spans), timer
        self._began = 0.0  # the step
        self._asked = False  # for guesses, in this step
        self._twigs: dict[Stream, list[branching.Twig]] = {}  # of the step under way

    def ask(self, stream: Stream) -> Ask:
        if stream.speaks and 1 < stream.left <= 1 + stream.own.ahead:  # its own last words, which came all at once
            n = self._span(stream)
            return Ask(stream, n, n + self._room(stream) if n == stream.left else n, stream.due, True)
        ask = super().ask(stream)
        return ask._replace(hi=1 + self._room(stream)) if ask.emits and stream.speaks else ask

    def _room(self, stream: Stream) -> int:
        """Nodes that its next draft may have."""
        text: Text = stream.own
        if text.twins:
            return 0
        return min(self.drafter.most, text.limit - stream.known - 1, *[span(stream) - 1 for span in self.spans])

    def _span(self, stream: Stream) -> int:
        return min(stream.left, *[span(stream) for span in self.spans]) if self.spans else stream.left

    def prepare(self, grants: Sequence[Grant]) -> Batch:
        self._began, self._asked = self.timer(), False
        self._drop_twigs()
        drafts = self._drafts(grants)
        if not drafts:
            return self.drafter.ready(super().prepare(grants))
        kept: list[Grant] = []
        starved: list[Stream] = []
        for stream, n in grants:
            if stream in drafts:
                n = self._room_for(stream, drafts)
            else:
                n = self._whole(stream, min(n, self._span(stream)))
                n = n if self.pool.grow(stream.leases["kv"], stream.done + n) else 0
            if n:
                kept.append(Grant(stream, n))
            else:
                starved.append(stream)
        if self._twigs:
            return self.drafter.ready(branching.gather(kept, tuple(starved), drafts, self._twigs, self.width))
        if kept and all([s in drafts and s.left == 1 for s, _ in kept]):  # noqa: C419
            return self.drafter.ready(chains.gather(kept, tuple(starved), drafts))
        for stream, _ in kept:
            if stream in drafts:
                _write_behind(stream, drafts[stream].tokens)
        batch = self._gather(kept, tuple(starved))
        sown: list[Sown | None] = []
        want: list[int] = []
        for (stream, n), first_row, behind in zip(
            kept, batch.starts[:-1].tolist(), batch.starts[1:].tolist(), strict=True
        ):
            if stream in drafts:
                last = first_row + stream.left - 1  # of its known tokens
                sown.append(Sown(drafts[stream], range(last, behind)))
                want += range(last, behind)
                continue
            sown.append(None)
            if n == stream.left and stream.speaks:
                want.append(behind - 1)
        return self.drafter.ready(replace(batch, sown=tuple(sown), want=np.array(want, np.int32)))

    def _room_for(self, stream: Stream, drafts: dict[Stream, Draft]) -> int:
        """Rows that a stream may write, for which there is room now; nobody starves for a guess."""
        draft = drafts[stream]
        if draft.parents is None:
            room = self.pool.grow(stream.leases["kv"], stream.known + len(draft.tokens))
        else:
            twigs = branching.grow(self.pool, stream, draft)
            room = twigs is not None
            if twigs is not None:
                self._twigs[stream] = twigs
        if not room:
            draft = drafts[stream] = NOTHING
            room = self.pool.grow(stream.leases["kv"], stream.known)
        return stream.left + len(draft.tokens) if room else 0

    def _drop_twigs(self) -> None:
        """Of a step that failed, the branches that nobody took."""
        for twigs in self._twigs.values():
            for twig in twigs[1:]:
                twig.lease.close()
        self._twigs.clear()

    def _drafts(self, grants: Sequence[Grant]) -> dict[Stream, Draft]:
        """By stream that decodes, what is guessed behind it; none at all if that is nothing for everybody, unless the
        verifier has more to say than what was guessed."""
        found = self._guessed(grants)
        if not found and not self.verify.ahead:
            return {}
        return {s: NOTHING for s, n in grants if self._decodes(s, n)} | found

    def _decodes(self, stream: Stream, n: int) -> bool:
        """Whether what this stream says after ``n`` more units is the verifier's to decide."""
        whole = stream.left == 1 or (self.verify.ahead and n >= stream.left)
        return stream.speaks and whole and not stream.own.twins

    def _guessed(self, grants: Sequence[Grant]) -> dict[Stream, Draft]:
        """The guesses themselves, by streams that have any."""
        wishes = [(s, n - s.left) for s, n in grants if n > s.left and s.speaks]
        if not wishes:
            return {}
        self._asked = True
        guessed = self.drafter.draft([s for s, _ in wishes], [n for _, n in wishes])
        found = {s: self._usable(draft) for (s, _), draft in zip(wishes, guessed, strict=True) if draft.tokens}
        taken = self.pace.trim(grants, found, self.cost)
        return {s: part(found[s], nodes) for s, nodes in taken.items() if nodes}

    def _usable(self, draft: Draft) -> Draft:
        """As it can be verified here. Without ``q`` a guess counts as no draw, which is exact however it was chosen."""
        if not self.branches and draft.parents is not None:
            draft = straightened(draft)._replace(q=None)
        return draft if self.pace.blind or draft.q is None else draft._replace(q=None)

    def commit(self, batch: Batch, output: Array, now: float) -> Outcome:
        outcome = self._committed(batch, output, now) if batch.sown else super().commit(batch, output, now)
        if len(batch.want) == len(batch.inputs):
            tokens = sum([event.units for event in outcome.events])
            self.pace.stepped(len(batch.grants), tokens, self.timer() - self._began, self._asked)
        return outcome

    def _committed(self, batch: Batch, output: Array, now: float) -> Outcome:
        number = {row: i for i, row in enumerate(batch.want.tolist())}  # of the output's rows
        sown = [(grant.stream, sown) for grant, sown in zip(batch.grants, batch.sown, strict=True) if sown is not None]
        verdict = self.verify.accept([_guess(s, x, [number[row] for row in x.rows]) for s, x in sown], output)
        rest = self._commit_others(batch, output, number, now)
        events, failed = rest.events, [*rest.failed]
        for i, (stream, (draft, _)) in enumerate(sown):
            if i in verdict.errors:
                failed.append((stream, verdict.errors[i]))
            else:
                events.append(self._take(stream, draft, verdict.chosen[i], verdict.nodes[i], now))
        self._drop_twigs()
        return Outcome(events, rest.born, failed)

    def _commit_others(self, batch: Batch, output: Array, number: dict[int, int], now: float) -> Outcome:
        """Of the streams that absorb what they were given."""
        others = [i for i, sown in enumerate(batch.sown) if sown is None]
        if not others:
            return Outcome([], [])
        behind = np.cumsum([n for _, n in batch.grants])
        grants = tuple([batch.grants[i] for i in others])
        starts = np.cumsum([0, *(n for _, n in grants)], dtype=np.int32)
        inputs = np.concatenate(
            [batch.inputs[behind[i] - n : behind[i]] for i, (_, n) in zip(others, grants, strict=True)]
        )
        ends = [int(behind[i]) - 1 for i in others]
        spoken = [end in number for end in ends]
        part = replace(batch, grants=grants, inputs=inputs, starts=starts, want=starts[1:][spoken] - 1, sown=())
        rows = [number[end] for end in ends if end in number]
        return super().commit(part, output[rows], now)

    def _take(self, stream: Stream, draft: Draft, chosen: Sequence[Chosen], nodes: Sequence[int], now: float) -> Event:
        """What a stream has said: its first tokens were guessed, at these nodes; the others are yet to be absorbed."""
        self.drafter.verified(stream, draft, nodes, chosen)
        units = stream.left + len(nodes)
        if stream in self._twigs:
            stream.leases["kv"] = branching.chosen(self._twigs.pop(stream), nodes)
        for right in chosen[:-1]:
            self.learn(stream, right.id)
        self.absorbed(stream, units)
        stream.own.ahead = len(chosen) - 1 - len(nodes)
        if stream.leases["kv"].units > stream.done:
            self.pool.truncate(stream.leases["kv"], stream.done)
        self._count(stream, draft, nodes)
        event = self.say(stream, tuple(chosen), now)
        if self.refresh is not None and not stream.finished:
            self.reconsider(stream)
        return event

    def _count(self, stream: Stream, draft: Draft, nodes: Sequence[int]) -> None:
        if not draft.tokens:
            return
        self.pace.learn(stream, draft, nodes)
        text: Text = stream.own
        text.drafted += len(draft.tokens)
        text.kept += len(nodes)
        self.meter.drafted(len(draft.tokens), len(nodes))


def _write_behind(stream: Stream, tokens: Sequence[int]) -> None:
    """Guesses where the tokens that they stand for would be; they are not known for that."""
    text: Text = stream.own
    while len(text.ids) < stream.known + len(tokens):
        text.widen()
    text.ids[stream.known : stream.known + len(tokens)] = tokens


def _guess(stream: Stream, sown: Sown, rows: Sequence[int]) -> Guess:
    text: Text = stream.own
    return Guess(text.sampler, sown.draft, rows, stream.known, text.limit - stream.known, text.stops)
