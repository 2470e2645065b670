"""Pictures and texts settled in steps beside a language model that speaks: its promises are kept, on a fake clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from diastole.bench.firstcome import FirstCome
from diastole.clock import FakeClock
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.engine.executor import Simulated
from diastole.engine.service import Service
from diastole.params import PictureParams, SamplingParams
from diastole.slots import Dispatcher
from diastole.types import SLO, Request
from engine.toy import toy_service
from masked import small as texts
from pictures import small

GAP = 0.05  # seconds that the language model promises


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.written(tmp_path_factory.mktemp("pictures") / "unet")


def worst_gap(other: Service, request: Request, dispatch: Dispatcher) -> tuple[float, int]:
    """The longest time between two tokens while the other service works, and how many steps that took."""
    clock = FakeClock()
    chat = toy_service(context=512)
    engine = Engine([chat, other], clock, dispatch, Simulated(clock))
    params = SamplingParams(max_tokens=400, temperature=0, ignore_eos=True, seed=0)
    engine.add(Request("chat", "lm", tuple(range(8, 20)), params, SLO(1.0, GAP)))
    last, worst, steps, begun = 0.0, 0.0, 0, False
    for _ in range(5000):
        if not engine.busy:
            break
        for event in engine.step() or ():
            if event.id == "chat":
                worst, last = max(worst, event.at - last if last else 0.0), event.at
            else:
                steps += 1
        if last and not begun:
            engine.add(request)
            begun = True
    return worst, steps


def test_many_steps_at_once_give_way(place: Path) -> None:
    """Sixteen decoders of two branches would take 160 ms; the model that speaks has to within 50."""
    wish = Request("picture", "small", None, PictureParams(50, 1), SLO(0.2, GAP))
    of = small.service(place, "faster-diffusion")
    worst, steps = worst_gap(of, wish, LeastSlack())
    assert worst <= GAP + 1e-9
    assert steps > 9  # more than where nobody is in a hurry
    late, fewest = worst_gap(small.service(place, "faster-diffusion"), wish, FirstCome())
    assert late > GAP
    assert fewest == 9


def test_a_masked_text_beside_it(tmp_path: Path) -> None:
    of = texts.service(texts.written(tmp_path / "llada"))
    wish = Request("text", "small", tuple(texts.prompt(10)), texts.params(8, 8), SLO(0.2, GAP))
    worst, steps = worst_gap(of, wish, LeastSlack())
    assert worst <= GAP + 1e-9
    assert steps == 8
