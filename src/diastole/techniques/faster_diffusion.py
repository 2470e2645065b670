"""faster-diffusion: of a UNet, the encoder runs in some steps only; in the others the decoder goes on with what it saw.

From step to step an encoder's outputs hardly change, a decoder's do. In steps between two key steps the picture does
not enter the network at all, so the decoder runs for several of them at once. On request a little of the first noise is
added before each step below half of the time, which gives latents texture back.

Source: Li et al., "Faster Diffusion: Rethinking the Role of UNet Encoder in Diffusion Models" (NeurIPS 2024; arXiv
2312.09608), sections 3.2 to 3.4, key steps as in its public code. There noise (0.003) is added to latents, and none to
pixels (its utils_if.py), where it stays to be seen; what is served here makes pixels, so there is none unless one asks.
It is added before the network in the serial form there and before each update in the parallel one; here before both in
either, so that the two make the same picture. What the decoder makes of the encoder's features alone, whatever the time
is, counts as the encoder's part (layers/unet.py): sums over channels that are the same, taken once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from diastole.slots import Facts
from diastole.types import Array, UserError

NEEDS = frozenset({"unet"})
PRESETS = {"50ls": (0, 1, 2, 3, 5, 10, 15, 25, 35)}  # of 50 steps, by the number of the step
OF = 50


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs.

    Raises:
        UserError: one is out of range.
    """

    keys: str = "50ls"  # steps in which the encoder runs: 50ls, pro, a number m (every m-th), or numbers such as 0+1+5
    scaled: bool = False  # the presets for 50 steps count for other numbers of steps too, in proportion
    parallel: bool = True  # steps between two keys may run together
    together: int = 16  # at most so many
    noise: float = 0.0  # of the first noise that is added; the paper adds 0.003 to latents, and none to pixels
    below: float = 0.5  # share of the time from which on it is

    def __post_init__(self) -> None:
        if not 1 <= self.together <= 1000:
            raise UserError(f"faster-diffusion: together must be 1 to 1000, not {self.together}", param="use")
        for name in ("noise", "below"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"faster-diffusion: {name} must be 0 to 1, not {getattr(self, name)}", param="use")
        chosen(self, OF)


def chosen(params: Params, steps: int) -> Sequence[int]:
    """The key steps of so many.

    Raises:
        UserError: they are none, or there are none for so many steps.
    """
    text = params.keys
    if text in PRESETS or text == "pro":
        if text == "pro":  # 9 + 8 i is the square of a number
            preset: Sequence[int] = [i for i in range(OF) if math.isqrt(9 + 8 * i) ** 2 == 9 + 8 * i]
        else:
            preset = PRESETS[text]
        if steps == OF:
            return preset
        if not params.scaled:
            message = f"faster-diffusion:keys={text} is for {OF} steps, not {steps}: ask for {OF}, or set scaled=true"
            raise UserError(message, param="steps", code="invalid_value")
        return sorted({k * steps // OF for k in preset})
    try:
        numbers = [int(part) for part in text.split("+")]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and numbers[0] > 0:
        return range(0, steps, numbers[0])
    if not numbers or numbers[0] != 0 or any(b <= a for a, b in pairwise(numbers)):
        message = f"faster-diffusion: keys must be 50ls, pro, a number of steps, or numbers from 0 up, not {text!r:.60}"
        raise UserError(message, param="use")
    return [k for k in numbers if k < steps]


def TECHNIQUE(params: Params, facts: Facts) -> Mapping[str, Any]:
    """The policy, in the slot ``refresh``."""
    return {"refresh": FasterDiffusion(params)}


class FasterDiffusion:
    """See above."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.approximate = list(chosen(params, OF)) != list(range(OF)) or params.noise > 0
        self.together = params.together if params.parallel else 1

    def keys(self, steps: int) -> Sequence[int]:
        return chosen(self.params, steps)

    def stir(self, x: Array, begun: Array, left: float) -> Array:
        return x + np.float32(self.params.noise) * begun if left < self.params.below and self.params.noise else x
