"""What guessing costs beside the model: measured, for who decides whether to guess."""

from __future__ import annotations

from collections.abc import Callable

LATELY = 0.1  # of the last step in what a plain one takes


class Aside:
    """Seconds of steps that are spent before and after the model runs, of which a plain step has its share.

    Args:
        timer: seconds.
    """

    def __init__(self, timer: Callable[[], float]) -> None:
        self.timer = timer
        self.guessing = 0.0  # of it in this step, for guesses and the decision about them
        self.spent = 0.0  # what the last step in which anybody was asked for guesses took longer for that
        self._plain = 0.0  # what steps take otherwise, lately
        self._took = 0.0  # in this step so far
        self._began = 0.0

    def begin(self) -> None:
        """A step begins."""
        self._took = self.guessing = 0.0
        self._began = self.timer()

    def pause(self) -> None:
        """The model runs."""
        self._took += self.timer() - self._began

    def resume(self) -> None:
        """It has run."""
        self._began = self.timer()

    def end(self, drafted: bool) -> None:
        """The step is done, in which all streams decoded. drafted: guesses were verified in it."""
        self.pause()
        if drafted:
            self.spent = max(self._took - self._plain, self.guessing)
            return
        plain = self._took - self.guessing
        self._plain += (LATELY if self._plain else 1.0) * (plain - self._plain)
        if self.guessing:
            self.spent = self.guessing
