"""What trainings do at every step, whatever they teach."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from diastole.recipes.keeping import Kept


class Steps:
    """The steps of a training that are still to do, by number from 0: what was kept goes on.

    Args:
        count: of the whole training.
        kept: its file, written after every so many steps and after the last; None: nothing is kept.

    Raises:
        UserError: what is kept is of a training by another plan, or torn.
    """

    def __init__(self, count: int, kept: Kept | None = None, every: int = 50) -> None:
        self._count, self._kept, self._every = count, kept, every
        self.first, self.seconds = (0, 0.0) if kept is None else kept.resume()  # seconds: of all steps so far

    def __iter__(self) -> Iterator[int]:
        before, began = self.seconds, time.monotonic()
        for step in range(self.first, self._count):
            yield step
            done, self.seconds = step + 1, before + time.monotonic() - began
            if self._kept is not None and (done % self._every == 0 or done == self._count):
                self._kept.keep(done, self.seconds)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, longest: float | None = 1.0) -> None:
    """One step down a loss. longest: gradient, all parameters together; what is longer is shortened."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    if longest is not None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], longest)
    optimizer.step()
