"""Noise schedules: how much of a picture is left at each time, and the way from one time to an earlier one.

Source: Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239); Song et al., "Denoising Diffusion
Implicit Models" (arXiv 2010.02502), equation 12 without its noise. Settings are those of diffusers' DDIMScheduler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from diastole.types import Array, UserError

MOST_TIMES = 10_000


class Schedule:
    """From diffusers' settings.

    Raises:
        UserError: one is not known, or out of range.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        times = config.get("num_train_timesteps", 1000)
        if isinstance(times, bool) or not isinstance(times, int) or not 1 <= times <= MOST_TIMES:
            message = f"num_train_timesteps must be 1 to {MOST_TIMES}, not {times!r:.40}"
            raise UserError(message, param="num_train_timesteps")
        self.times, self.offset = times, int(config.get("steps_offset", 0))
        self.kind = config.get("prediction_type", "epsilon")
        if self.kind not in {"epsilon", "v_prediction"}:
            raise UserError(
                f"prediction_type must be epsilon or v_prediction, not {self.kind!r:.40}", param="scheduler"
            )
        for name, usual in (
            ("timestep_spacing", "leading"),
            ("thresholding", False),
            ("rescale_betas_zero_snr", False),
        ):
            if config.get(name, usual) != usual:
                raise UserError(f"{name} must be {usual!r}, not {config[name]!r:.40}", param="scheduler")
        self.most = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", True) else math.inf
        if not self.most > 0:
            raise UserError(f"clip_sample_range must be above 0, not {self.most:g}", param="scheduler")
        betas = _betas(config, times)
        self.kept = np.cumprod(1 - betas)  # (times,) of a picture's variance
        self.last = 1.0 if config.get("set_alpha_to_one", True) else float(self.kept[0])

    def chosen(self, steps: int) -> list[int]:
        """Times of so many steps, the noisiest first: evenly apart, the last is 0 (diffusers' "leading").

        Raises:
            UserError: there are not so many.
        """
        if not 1 <= steps <= self.times:
            raise UserError(f"steps must be 1 to {self.times}, not {steps}", param="steps", code="invalid_value")
        apart = self.times // steps
        return [min(i * apart + self.offset, self.times - 1) for i in reversed(range(steps))]

    def share(self, t: int) -> float:
        """What is left of a picture's variance at a time; before the first: (nearly) all."""
        return float(self.kept[t]) if t >= 0 else self.last

    def clean(self, x: Array, found: Array, t: int) -> Array:
        """The picture that is thought to be behind x at time t, where the model has found this in it, cut to the range
        that pictures have, if they have one."""
        a, s = math.sqrt(self.share(t)), math.sqrt(1 - self.share(t))
        picture: Array = (x - s * found) / a if self.kind == "epsilon" else a * x - s * found
        return picture.clip(-self.most, self.most)

    def earlier(self, x: Array, found: Array, t: int, before: int) -> Array:
        """x at the time ``before``; -1: the picture."""
        a, s = math.sqrt(self.share(t)), math.sqrt(1 - self.share(t))
        noise = found if self.kind == "epsilon" else a * found + s * x
        then = self.share(before)
        made: Array = math.sqrt(then) * self.clean(x, found, t) + math.sqrt(1 - then) * noise
        return made.astype(np.float32)


def _betas(config: Mapping[str, Any], times: int) -> Array:
    kind = config.get("beta_schedule", "linear")
    if kind == "squaredcos_cap_v2":
        whole = np.cos((np.arange(times + 1) / times + 0.008) / 1.008 * math.pi / 2) ** 2
        found: Array = np.minimum(1 - whole[1:] / whole[:-1], 0.999)
        return found
    low, high = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    if not 0 < low <= high < 1:
        raise UserError(f"beta_start and beta_end must be between 0 and 1, not {low:g} and {high:g}", param="scheduler")
    if kind == "linear":
        return np.linspace(low, high, times)
    if kind == "scaled_linear":
        return np.linspace(math.sqrt(low), math.sqrt(high), times) ** 2
    message = f"beta_schedule must be linear, scaled_linear or squaredcos_cap_v2, not {kind!r:.40}"
    raise UserError(message, param="scheduler")
