"""Recipes of models that decode in steps: they learn, an interrupted training goes on, and the engine runs what they
write."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

from diastole.bench.filling import Painter, Writer
from diastole.params import PictureParams, SamplingParams, Unmasking
from diastole.recipes import clothes_classifier, masked_lm, masked_tasks, pictures, unet
from masked.small import SIZES as WORDS
from pictures.small import SIZES as CLOTHES

TEXT = b"It is said that what is written once will be read again, and that is all. " * 40


class Stopped(Exception):
    """A training is interrupted."""


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = np.clip(rng.normal(size=(64, 8, 8)).astype(np.float32), -1, 1)
    some = pictures.Set(x, rng.integers(0, 3, 64))
    monkeypatch.setattr(pictures, "fashion", lambda: (some, some))
    monkeypatch.setattr(pictures, "LABELS", ("shoe", "dress", "coat"))
    monkeypatch.setattr(masked_lm, "text", lambda: (TEXT, TEXT))


def test_a_writer_learns_and_is_served(tmp_path: Path) -> None:
    plan = masked_lm.Plan(steps=24, tokens=768, sizes=WORDS)
    losses: list[float] = []
    whole, figures = masked_lm.train(plan, tmp_path / "whole", lambda p: losses.append(p.loss))
    assert losses[-1] < losses[0]
    assert figures["parameters"] == sum(p.numel() for p in whole.parameters())
    with Writer(str(tmp_path / "whole"), (), 2) as writer:
        params = SamplingParams(max_tokens=16, temperature=0, seed=0, unmasking=Unmasking(steps=4))
        (written,) = writer.write([(list(b"sort 31 12:\n"), params)])
    assert (written.steps, written.rows) == (4, 4 * 28)


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    plan = masked_lm.Plan(steps=102, tokens=320, sizes=WORDS)
    want, _ = masked_lm.train(plan, None)

    def interrupt(p: masked_lm.Progress) -> None:
        if p.step == 101:
            raise Stopped

    with pytest.raises(Stopped):
        masked_lm.train(plan, tmp_path / "cut", interrupt)
    again, _ = masked_lm.train(plan, tmp_path / "cut")
    for a, b in zip(want.state_dict().values(), again.state_dict().values(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert not (tmp_path / "cut" / "training").exists()


def test_a_painter_learns_and_is_served(tmp_path: Path) -> None:
    from dataclasses import replace

    plan = unet.Plan(steps=30, batch=16, rate=3e-3, sizes=replace(CLOTHES, in_channels=1))
    losses: list[float] = []
    unet.train(plan, tmp_path / "painter", lambda p: losses.append(p.loss))
    assert losses[-1] < losses[0]
    with Painter(str(tmp_path / "painter"), ("faster-diffusion:keys=2",), 2) as painter:
        first, second = painter.paint([PictureParams(6, 0, 2.0, 1), PictureParams(6, 0, 2.0, 1)])
    assert first.encoded == 3
    np.testing.assert_array_equal(first.x, second.x)
    assert first.x.shape == (8, 8, 1)


@pytest.mark.parametrize("task", masked_tasks.TASKS)
def test_tasks_have_one_right_answer_that_fits(task: str) -> None:
    for item in masked_tasks.items(task, 3, 50, 62):
        assert len(item.answer) <= 62
        assert masked_tasks.right(task, f" {item.answer}\n", item)
        assert not masked_tasks.right(task, item.answer[:-1] + "?", item)
    first, again, other = (masked_tasks.items(task, seed, 5, 62) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_tasks_are_right() -> None:
    rng = Random(1)
    counted = [int(x) for x in masked_tasks.count(rng, 60).answer.split()]
    assert len(set(np.diff(counted))) == 1
    asked = masked_tasks.order(rng, 60)
    given = [int(x) for x in asked.prompt.strip(":\n").split()[1:]]
    assert [int(x) for x in asked.answer.split()] == sorted(given)
    asked = masked_tasks.reverse(rng, 60)
    assert asked.answer[::-1] == asked.prompt.split()[1].strip(":")
    for step in masked_tasks.total(rng, 60).answer.split():
        left, right = step.split("=")
        assert sum(map(int, left.split("+"))) == int(right)


def test_pictures_are_made_smaller() -> None:
    raw = np.zeros((1, 28, 28), np.uint8)
    raw[0, 0, 0] = 200
    raw[0, 26:, 26:] = 255
    found = pictures.smaller(raw)[0]
    assert found.shape == (16, 16)
    assert found[1, 1] == pytest.approx(50 / 127.5 - 1)
    assert found[14, 14] == 1
    assert found[0, 0] == found[15, 15] == -1


def test_distances_are_those_of_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (200_000, 3)), rng.normal([1, 0, 0], 2, (200_000, 3))
    assert clothes_classifier.distance(a, a) == pytest.approx(0, abs=1e-6)
    assert clothes_classifier.distance(a, b) == pytest.approx(1 + 3 * (1 - 2) ** 2, rel=0.02)
