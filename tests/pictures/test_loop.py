"""Pictures out of noise: as a slow twin in torch makes them, alone or in a crowd, at different steps in one batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.params import PictureParams
from diastole.types import SLO, UserError
from pictures import small


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.written(tmp_path_factory.mktemp("pictures") / "unet")


WISHES = {
    "of a label": PictureParams(10, 1, 2.0, 3),
    "of nothing": PictureParams(7, None, 2.0, 4),
    "without guidance": PictureParams(12, 2, 1.0, 5),
    "against its label": PictureParams(5, 0, 0.0, 6),
    "in one step": PictureParams(1, 0, 3.0, 7),
}


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_as_the_paper_writes_it_down(place: Path, wish: PictureParams) -> None:
    np.testing.assert_allclose(small.alone(small.service(place), wish), small.slowly(wish), atol=2e-3)


def test_what_is_asked_for_matters(place: Path) -> None:
    of, wish = small.service(place), PictureParams(8, 1, 2.0, 3)
    plain = small.alone(of, wish)
    for other in ({"seed": 4}, {"label": 2}, {"guidance": 5.0}, {"steps": 9}, {"label": None}):
        assert np.abs(small.alone(of, replace(wish, **other)) - plain).max() > 1e-3, other


def test_a_crowd_changes_nothing(place: Path) -> None:
    of = small.service(place)
    want = [small.alone(of, wish) for wish in WISHES.values()]
    life = small.Life(of)
    for i, wish in enumerate(WISHES.values()):
        life.ask(str(i), wish)
        life.step()
        life.step()
    life.finish().check()
    for i, picture in enumerate(want):
        np.testing.assert_array_equal(life.picture(str(i)), picture)


def test_cancelled_at_every_step(place: Path) -> None:
    of = small.service(place)
    other = small.alone(of, WISHES["of nothing"])
    for steps in range(8):
        life = small.Life(of)
        life.ask("a", WISHES["of a label"])
        life.ask("b", WISHES["of nothing"])
        for _ in range(steps):
            life.step()
        life.engine.abort("a")
        life.check()
        life.finish().check()
        np.testing.assert_array_equal(life.picture("b"), other)


def test_who_finds_no_room_waits(place: Path) -> None:
    life = small.Life(small.service(place, streams=2))
    for i in range(5):
        life.ask(str(i), PictureParams(4, 1, 2.0, i))
    life.finish().check()
    for i in range(5):
        np.testing.assert_array_equal(
            life.picture(str(i)), small.alone(small.service(place), PictureParams(4, 1, 2.0, i))
        )


def test_previews_are_told_every_so_many_steps(place: Path) -> None:
    of = small.service(place)
    life = small.Life(of)
    life.ask("a", PictureParams(10, 1, 2.0, 3, previews=3))
    life.finish()
    shown = life.shown["a"]
    assert [s.done for s in shown if s.picture is not None] == [3, 6, 9, 10]
    assert [s.done for s in shown] == list(range(1, 11))
    assert all(np.abs(s.picture).max() <= 1 for s in shown if s.picture is not None)
    np.testing.assert_array_equal(life.picture("a"), small.alone(of, PictureParams(10, 1, 2.0, 3)))
    assert shown[-1].encoded == 10


def test_fewer_steps_where_time_runs_out(place: Path) -> None:
    of = small.service(place)
    life = small.Life(of)
    life.ask("a", PictureParams(40, 1))
    each = life.finish().clock.now() / 40
    late = small.Life(of)
    late.ask("a", PictureParams(40, 1), SLO(10.0, 1.0, 20 * each))
    for _ in range(40):
        late.step()
    assert not late.engine.busy
    assert not [s for s in late.shown["a"] if isinstance(getattr(s, "finish", None), str) and s.finish == "stop"]
    for use in ((), ("faster-diffusion:keys=4",)):
        life = small.Life(small.service(place, *use))
        life.ask("a", PictureParams(40, 1, min_steps=8), SLO(10.0, 1.0, 20 * each))
        last = life.finish().shown["a"][-1]
        assert last.finish == "stop"
        assert 8 <= last.done == last.steps <= 40
        assert use or last.done < 40  # where steps run together there may be time for all
        assert life.clock.now() <= 20 * each
        life.check()


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 10_000}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"guidance": float("nan")}, "guidance"),
        ({"guidance": -1}, "guidance"),
        ({"guidance": float("inf")}, "guidance"),
        ({"label": -1}, "label"),
        ({"label": 3}, "label"),
        ({"min_steps": 51}, "min_steps"),
        ({"previews": -1}, "previews"),
        ({"seed": 1 << 80}, "seed"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for(place: Path, wrong: dict[str, Any], param: str) -> None:
    life = small.Life(small.service(place))
    with pytest.raises(UserError) as e:
        life.ask("a", PictureParams(**wrong))
    assert e.value.param == param
    life.check()
