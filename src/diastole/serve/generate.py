"""Generation: the streams of one HTTP request, as one sequence of deltas that ends well or raises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from msgspec import UNSET, UnsetType

from diastole.frontend.types import Delta, RequestEnded, Settling, Usage
from diastole.params import SamplingParams
from diastole.serve.ceilings import Watch
from diastole.serve.errors import ApiError, Gone, ended_early, of_user_error, too_late
from diastole.serve.interface import TextService
from diastole.serve.notes import Pace
from diastole.serve.replies import Cached, Predicted, UnmaskingReply, UsageReply
from diastole.serve.terms import Terms
from diastole.types import SLO, UserError

AHEAD = 64  # deltas of several prompts that may wait for a slow reader


class Generation:
    """One or several prompts with ``params.n`` choices each.

    Choice c of prompt p is choice ``p * n + c`` of the answer.

    Args:
        id: of the answer; the engine's request ids are made from it.
        terms: what the server allows it.
        names: what the request calls a field of ``SamplingParams`` that it names otherwise.

    Raises:
        UserError: the request asks for more than the server's ceilings allow.
    """

    def __init__(
        self,
        service: TextService,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        id: str,
        terms: Terms,
        slo: SLO | None = None,
        salt: str = "",
        priority: int = 0,
        names: Mapping[str, str] | None = None,
    ) -> None:
        terms.ceilings.check(params)
        self.service, self.prompts, self.params, self.names = service, prompts, params, names
        self.id, self.terms, self.slo, self.salt = id, terms, slo, terms.salt(salt)
        self.priority = priority
        self.created = int(time.time())
        self._bounded = [terms.ceilings.bound(params, service.room_after(len(p))) for p in prompts]
        self._watch = Watch()
        self._usage = [Usage(len(p), 0, 0) for p in prompts]
        self._finishes: list[str | None] = [None] * self.choices
        self._settling: list[Settling | None] = [None] * self.choices
        self._pace = Pace(terms.notes.began, self.choices)

    @property
    def model(self) -> str:
        return self.service.name

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.params.n

    def usage(self) -> UsageReply:
        """Tokens so far."""
        prompt, cached, generated, drafted, kept = (sum(u) for u in zip(*self._usage, strict=True))
        guessed = Predicted(kept, drafted - kept) if drafted else UNSET
        return UsageReply(prompt, generated, prompt + generated, Cached(cached), guessed, self._unmasking())

    def _unmasking(self) -> UnmaskingReply | UnsetType:
        known = [s for s in self._settling if s is not None]
        if not known:
            return UNSET
        return UnmaskingReply(sum(s.steps for s in known), sum(s.rows for s in known), self.service.approximate)

    @asynccontextmanager
    async def deltas(self) -> AsyncIterator[AsyncIterator[Delta]]:
        """Run everything; leaving the context aborts what still runs.

        Raises:
            ApiError: the request must wait for its turn, the engine refused it, failed, or ended without finishing
                every choice; its time was up before its first token; or somebody cancelled it.
        """
        self.terms.forecast.check([len(p) for p in self.prompts], self.terms.most_seconds)
        rest = "abort"  # what becomes of choices that have not ended
        with (
            self.terms.account.spend(self._most_tokens()) as bill,
            self.terms.ceilings.watch() as self._watch,
        ):
            stream = self._one(0) if len(self.prompts) == 1 else self._all()
            async with self.terms.running.enter(self, self.terms.owner):
                try:
                    yield stream
                except Gone:
                    raise
                except Exception:
                    rest = "error"
                    raise
                finally:
                    await _close(stream)
                    bill.used = self.usage().total_tokens
                    self._tell(rest)

    def _most_tokens(self) -> int:
        """Prompts and answers together, if every choice takes all that it may."""
        return sum(
            len(p) + self.params.n * (bounded.max_tokens or self.service.room_after(len(p)))
            for p, bounded in zip(self.prompts, self._bounded, strict=True)
        )

    def _tell(self, rest: str) -> None:
        usage, notes = self.usage(), self.terms.notes
        notes["model"] = self.service.name
        if self.params.max_tokens is not None:
            notes["max_tokens"] = self.params.max_tokens
        if self.choices > 1:
            notes["choices"] = self.choices
        notes["prompt_tokens"] = usage.prompt_tokens
        notes["completion_tokens"] = usage.completion_tokens
        notes["cached_tokens"] = usage.prompt_tokens_details.cached_tokens
        notes["finish"] = ",".join(finish or rest for finish in self._finishes)
        for name, seconds in (("ttft", self._pace.ttft), ("tpot", self._pace.tpot)):
            if seconds is not None:
                notes[name] = round(seconds, 6)

    async def _one(self, which: int) -> AsyncIterator[Delta]:
        """Deltas of one prompt, renumbered."""
        n = self.params.n
        open_ = set(range(n))
        id = self.id if len(self.prompts) == 1 else f"{self.id}-{which}"
        stream = self.service.stream(
            self.prompts[which],
            self._bounded[which],
            request_id=id,
            slo=self.slo,
            salt=self.salt,
            priority=self.priority,
        )
        followed = self._watch.follow(stream)
        forecast = self.terms.forecast
        try:
            with forecast.queue(len(self.prompts[which])) as place:
                async for delta in followed:
                    if delta.finish in ("abort", "error"):
                        raise self._unfinished(delta.finish)
                    late = delta.finish == "deadline" and delta.usage.generated == 0
                    if late and not self.usage().completion_tokens:
                        raise too_late()
                    if not late:
                        forecast.served(place)
                    at = which * n + delta.index
                    self._pace.heard(at, len(delta.ids))
                    self._settling[at] = delta.settling or self._settling[at]
                    if delta.finish is not None:
                        open_.discard(delta.index)
                        self._finishes[at] = delta.finish
                    if delta.usage.generated >= self._usage[which].generated:
                        self._usage[which] = delta.usage
                    yield delta if which == 0 else replace(delta, index=at)
        except UserError as e:
            raise of_user_error(e, self.names) from None
        except RequestEnded as e:
            raise ended_early(e) from None
        finally:
            await _close(followed)
            await _close(stream)
        if open_ and not self._watch.reached:
            raise self._unfinished("error")
        self._watch.cut |= bool(open_)
        for index in sorted(open_):
            self._finishes[which * n + index] = "length"
            yield Delta(which * n + index, "", (), None, "length", self._usage[which])

    async def _all(self) -> AsyncIterator[Delta]:
        """Deltas of all prompts as they come."""
        queue: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue(AHEAD)

        async def feed(which: int) -> None:
            stream = self._one(which)
            try:
                async for delta in stream:
                    await queue.put(delta)
                await queue.put(None)
            except Exception as e:
                await queue.put(e)
            finally:
                await _close(stream)

        tasks = [asyncio.create_task(feed(i)) for i in range(len(self.prompts))]
        try:
            left = len(tasks)
            while left:
                got = await queue.get()
                if isinstance(got, BaseException):
                    raise got
                if got is None:
                    left -= 1
                else:
                    yield got
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _unfinished(self, finish: str) -> ApiError:
        if finish == "abort":
            return ApiError(503, "The request was aborted by the server.", code="request_aborted", retry_after=1)
        if self.params.grammar is not None:
            message = "The grammar led to a place where no token of this model may follow."
            return ApiError(500, message, code="grammar_dead_end")
        return ApiError(500, "The engine failed on this request.", code="engine_error")


async def _close(stream: AsyncIterator[Delta]) -> None:
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()
