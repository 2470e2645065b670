"""dkv-cache: exact where it must be, else what a slow twin with the same cache writes; how many rows it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.types import Array, UserError
from masked import small
from masked.test_loop import WISHES


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.written(tmp_path_factory.mktemp("masked") / "llada")


@pytest.fixture(scope="module")
def dream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.written(tmp_path_factory.mktemp("masked") / "dream", shift=1)


PROMPT = small.prompt(33, 4)


@pytest.mark.parametrize("variant", ["decode", "prefill", "pd", "greedy"])
@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_when_all_is_computed_again_it_is_exact(place: Path, variant: str, wish: dict[str, Any]) -> None:
    if variant == "greedy" and wish.get("remasking") != "random":
        pytest.skip("needs an order")
    asked = small.params(**wish)
    use = f"dkv-cache:variant={variant},refresh=1"
    assert small.alone(small.service(place, use), PROMPT, asked) == small.alone(small.service(place), PROMPT, asked)


def again(step: int, every: int) -> bool:
    return step < 2 or (every > 0 and step % every == 0)


def decode(every: int, delay: int = 1, prompt: int = 0, answer_only: bool = False) -> small.Rows:
    def rows(step: int, masked: Array, latest: Array, chosen: Array) -> Array:
        places = np.arange(len(masked))
        first = prompt if answer_only and step else 0
        if again(step, every):
            return places[first:]
        fresh = masked.copy()
        if delay:
            fresh[latest] = True
        return places[fresh & (places >= first)]

    return rows


CACHED: dict[str, tuple[str, small.Rows]] = {
    "decode": ("decode,refresh=5", decode(5)),
    "decode for ever": ("decode,refresh=0", decode(0)),
    "decode too soon": ("decode,refresh=5,delay=0", decode(5, 0)),
}


@pytest.mark.parametrize("cached", CACHED.values(), ids=CACHED)
@pytest.mark.parametrize("wish", [w for n, w in WISHES.items() if n != "in one step"], ids=str)
def test_as_a_slow_twin_with_the_same_cache(place: Path, cached: tuple[str, small.Rows], wish: dict[str, Any]) -> None:
    use, rows = cached
    asked = small.params(**wish)
    said = small.alone(small.service(place, f"dkv-cache:variant={use}"), PROMPT, asked)
    assert said == small.slowly(PROMPT, asked, rows=rows)


def test_keeping_changes_something(place: Path) -> None:
    asked = small.params(48, 24)
    texts = {
        use: tuple(small.alone(small.service(place, *use), PROMPT, asked))
        for use in ((), ("dkv-cache:refresh=0",), ("dkv-cache:refresh=0,delay=0",), ("dkv-cache:variant=prefill",))
    }
    assert len(set(texts.values())) == 4


@pytest.mark.parametrize("wish", [{"steps": 12}, {"steps": 12, "temperature": 0.9, "seed": 3}], ids=str)
def test_prompts_that_are_read_once(place: Path, wish: dict[str, Any]) -> None:
    asked = small.params(**wish)

    def answer(step: int, masked: Array, latest: Array, chosen: Array) -> Array:
        return np.arange(len(masked))[len(PROMPT) if step else 0 :]

    said = small.alone(small.service(place, "dkv-cache:variant=prefill"), PROMPT, asked)
    assert said == small.slowly(PROMPT, asked, rows=answer)
    said = small.alone(small.service(place, "dkv-cache:variant=pd,refresh=4"), PROMPT, asked)
    assert said == small.slowly(PROMPT, asked, rows=decode(4, prompt=len(PROMPT), answer_only=True))


@pytest.mark.parametrize(("window", "every"), [(0, 0), (4, 2), (3, 5)])
def test_greedy_computes_what_is_near(place: Path, window: int, every: int) -> None:
    asked = small.params(24, 12, remasking="random", seed=9)

    def rows(step: int, masked: Array, latest: Array, chosen: Array) -> Array:
        if again(step, every):
            return np.arange(len(masked))
        others = [p for p in np.flatnonzero(masked) if p not in set(chosen)]
        others.sort(key=lambda p: (min(abs(p - c) for c in chosen), p))
        return np.union1d(np.union1d(latest, chosen), others[:window]).astype(int)

    said = small.alone(small.service(place, f"dkv-cache:variant=greedy,window={window},refresh={every}"), PROMPT, asked)
    assert said == small.slowly(PROMPT, asked, rows=rows)


@pytest.mark.parametrize("shift", ["un", "right", "un_right"])
def test_models_whose_rows_tell_the_next_place(dream: Path, shift: str) -> None:
    asked = small.params(24, 12)

    def rows(step: int, masked: Array, latest: Array, chosen: Array) -> Array:
        if again(step, 5):
            return np.arange(len(masked))
        open_ = masked.copy()
        open_[latest] = True
        behind = np.append(open_[1:], open_[-1:])
        return np.flatnonzero({"un": behind, "right": open_, "un_right": behind | open_}[shift])

    said = small.alone(small.service(dream, f"dkv-cache:refresh=5,shift={shift}"), PROMPT, asked)
    assert said == small.slowly(PROMPT, asked, shift=1, rows=rows)


def test_company_changes_nothing(place: Path) -> None:
    for use in ("dkv-cache:refresh=4", "dkv-cache:variant=pd,refresh=3"):
        of = small.service(place, use)
        wishes = [(small.prompt(9 + 13 * i, i), small.params(**wish)) for i, wish in enumerate(WISHES.values())]
        want = [small.alone(of, *wish) for wish in wishes]
        life = small.Life(of)
        for i, (tokens, asked) in enumerate(wishes):
            life.ask(str(i), tokens, asked)
            life.step()
        life.finish()
        assert [life.said[str(i)] for i in range(len(wishes))] == want
        life.check()


def test_cancelled_at_every_step(place: Path) -> None:
    of = small.service(place, "dkv-cache:refresh=4")
    for steps in range(10):
        life = small.Life(of)
        life.ask("a", PROMPT, small.params(24, 8))
        for _ in range(steps):
            life.step()
        life.engine.abort("a")
        life.check()


def test_rows_that_are_saved(place: Path) -> None:
    """Of 33 + 64 places in 32 steps: all in the first two and in every eighth, else masks and the two settled last."""
    life = small.Life(small.service(place, "dkv-cache:refresh=8"))
    life.ask("a", PROMPT, small.params(64, 32))
    life.finish()
    want = sum(97 if step < 2 or step % 8 == 0 else 64 - 2 * step + 2 for step in range(32))
    assert life.last["a"].data.rows == want
    plain = small.Life(small.service(place))
    plain.ask("a", PROMPT, small.params(64, 32))
    plain.finish()
    assert plain.last["a"].data.rows == 97 * 32
    assert want < 0.5 * 97 * 32


def test_what_it_refuses(place: Path) -> None:
    of = small.service(place, "dkv-cache:variant=greedy")
    with pytest.raises(UserError, match="ask for remasking=random"):
        small.alone(of, PROMPT, small.params(8))
    for use in ("variant=best", "refresh=-1", "delay=2", "shift=left", "window=-1"):
        with pytest.raises(UserError, match=use.split("=")[0]):
            small.service(place, f"dkv-cache:{use}")


def test_models_that_write_from_left_to_right_are_refused() -> None:
    from techniques import owed

    with pytest.raises(UserError, match="random_rows"):
        owed.service("dkv-cache")
