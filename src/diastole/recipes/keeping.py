"""What a training keeps while it is under way, so that one that was interrupted goes on as if it had not been."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from diastole.types import UserError


@dataclass(frozen=True, slots=True)
class Kept:
    """A training's file: weights, what the optimizer remembers of each, and how far it has come.

    Args:
        place: not named .safetensors: it is no part of a model.
        plan: what decides the outcome, of what JSON has; a file by another is refused. None: others see to that.
    """

    place: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    plan: Mapping[str, Any] | None = None

    def resume(self) -> tuple[int, float]:
        """Take up what is kept: steps and seconds that it had come to.

        Raises:
            UserError: it is of a training by another plan, or torn.
        """
        if not self.place.exists():
            return 0, 0.0
        try:
            plan, step, seconds, learned, remembered = self._read()
        except Exception as e:  # whatever a torn file does to the reader
            said = f"{self.place} cannot be read as a training under way: remove it ({e!s:.80})"
            raise UserError(said, param="out") from None
        if plan != self._known:
            said = f"{self.place} is of a training by another plan: give another place or remove it"
            raise UserError(said, param="out")
        self.model.load_state_dict(learned)
        self.optimizer.load_state_dict(remembered)
        return step, seconds

    @property
    def _known(self) -> Any:
        """The plan as it comes back from a file."""
        return None if self.plan is None else json.loads(json.dumps(self.plan))

    def keep(self, step: int, seconds: float) -> None:
        """Replace what is kept."""
        whole(self.place, lambda part: self._write(part, step, seconds))

    def _read(self) -> tuple[Any, int, float, dict[str, Any], dict[str, Any]]:
        """Plan, steps, seconds, and the state of model and optimizer."""
        with safe_open(self.place, "pt") as file:
            notes = json.loads(file.metadata()["notes"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        moments: dict[str, dict[str, Any]] = {}
        for key in [key for key in tensors if "/" in key]:
            moment, _, name = key.partition("/")
            moments.setdefault(name, {})[moment] = tensors.pop(key)
        state = {i: moments[name] for i, (name, _) in enumerate(self.model.named_parameters()) if name in moments}
        remembered = self.optimizer.state_dict() | {"state": state}
        return notes.get("plan"), notes["step"], notes["seconds"], tensors, remembered

    def _write(self, part: Path, step: int, seconds: float) -> None:
        tensors = self.model.state_dict()
        for name, parameter in self.model.named_parameters():
            tensors |= {f"{moment}/{name}": x for moment, x in self.optimizer.state[parameter].items()}
        plan = {} if self.plan is None else {"plan": self.plan}
        save_file(tensors, part, {"notes": json.dumps({**plan, "step": step, "seconds": seconds})})


class Pickled(Kept):
    """The same in torch's own form, for an optimizer that does not train all parameters."""

    def _read(self) -> tuple[Any, int, float, dict[str, Any], dict[str, Any]]:
        found = torch.load(self.place, weights_only=True)
        return found["about"], found["step"], found["seconds"], found["learned"], found["optimizer"]

    def _write(self, part: Path, step: int, seconds: float) -> None:
        state = {"learned": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({"about": self._known, "step": step, "seconds": seconds, **state}, part)


def whole(place: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all. write: is given another place beside it."""
    part = place.with_name(place.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    write(part)
    part.replace(place)
