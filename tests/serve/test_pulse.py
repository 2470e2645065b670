"""A source's clock against ours, from arrivals that jitter."""

from __future__ import annotations

import numpy as np
import pytest

from diastole.serve.pulse import Pulse


def heard(rate: float, seconds: float, piece: float = 0.1, jitter: float = 0.02, seed: int = 0) -> Pulse:
    rng, pulse = np.random.default_rng(seed), Pulse(16_000)
    sent, at = 0, 0.0
    for i in range(1, int(seconds / piece) + 1):
        sent += int(16_000 * piece)
        at = i * piece * 16_000 / rate
        pulse.beat(1000.0 + at + abs(rng.normal(0, jitter)), sent)
    return pulse


@pytest.mark.parametrize("ppm", [-500, -150, 150, 500])
def test_a_clock_that_is_off_is_told_within_its_error(ppm: float) -> None:
    pulse = heard(16_000 * (1 + ppm * 1e-6), 600)
    told = pulse.told()
    assert abs(told["drift_ppm"] - ppm) < 4 * told["drift_error_ppm"] + 0.2
    assert told["drift_error_ppm"] < 10


def test_chance_is_not_told() -> None:
    assert sum(bool(heard(16_000, 60, seed=i).told()) for i in range(50)) <= 2  # of three standard errors


def test_a_file_that_is_sent_at_once_has_no_clock() -> None:
    assert heard(64_000, 100).drift() is None


def test_nothing_is_said_of_a_few_seconds() -> None:
    assert heard(16_100, 5).drift() is None
    assert Pulse(100.0).drift() is None


def test_samples_that_come_in_one_moment_break_nothing() -> None:
    pulse = Pulse(100.0)
    for i in range(100):
        pulse.beat(5.0, i)
    assert pulse.told() == {}
