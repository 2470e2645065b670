"""Speaker: one choice's tokens become text that is final: whole characters only, and no part of a stop string."""

from __future__ import annotations

from diastole.frontend.repetition import Repetition
from diastole.frontend.types import Delta, Likely, TokenLogprob, Usage
from diastole.frontend.wire import Spoken
from diastole.params import SamplingParams
from diastole.text import Detokenizer, StopStrings, Tokenizer


class Speaker:
    """Feed it what the engine says of one choice; ``stopped`` tells when its text ended it early.

    Args:
        repetition: looks out for loops; None: they are let run.
    """

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, index: int, repetition: Repetition | None = None
    ) -> None:
        self.index, self.params = index, params
        self.tokens = 0
        self.finished = False
        self.stopped = False  # by a stop string or a loop: the engine does not know yet
        self._silent = tokenizer.eos_ids | frozenset(params.stop_token_ids)
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(params.stop, include=params.include_stop)
        self._repetition = repetition

    def hear(self, spoken: Spoken, usage: Usage) -> Delta:
        """The piece that these tokens make certain; its text may be empty."""
        finish = spoken.finish
        text = ""
        hit: str | None = None
        for token in spoken.ids:
            self.tokens += 1
            ends = finish == "stop" and token == spoken.ids[-1] and token in self._silent
            piece = "" if ends and not self.params.include_stop else self._detokenizer.push(token)
            safe, hit = self._stops.push(piece)
            text += safe
            if hit is not None:
                self.stopped = finish is None
                finish = "stop"
                break
            if finish is None and self._repetition is not None and self._repetition.push(token):
                self.stopped = True
                finish = "repetition"
        else:
            if finish is not None:
                safe, hit = self._stops.push(self._detokenizer.flush())
                text += safe if hit is not None else safe + self._stops.flush()
                finish = "stop" if hit is not None else finish
        self.finished = finish is not None
        return Delta(self.index, text, tuple(spoken.ids), _logprobs(spoken), finish, usage, hit)


def _logprobs(spoken: Spoken) -> tuple[TokenLogprob, ...] | None:
    if spoken.logprobs is None:
        return None
    return tuple(
        TokenLogprob(id, logprob, tuple(Likely(*t) for t in top))
        for id, (logprob, top) in zip(spoken.ids, spoken.logprobs, strict=True)
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

    @property
    def finished(self) -> bool:
        return all(c.finished for c in self._choices)

    def hear(self, spoken: Spoken) -> tuple[Delta, bool] | None:
        """The delta, and whether the engine must be told to end this choice; None for a choice that has ended."""
        speaker = self._choices[spoken.choice]
        if speaker.finished:
            return None
        generated = sum(c.tokens for c in self._choices) + len(spoken.ids)
        delta = speaker.hear(spoken, Usage(spoken.prompt, spoken.cached, generated))
        return delta, speaker.stopped

    def cut(self, finish: str, usage: Usage) -> list[Delta]:
        """The last deltas of the choices that have not ended, which are ended now."""
        return [c.hear(Spoken("", c.index, [], None, finish, 0, 0), usage) for c in self._choices if not c.finished]
