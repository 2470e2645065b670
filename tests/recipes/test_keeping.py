"""What a training keeps: who goes on from it goes on as if nothing had been, and nothing else is taken for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from diastole.recipes.keeping import Kept, Pickled, whole
from diastole.types import UserError

PLAN = {"steps": 6, "shape": {"layers": [1, 2]}}


class Learner:
    """Two matrices and a size that is no parameter; ``frozen``: one of the matrices is not trained."""

    def __init__(self, frozen: bool, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        self.model[0].weight.requires_grad = not frozen
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, 0.1)

    def step(self, i: int) -> None:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(i))
        self.optimizer.zero_grad()
        self.model(x).square().sum().backward()
        self.optimizer.step()


@pytest.mark.parametrize("kind", [Kept, Pickled])
@pytest.mark.parametrize("plan", [PLAN, None])
def test_who_goes_on_comes_to_the_same(kind: type[Kept], plan: dict[str, object] | None, tmp_path: Path) -> None:
    frozen, place = kind is Pickled, tmp_path / "new" / "training.state"
    one, other = Learner(frozen), Learner(frozen, seed=1)
    kept = kind(place, one.model, one.optimizer, plan)
    assert kept.resume() == (0, 0.0)
    for i in range(6):
        one.step(i)
        if i == 2:
            kept.keep(3, 1.5)
    assert kind(place, other.model, other.optimizer, plan).resume() == (3, 1.5)
    for i in range(3, 6):
        other.step(i)
    found, want = other.model.state_dict(), one.model.state_dict()
    assert all(torch.equal(found[name], x) for name, x in want.items())
    assert [p.name for p in place.parent.iterdir()] == [place.name]


@pytest.mark.parametrize("kind", [Kept, Pickled])
def test_nothing_else_is_taken_for_it(kind: type[Kept], tmp_path: Path) -> None:
    place, learner = tmp_path / "training.state", Learner(False)
    learner.step(0)
    kind(place, learner.model, learner.optimizer, PLAN).keep(1, 0.0)
    learner.step(1)
    before = {name: x.clone() for name, x in learner.model.state_dict().items()}
    for plan in (PLAN | {"steps": 7}, None):
        with pytest.raises(UserError, match="another plan"):
            kind(place, learner.model, learner.optimizer, plan).resume()
    assert all(torch.equal(x, before[name]) for name, x in learner.model.state_dict().items())
    place.write_bytes(place.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read as a training under way: remove it"):
        kind(place, learner.model, learner.optimizer, PLAN).resume()


def test_what_is_there_stays_until_all_is_written(tmp_path: Path) -> None:
    place = tmp_path / "a.state"
    whole(place, lambda part: part.write_text("first"))

    def fails(part: Path) -> None:
        part.write_text("sec")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        whole(place, fails)
    assert place.read_text() == "first"
    whole(place, lambda part: part.write_text("second"))
    assert place.read_text() == "second"
