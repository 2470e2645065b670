"""Autoregressive decoding: chunked prefill and decode as one law.

A stream knows tokens (prompt, then its own output) and has absorbed some of them. A step absorbs any number of the
rest; the step that absorbs the last one gives the logits for the next, which makes one more known. There is no prefill
phase and no decode phase, only ``known - done``. A stream that only reads (``loops.pooling``) ends there instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import numpy as np

from diastole.live import Chunk
from diastole.loops import decoding, pooling
from diastole.loops.prompt import check_prompt
from diastole.loops.texts import Text, Tokens
from diastole.params import PoolParams, SamplingParams
from diastole.sample import Chosen, Sampler, SomeFailed, choose_all
from diastole.slots import KVStore, Refresher
from diastole.slots_absorb import Absorber
from diastole.state.pages import PAGE, PagePool
from diastole.state.prefix import Key
from diastole.text.grammar import Grammars
from diastole.types import Array, Ask, Batch, Event, Grant, Outcome, Request, Stream, UserError


class AutoRegressive:
    """The loop of language models with paged key/value state.

    Args:
        pool: pages of all streams.
        context: most tokens of a stream, prompt and output together.
        vocab: ids run from 0 to vocab - 1.
        eos: ids that end a text.
        fingerprint: of the stack; cached prefixes are reused only under the same.
        width: numbers in the hidden states that the model gives to a tap; 0: it gives none.
        grammars: of this vocabulary; None: requests may bring none.
        stepwise: what a stream has said is absorbed token by token and shared with nobody, because something acts
            inside the layers that gives it other rows than a prompt would have.
        refresh: which of a stream's last rows are computed again; None: none ever.
        block: what a stream was given is absorbed in whole blocks of so many, counted from its start, and shared in
            such, because what acts inside the layers looks at a block as a whole; what is left over is one piece.
        kv: what keeps the rows, if it has a say in when they come or does something with them afterwards.
        absorb: another way for prompts into the state; None: there is none.
    """

    unit = "token"
    repeatable = True  # a forward pass writes rows beyond ``done`` only

    def __init__(
        self,
        pool: PagePool,
        context: int,
        vocab: int,
        eos: frozenset[int],
        fingerprint: str,
        width: int = 0,
        grammars: Grammars | None = None,
        stepwise: bool = False,
        refresh: Refresher | None = None,
        block: int = 1,
        kv: KVStore | None = None,
        absorb: Absorber | None = None,
    ) -> None:
        self.pool, self.context, self.vocab, self.eos, self.fingerprint = pool, context, vocab, eos, fingerprint
        self.width, self.grammars, self.stepwise, self.refresh = width, grammars, stepwise, refresh
        self.block, self.kv, self.absorb = block, kv, absorb

    # ---- a stream's life

    def check(self, request: Request) -> None:
        check_prompt(request.inputs, request.params, self.vocab, self.context, self.pool.pages * PAGE)
        if self.grammars is None and request.params.grammar is not None:
            raise UserError("this service follows no grammars", param="grammar")
        if isinstance(request.params, SamplingParams) and request.params.prediction:
            if isinstance(request.params.prediction, str):
                raise UserError("prediction must be token ids here, not text", param="prediction", code="invalid_type")
        elif isinstance(request.params, PoolParams) and not self.width:
            raise UserError("this model gives no hidden states that could be pooled", param="model")

    def preparation(self, request: Request) -> Callable[[], object] | None:
        grammar = request.params.grammar
        if grammar is None or self.grammars is None or grammar in self.grammars:
            return None
        return partial(self.grammars.guide, grammar)

    def open(self, request: Request) -> Stream:
        prompt = np.asarray(request.inputs, np.int32)
        if isinstance(request.params, PoolParams):
            own = pooling.Reading(prompt, request.params.kind, self.width)
            return Stream(request, 0, known=len(prompt), own=own, speaks=False, given=len(prompt))
        return Stream(request, 0, known=len(prompt), own=self._text(request, prompt), given=len(prompt))

    def resume(self, request: Request, said: Sequence[int]) -> Stream:
        """A stream that has said so much already, elsewhere; what it absorbed there is lost or comes after.

        Raises:
            UserError: such a request cannot go on elsewhere, or it would have ended by now.
        """
        if not isinstance(request.params, SamplingParams) or request.params.n > 1:
            raise UserError("only a request for one text can go on elsewhere", param="n")
        stream = self.open(request)
        text: Text = stream.own
        if stream.known + len(said) >= text.limit or not text.stops.isdisjoint(said):
            raise UserError("this text has come to its end already", param="said")
        for token in said:
            if not 0 <= token < self.vocab:
                raise UserError(f"said has a token {token} outside the vocabulary of {self.vocab}", param="said")
            text.sampler.saw(token)
            self.learn(stream, token)
        return stream

    def _text(self, request: Request, prompt: Array) -> Text:
        params: SamplingParams = request.params
        guide = None
        if self.grammars is not None and params.grammar is not None:
            guide = self.grammars.guide(params.grammar)
        room = min(self.context, self.pool.pages * PAGE)
        limit = room if params.max_tokens is None else len(prompt) + params.max_tokens
        ids = np.empty(min(limit, len(prompt) + 256), np.int32)
        ids[: len(prompt)] = prompt
        stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.eos)
        space = f"{self.fingerprint}/{request.salt}"
        return Text(
            ids,
            int(prompt[-1]),
            len(prompt),
            Sampler(params, prompt.tolist(), 0, guide),
            limit,
            stops,
            space,
            twins=params.n - 1,
        )

    def admit(self, stream: Stream) -> bool:
        own: Text | pooling.Reading = stream.own
        beside = {} if self.kv is None else self.kv.settle(stream)
        if beside is None:
            return False
        lease = self.pool.lease(self._key(stream, self._findable(stream)))
        stream.leases = {"kv": lease, **beside}
        if (whole := self._shareable(stream, lease.units)) < lease.units:
            self.pool.shorten(lease, whole)
        if not self.pool.fits(lease, stream.known):
            self.close(stream)
            return False
        stream.done = lease.units
        own.cached = min(max(own.cached, lease.units), own.prompt)
        return True

    def _like_a_prompt(self, stream: Stream, units: int) -> int:
        """How many of the first ``units`` have the rows that any prompt would have."""
        if self.block > 1:
            return min(units, stream.given) // self.block * self.block
        return min(units, stream.given) if self.stepwise else units

    def _findable(self, stream: Stream) -> int:
        """How many of a stream's units a cached beginning is looked for with; it is shorter by one at least."""
        if self.block > 1:
            return self._like_a_prompt(stream, stream.given - 1) + 1
        return self._like_a_prompt(stream, stream.known)

    def _shareable(self, stream: Stream, units: int) -> int:
        """How many of the first ``units`` other prompts may find."""
        units = self._like_a_prompt(stream, units)
        return units if self.kv is None else self.kv.shareable(stream, units)

    def _key(self, stream: Stream, units: int) -> Key | None:
        """Under what the first ``units`` are found, or kept; None: under nothing."""
        if self.absorb is not None and self.absorb.takes(stream):
            return None
        key: Key | None = stream.own.prefix(units)
        return key if key is None or self.kv is None else Key(key.space, self.kv.words(key.tokens))

    def most(self, stream: Stream) -> int:
        limit: int = stream.own.limit if stream.speaks else stream.known
        return limit

    def feed(self, stream: Stream, chunk: Chunk, now: float) -> None:
        raise UserError("a language model takes its whole prompt at once; open a new request instead", param="feed")

    def rewind(self, stream: Stream) -> None:
        stream.done = 0

    def close(self, stream: Stream) -> None:
        for lease in stream.leases.values():
            lease.close()
        stream.leases.clear()

    # ---- a step

    def ask(self, stream: Stream) -> Ask:
        left = stream.known - stream.done
        if left > 1 and self.stepwise:
            most = max(min(stream.given - stream.done, self._span(stream)), 1)
            return Ask(stream, self._whole(stream, 1), most, stream.due, False)
        if left == 1:
            return decoding.ask(stream)
        return Ask(stream, self._whole(stream, 1), self._span(stream), stream.due, False)

    def _span(self, stream: Stream) -> int:
        """How many of a stream's units may come in one step."""
        return stream.left if self.kv is None else min(stream.left, self.kv.span(stream))

    def _whole(self, stream: Stream, n: int) -> int:
        """As many of the next ``n`` units as end with a block; the first block's where there is none."""
        end, given = stream.done + n, stream.given
        if self.block == 1 or end >= given:
            return n
        whole = end // self.block * self.block
        if whole <= stream.done:
            whole = min((stream.done // self.block + 1) * self.block, given)
        return whole - stream.done

    def forecast(self, stream: Stream) -> None:
        return None  # a text stream always asks

    def prepare(self, grants: Sequence[Grant]) -> Batch:
        kept: list[Grant] = []
        starved: list[Stream] = []
        grow, decode = self.pool.grow, True
        for grant in grants:
            stream, n = grant
            if n > 1 or stream.known - stream.done > 1 or not stream.speaks:
                decode = False
            if n > 1 or self.block > 1:
                n = self._whole(stream, min(n, self._span(stream)))
                grant = Grant(stream, n)
            if grow(stream.leases["kv"], stream.done + n) and (self.absorb is None or self.absorb.grow(stream, n)):
                kept.append(grant)
            else:
                starved.append(stream)
        if decode and kept:
            return decoding.gather(kept if starved else grants, tuple(starved))
        batch = self._gather(kept, tuple(starved))
        return batch if self.absorb is None else self.absorb.ready(batch)

    def _gather(self, grants: list[Grant], starved: tuple[Stream, ...]) -> Batch:
        streams = [s for s, _ in grants]
        counts = np.array([n for _, n in grants], np.int32)
        done = np.array([s.done for s in streams], np.int32)
        starts = np.zeros(len(grants) + 1, np.int32)
        np.cumsum(counts, out=starts[1:])
        owner = np.repeat(np.arange(len(grants), dtype=np.int32), counts)
        pos = np.arange(starts[-1], dtype=np.int32) + (done - starts[:-1])[owner]
        tables = self.pool.tables([s.leases["kv"] for s in streams])
        return Batch(
            grants=tuple(grants),
            leases=tuple([s.leases for s in streams]),
            inputs=np.concatenate([np.empty(0, np.int32), *(s.own.ids[s.done : s.done + n] for s, n in grants)]),
            pos=pos,
            starts=starts,
            rows=self.pool.rows(tables, owner, pos),
            tables=tables,
            lo=np.zeros(len(pos), np.int32),
            hi=pos + 1,
            want=starts[1:][[n == s.left and s.speaks for s, n in grants]] - 1,
            starved=starved,
            tap=pooling.tap(grants, starts, self.width),
        )

    def commit(self, batch: Batch, output: Array, now: float) -> Outcome:
        """output (W, V) float32: logits of the streams whose last known token was absorbed, in batch order."""
        if len(batch.want) == len(batch.inputs) and self.kv is None and self.refresh is None:
            spoken = decoding.commit(batch, output, now, self._offer, self.close)
            if spoken is not None:
                return Outcome(spoken, [])
        speaking: list[Stream] = []
        rows: list[int] = []  # of output, one for each of them
        born: list[Stream] = []
        failed: list[tuple[Stream, Exception]] = []
        wanted = 0
        for stream, n in batch.grants:
            self.absorbed(stream, n)
            if stream.speaks and stream.done == stream.known:
                speaking.append(stream)
                rows.append(wanted)
                if stream.own.twins:
                    try:
                        twins = self._fork(stream)
                    except Exception as e:  # its guide's, say: nobody else is to blame
                        failed.append((speaking.pop(), e))
                        rows.pop()
                    else:
                        born += twins
                        speaking += twins
                        rows += [wanted] * len(twins)
                wanted += 1
        logits = output[rows] if born or failed else output
        try:
            chosen = choose_all([s.own.sampler for s in speaking], logits, [s.known for s in speaking])
        except SomeFailed as e:
            failed += [(speaking[row], error) for row, error in e.errors.items()]
            speaking, chosen = [speaking[row] for row in e.chosen], [*e.chosen.values()]
        events = [self.say(s, (c,), now) for s, c in zip(speaking, chosen, strict=True)]
        if batch.tap is not None:
            for stream in pooling.absorb(batch.grants, batch.tap):
                self.close(stream)
                events.append(Event(stream.req.id, stream.index, stream.own.result(), True, now, stream.speaks))
        if self.refresh is not None:
            for stream in speaking:
                if not stream.finished:
                    self.reconsider(stream)
        return Outcome(events, born, failed)

    def absorbed(self, stream: Stream, n: int) -> None:
        """Take note that ``n`` more of a stream's tokens are in its state."""
        done = stream.done = stream.done + n
        if stream.speaks and done % PAGE < n:  # a page is complete
            self._offer(stream, done)
        if self.kv is not None:
            self.kv.seal(stream, done)
            self._offer(stream, done)
        if self.absorb is not None:
            self.absorb.absorbed(stream)

    def _offer(self, stream: Stream, done: int) -> None:
        """To the prefix cache, what others may share."""
        lease, upto = stream.leases["kv"], self._shareable(stream, done)
        if upto // PAGE > lease.published and (key := self._key(stream, upto)) is not None:
            self.pool.publish(lease, key, upto)

    def reconsider(self, stream: Stream) -> None:
        """Let some of a stream's last rows be computed again, if the policy for that wants it: as a prompt's are."""
        again = 0 if self.refresh is None else self.refresh.rows(stream)
        if again:
            stream.given = stream.done
            stream.done -= again

    def learn(self, stream: Stream, token: int) -> None:
        """Take note that this is a stream's next token."""
        text: Text = stream.own
        if stream.known == len(text.ids):
            text.widen()
        text.ids[stream.known] = text.tip = token
        stream.known += 1

    def _fork(self, stream: Stream) -> list[Stream]:
        """The other choices of a request whose prompt is now absorbed: all, or an error and none."""
        twins: list[Stream] = []
        try:
            for index in range(1, stream.own.twins + 1):
                twins.append(self.twin(stream, index))
        except Exception:
            for twin in twins:
                self.close(twin)
            raise
        stream.own.twins = 0
        return twins

    def twin(self, stream: Stream, index: int) -> Stream:
        """A stream that has come as far as this one: choice ``index`` of the same request. It shares the pages and has
        its own copy of what techniques noted."""
        text: Text = stream.own
        own = Text(
            text.ids.copy(),
            text.tip,
            text.prompt,
            text.sampler.fork(index),
            text.limit,
            text.stops,
            text.space,
            text.cached,
        )
        leases = {}
        for name, lease in stream.leases.items():
            forked = lease.pool.fork(lease)
            assert forked is not None  # pages are shared until they are written
            leases[name] = forked
        scratch = deepcopy(stream.scratch)
        return Stream(stream.req, index, stream.known, stream.done, leases, own, scratch=scratch, given=stream.given)

    def say(self, stream: Stream, chosen: tuple[Chosen, ...], now: float) -> Event:
        """The event of tokens of which all but the last are known already."""
        text: Text = stream.own
        token = chosen[-1].id
        self.learn(stream, token)
        stream.emitted_at = now
        guide = text.sampler.guide
        if token in text.stops:
            finish: str | None = "stop"
        elif guide is not None and guide.finish is not None:
            finish = guide.finish
        else:
            finish = "length" if stream.known >= text.limit else None
        if finish is not None:
            stream.finished = True
            self.close(stream)
        data = Tokens(chosen, finish, text.prompt, text.cached)
        return Event(stream.req.id, stream.index, data, finish is not None, now, units=len(chosen))
