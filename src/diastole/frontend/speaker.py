"""Speaker: one choice's tokens become text that is final: whole characters only, and no part of a stop string."""

from __future__ import annotations

from diastole.chat import StopStrings
from diastole.frontend.repetition import Repetition
from diastole.frontend.types import Delta, Likely, Settled, Settling, TokenLogprob, Usage
from diastole.frontend.wire import Spoken
from diastole.params import SamplingParams
from diastole.text import Detokenizer, Tokenizer


class Speaker:
    """Feed it what the engine says of one choice; ``stopped`` tells when its text ended it early.

    Args:
        repetition: looks out for loops; None: they are let run.
    """

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, index: int, repetition: Repetition | None = None
    ) -> None:
        self.index, self.params = index, params
        self.finished = False
        self.stopped = False  # by a stop string or a loop: the engine does not know yet
        self._silent = tokenizer.eos_ids | frozenset(params.stop_token_ids)
        self._tokenizer, self._detokenizer = tokenizer, Detokenizer(tokenizer)
        self._stops = StopStrings(params.stop, include=params.include_stop)
        self._repetition = repetition
        self._drafted = self._kept = 0

    def hear(self, spoken: Spoken, usage: Usage) -> Delta:
        """The piece that these tokens make certain; its text may be empty.

        Several tokens are heard as if they came one by one: what lies behind the one that ends the text was never said.

        Args:
            usage: of the request before them.
        """
        text = ""
        hit: str | None = None
        finish = None if spoken.ids else spoken.finish
        heard = 0
        for token in spoken.ids:
            heard += 1
            finish = spoken.finish if heard == len(spoken.ids) else None
            ends = finish == "stop" and token in self._silent
            piece = "" if ends and not self.params.include_stop else self._detokenizer.push(token)
            safe, hit = self._stops.push(piece)
            text += safe
            if hit is not None:
                finish = "stop"
                break
            if finish is None and self._repetition is not None and self._repetition.push(token):
                finish = "repetition"
                break
        if finish is not None and hit is None:
            safe, hit = self._stops.push(self._detokenizer.flush())
            text += safe if hit is not None else safe + self._stops.flush()
            finish = "stop" if hit is not None else finish
        self.finished = finish is not None
        self.stopped = self.finished and spoken.finish is None
        usage = self._spent(spoken, heard, usage)
        settling = self._settling(spoken) if spoken.steps else None
        return Delta(
            self.index, text, tuple(spoken.ids[:heard]), _logprobs(spoken, heard), finish, usage, hit, settling
        )

    def _settling(self, spoken: Spoken) -> Settling:
        places = [Settled(i, id, self._tokenizer.decode([id])) for i, id in spoken.settled]
        return Settling(tuple(places), spoken.steps, spoken.rows)

    def _spent(self, spoken: Spoken, heard: int, before: Usage) -> Usage:
        prompt, cached, generated, drafted, kept = before
        if spoken.drafted:
            # The last token of several was no guess: those before it that nobody hears brought nothing.
            right = spoken.kept - max(len(spoken.ids) - heard - 1, 0)
            drafted += spoken.drafted - self._drafted
            kept += right - self._kept
            self._drafted, self._kept = spoken.drafted, right
        return Usage(prompt, cached, generated + heard, drafted, kept)


def _logprobs(spoken: Spoken, heard: int) -> tuple[TokenLogprob, ...] | None:
    if spoken.logprobs is None:
        return None
    return tuple(
        TokenLogprob(id, logprob, tuple(Likely(*t) for t in top))
        for id, (logprob, top) in zip(spoken.ids[:heard], spoken.logprobs[:heard], strict=True)
    )


class Speakers:
    """All choices of one request.

    Args:
        repetition_stop: whether loops are ended where the request does not say. Who asks for tokens past the end of the
            text wants their number, so there they are not.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, repetition_stop: bool) -> None:
        wish = params.repetition_stop
        ended = (repetition_stop and not params.ignore_eos) if wish is None else wish
        self._choices = [Speaker(tokenizer, params, i, Repetition() if ended else None) for i in range(params.n)]
        self._usage = Usage(0, 0, 0)

    @property
    def finished(self) -> bool:
        return all(c.finished for c in self._choices)

    def hear(self, spoken: Spoken) -> tuple[Delta, bool] | None:
        """The delta, and whether the engine must be told to end this choice; None for a choice that has ended."""
        speaker = self._choices[spoken.choice]
        if speaker.finished:
            return None
        _, _, generated, drafted, kept = self._usage
        delta = speaker.hear(spoken, Usage(spoken.prompt, spoken.cached, generated, drafted, kept))
        self._usage = delta.usage
        return delta, speaker.stopped

    def cut(self, finish: str, usage: Usage) -> list[Delta]:
        """The last deltas of the choices that have not ended, which are ended now."""
        return [c.hear(Spoken("", c.index, [], None, finish, 0, 0), usage) for c in self._choices if not c.finished]
