"""faster-diffusion: exact where every step is a key, else what a slow twin makes with the same keys; what it saves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diastole.params import PictureParams
from diastole.types import Grant, Request, UserError
from pictures import small
from pictures.test_loop import WISHES

LS = (0, 1, 2, 3, 5, 10, 15, 25, 35)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.written(tmp_path_factory.mktemp("pictures") / "unet")


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
@pytest.mark.parametrize("parallel", [True, False])
def test_with_all_keys_it_is_exact(place: Path, wish: PictureParams, parallel: bool) -> None:
    use = f"faster-diffusion:keys=1,parallel={str(parallel).lower()}"
    np.testing.assert_array_equal(small.alone(small.service(place, use), wish), small.alone(small.service(place), wish))


@pytest.mark.parametrize("label", [None, 1])
@pytest.mark.parametrize(
    ("use", "keys", "noise"),
    [
        ("keys=50ls,noise=0.003", LS, 0.003),
        ("keys=50ls", LS, 0.0),
        ("keys=4,noise=0.01", range(0, 50, 4), 0.01),
        ("keys=0+7+30", (0, 7, 30), 0.0),
        ("keys=pro,noise=0.003", (0, 2, 5, 9, 14, 20, 27, 35, 44), 0.003),
    ],
)
def test_as_a_slow_twin_with_the_same_keys(
    place: Path, use: str, keys: tuple[int, ...], noise: float, label: int | None
) -> None:
    wish = PictureParams(50, label, 2.0, 11)
    want = small.slowly(wish, keys, noise)
    for parallel in ("true", "false"):
        found = small.alone(small.service(place, f"faster-diffusion:{use},parallel={parallel}"), wish)
        np.testing.assert_allclose(found, want, atol=5e-3)
    assert np.abs(want - small.slowly(wish)).max() > 1e-2


def test_together_is_as_one_by_one(place: Path) -> None:
    """To the bit, and however many run at once."""
    wish = PictureParams(50, 1, 2.0, 11)
    pictures = [
        small.alone(small.service(place, f"faster-diffusion:{use}"), wish)
        for use in ("parallel=false", "together=1", "together=2", "together=3", "together=16")
    ]
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])


def test_company_changes_nothing(place: Path) -> None:
    of = small.service(place, "faster-diffusion:keys=3")
    want = [small.alone(of, wish) for wish in WISHES.values()]
    life = small.Life(of)
    for i, wish in enumerate(WISHES.values()):
        life.ask(str(i), wish)
        life.step()
    life.finish().check()
    for i, picture in enumerate(want):
        np.testing.assert_array_equal(life.picture(str(i)), picture)


def test_cancelled_at_every_step(place: Path) -> None:
    of = small.service(place, "faster-diffusion:keys=3")
    for steps in range(6):
        life = small.Life(of)
        life.ask("a", PictureParams(12, 1))
        for _ in range(steps):
            life.step()
        life.engine.abort("a")
        life.check()


def test_what_it_saves(place: Path) -> None:
    """The encoder runs in nine of fifty steps, and the engine steps that often."""
    life = small.Life(small.service(place, "faster-diffusion"))
    life.ask("a", PictureParams(50, 1))
    shown = life.finish().shown["a"]
    assert shown[-1].encoded == len(LS)
    assert [s.done for s in shown] == [1, 2, 3, 5, 10, 15, 25, 35, 50]


def test_steps_are_cut_to_the_time_that_others_leave(place: Path) -> None:
    """A step that runs many at once gives way: fewer of them run, and the picture is the same."""
    of = small.service(place, "faster-diffusion")
    want = small.alone(of, PictureParams(50, 1, seed=2))
    stream = of.loop.open(Request("a", "small", None, PictureParams(50, 1, seed=2)))
    assert of.loop.admit(stream)
    sizes = []
    rng = np.random.default_rng(0)
    while not stream.finished:
        ask = of.loop.ask(stream)
        assert ask is not None
        n = int(rng.integers(ask.lo, ask.hi + 1))
        sizes.append(n)
        batch = of.loop.prepare([Grant(stream, n)])
        events = of.loop.commit(batch, of.model.forward(batch, of.state), 0.0).events
    assert max(sizes) > 3
    np.testing.assert_array_equal(events[-1].data.picture, want)


def test_what_it_refuses(place: Path) -> None:
    life = small.Life(small.service(place, "faster-diffusion"))
    with pytest.raises(UserError, match="is for 50 steps, not 20") as e:
        life.ask("a", PictureParams(20, 1))
    assert e.value.param == "steps"
    scaled = small.Life(small.service(place, "faster-diffusion:scaled=true"))
    scaled.ask("a", PictureParams(20, 1))
    assert scaled.finish().shown["a"][-1].encoded == len({k * 20 // 50 for k in LS})
    for use in ("keys=1+2", "keys=0+3+3", "keys=-1", "keys=some", "keys=0+3+2", "noise=2", "together=0", "below=-1"):
        with pytest.raises(UserError, match=use.split("=")[0]):
            small.service(place, f"faster-diffusion:{use}")
    with pytest.raises(UserError, match="needs a model with random_rows"):
        small.service(place, "dkv-cache")


def test_models_of_text_are_no_unets() -> None:
    from techniques import owed

    with pytest.raises(UserError, match="needs a model with unet"):
        owed.service("faster-diffusion")
