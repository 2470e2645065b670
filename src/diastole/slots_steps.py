"""What policies of models that decode in steps see and show: texts that are settled place by place, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from diastole.params import SamplingParams
from diastole.types import Array


@dataclass(eq=False, slots=True)
class Canvas:
    """A text of which all places are known at once: the prompt's, and masks until each is settled."""

    ids: Array  # (L,) int32
    masked: Array  # (L,) bool
    prompt: int  # places of the prompt
    block: tuple[int, int]  # places that are being settled, from and to
    shift: int = 0  # what stands at p is read from the row of p - shift
    step: int = 0  # forward passes so far
    fresh: bool = True  # of these, none since the block began
    latest: Array | None = None  # (k,) places that the last one settled
    chosen: Array | None = None  # (k,) those that the next one will, where that is known before
    notes: dict[str, Any] = field(default_factory=dict)  # policies' own

    @property
    def length(self) -> int:
        return len(self.ids)


class Renewer(Protocol):
    """Slot ``refresh`` of masked language models: which places are computed again in the next step. What the others are
    attended to by is what was computed of them last."""

    @property
    def approximate(self) -> bool:
        """Whether texts may become others by it."""
        ...

    def check(self, params: SamplingParams) -> None:
        """Raises:
        UserError: it cannot serve such a request.
        """
        ...

    def rows(self, canvas: Canvas) -> Array:
        """(k,) places, ascending; those that the loop has to read are added by itself."""
        ...


class Propagator(Protocol):
    """Slot ``refresh`` of UNets: in which steps the encoder runs on the picture. In the others the decoder is given
    what the encoder saw in the last of these, so steps up to the next of these may run together."""

    @property
    def approximate(self) -> bool:
        """Whether pictures become others by it."""
        ...

    @property
    def together(self) -> int:
        """Steps that may run at once, at most."""
        ...

    def keys(self, steps: int) -> Sequence[int]:
        """Numbers of steps, ascending; 0 is the first of all.

        Raises:
            UserError: it has none for so many steps.
        """
        ...

    def stir(self, x: Array, begun: Array, left: float) -> Array:
        """A picture before a step, given the noise that it was made from, and how much of the time is left, of 1."""
        ...
