"""Notes: what there is to say of a request when it is over. Log line and trace are both made of them."""

from __future__ import annotations

import time


class Notes(dict[str, str | int | float]):
    """Fields by name, filled by whoever knows them.

    ``model``, ``max_tokens``, ``choices``, ``prompt_tokens``, ``completion_tokens``, ``cached_tokens``, ``finish`` (one
    word per choice, joined by commas), ``ttft`` and ``tpot`` (seconds; from the request's arrival), ``key`` (its name).
    Never what was asked or answered, and never a secret.
    """

    def __init__(self) -> None:
        super().__init__()
        self.began = time.monotonic()


class Pace:
    """When the tokens of an answer came: told of each piece, says times in seconds.

    Args:
        began: when the request arrived, monotonic.
    """

    def __init__(self, began: float, choices: int) -> None:
        self._began = began
        self._first = [0.0] * choices
        self._last = [0.0] * choices
        self._later = [0] * choices  # tokens after the first piece

    def heard(self, choice: int, tokens: int) -> None:
        """Tokens of a choice came just now."""
        if not tokens:
            return
        now = time.monotonic()
        if self._first[choice]:
            self._later[choice] += tokens
        else:
            self._first[choice] = now
        self._last[choice] = now

    @property
    def ttft(self) -> float | None:
        """To the first token of all; None before it."""
        firsts = [at for at in self._first if at]
        return min(firsts) - self._began if firsts else None

    @property
    def tpot(self) -> float | None:
        """Mean per token after the first piece, over all choices; None where nothing followed."""
        spans = sum(last - first for first, last in zip(self._first, self._last, strict=True))
        later = sum(self._later)
        return spans / later if later else None
