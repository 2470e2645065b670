"""The steps of a training: which are still to do, when they are kept, and what one changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def made(torch: Any, tmp_path: Path) -> Any:
    """A tiny training's model, optimizer, and file."""
    from diastole.recipes.keeping import Kept

    def make(plan: dict[str, Any]) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        return model, optimizer, Kept(tmp_path / "training", model, optimizer, plan)

    return make


def test_steps_go_on_where_they_were_kept(made: Any) -> None:
    from diastole.recipes.stepping import Steps

    done = []
    for step in Steps(10, made({"a": (1, 2)})[2], 3):
        if step == 7:
            break
        done.append(step)
    again = Steps(10, made({"a": (1, 2)})[2], 3)
    assert done == [0, 1, 2, 3, 4, 5, 6]
    assert again.first == 6
    assert list(again) == [6, 7, 8, 9]
    assert list(Steps(10, made({"a": (1, 2)})[2], 3)) == []  # after the last it was kept, too


def test_without_a_file_all_are_to_do() -> None:
    from diastole.recipes.stepping import Steps

    steps = Steps(4)
    assert list(steps) == [0, 1, 2, 3]
    assert steps.seconds > 0


def test_seconds_add_up_over_interruptions(made: Any) -> None:
    from diastole.recipes.stepping import Steps

    _, _, kept = made({})
    kept.keep(2, 100.0)
    steps = Steps(3, kept)
    list(steps)
    assert 100.0 < steps.seconds < 110.0


@pytest.mark.parametrize(("longest", "moved"), [(None, 2.0), (0.5, 0.25), (100.0, 2.0)])
def test_a_step_down_is_as_long_as_rate_and_gradient_say(made: Any, torch: Any, longest: Any, moved: float) -> None:
    from diastole.recipes.stepping import descend

    model, optimizer, _ = made({})
    before = model.weight.detach().clone()
    descend(optimizer, 4 * model.weight[0, 1], 0.5, longest)
    change = (before - model.weight).detach()
    torch.testing.assert_close(change, torch.tensor([[0.0, moved, 0.0]]))
