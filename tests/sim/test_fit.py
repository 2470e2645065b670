"""Fits find the coefficients that made the samples, and say when there are too few."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.sim.fit import DecodeSample, PrefillSample, fit_decode, fit_prefill, worst_error
from diastole.sim.latency import Decode, Line, Prefill
from diastole.types import UserError

small = st.floats(0, 1)


@given(small, small, small)
@settings(max_examples=40, deadline=None)
def test_prefill_is_found_again(a: float, b: float, c: float) -> None:
    true = Prefill(0.001 + 0.05 * a, 1e-4 * b + 1e-6, 1e-8 * c)
    lengths = [[n] * k for n in (16, 100, 700, 2000) for k in (1, 3)]
    found = fit_prefill([PrefillSample(x, true.seconds(x)) for x in lengths])
    assert worst_error([true.seconds(x) for x in lengths], [found.seconds(x) for x in lengths]) < 1e-6


def test_decode_has_a_line_on_either_side_of_the_bound() -> None:
    true = Decode(Line(0.020, 6.3e-7, 3.9e-5), Line(0.007, 5.8e-7, 1.6e-4), 95)
    points = [(context * n, n) for n in (1, 8, 40, 94, 95, 128, 256) for context in (50, 300, 1500)]
    found = fit_decode([DecodeSample(c, n, true.seconds(c, n)) for c, n in points])
    for side in ("few", "many"):
        assert np.allclose(getattr(found, side), getattr(true, side), rtol=1e-4)


def test_few_samples_on_one_side_share_a_line() -> None:
    true = Line(0.020, 6.3e-7, 3.9e-5)
    points = [(100 * n, n) for n in (1, 8, 40, 80)] + [(5000, 10), (20_000, 100)]
    found = fit_decode([DecodeSample(c, n, true.seconds(c, n)) for c, n in points])
    assert found.few == found.many
    assert found.seconds(5000, 50) == pytest.approx(true.seconds(5000, 50), rel=1e-4)


def test_noise_moves_a_fit_little_and_short_steps_count_as_much_as_long_ones() -> None:
    true, rng = Prefill(0.018, 1e-4, 7e-9), np.random.default_rng(0)
    lengths = [[n] for n in (1, 16, 64, 256, 1024, 2048) for _ in range(20)]
    noise = rng.normal(1, 0.02, len(lengths)).tolist()
    samples = [PrefillSample(x, true.seconds(x) * f) for x, f in zip(lengths, noise, strict=True)]
    found = fit_prefill(samples)
    assert worst_error([true.seconds(x) for x in lengths], [found.seconds(x) for x in lengths]) < 0.03


def test_samples_that_say_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="at least 3 samples, not 2"):
        fit_prefill([PrefillSample([5], 0.1)] * 2)
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="more than 0 seconds"):
            fit_decode([DecodeSample(5, 1, 0.1), DecodeSample(5, 1, 0.1), DecodeSample(5, 1, seconds)])
