"""The simulator's own proof: its queues wait as long as queueing theory says."""

from __future__ import annotations

import math

import pytest

from diastole.sim.evidence import mean_first
from diastole.sim.queueing import crossover, one, pipeline, tensor, waiting

D, K = 0.1, 1.5


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
@pytest.mark.parametrize(
    ("stages", "service", "formula"),
    [(1, D, one), (2, D, pipeline), (1, D / K, lambda rate, service: tensor(rate, D, K))],
    ids=["one GPU", "pipeline", "tensors"],
)
def test_simulated_means_are_those_of_the_formulas(load: float, stages: int, service: float, formula: object) -> None:
    rate = load / D
    found = mean_first(rate, service, stages, 30_000, seed=1)
    assert found == pytest.approx(formula(rate, service), rel=0.03)  # type: ignore[operator]


def test_formulas_are_those_of_the_paper() -> None:
    r = 4.0
    assert one(r, D) == pytest.approx(D + r * D**2 / (2 * (1 - r * D)))
    assert pipeline(r, D) == pytest.approx(D + r * D**2 / (4 * (2 - r * D)))
    assert tensor(r, D, K) == pytest.approx(D / K + r * D**2 / (2 * K * (K - r * D)))
    assert math.isinf(one(10.0, D))


def test_few_requests_want_tensors_and_many_a_pipeline() -> None:
    rate = crossover(D, K)
    assert 0 < rate < K / D
    assert tensor(0.99 * rate, D, K) < pipeline(0.99 * rate, D)
    assert tensor(1.01 * rate, D, K) > pipeline(1.01 * rate, D)
    assert crossover(D, 1.9) > rate > crossover(D, 1.1)  # the better tensors scale, the longer they are right


def test_the_simulated_order_turns_where_the_formulas_say() -> None:
    rate = crossover(D, K)
    few = [mean_first(0.7 * rate, s, n, 20_000, 2) for s, n in ((D / K, 1), (D, 2))]
    many = [mean_first(min(1.2 * rate, 0.97 * K / D), s, n, 20_000, 2) for s, n in ((D / K, 1), (D, 2))]
    assert few[0] < few[1]
    assert many[0] > many[1]


def test_what_is_no_queue_is_refused() -> None:
    for rate, service in ((-1.0, 1.0), (1.0, 0.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="no queue"):
            waiting(rate, service)
    for speedup in (1.0, 2.0, 3.0):
        with pytest.raises(ValueError, match="between 1 and 2"):
            crossover(D, speedup)
