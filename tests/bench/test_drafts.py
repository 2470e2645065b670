"""Benchmarks of drafts: their requests, their counting, and loads that arrive in time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from diastole.bench.arrivals import poisson, serve
from diastole.bench.drafts import PLAIN, Bench
from diastole.bench.workloads import KINDS, requests
from diastole.params import SamplingParams
from diastole.reproduce.law import chi_square, string_law
from diastole.reproduce.study import Study
from diastole.types import UserError
from models.common import tokenizer
from techniques import owed


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file like Spec-Bench's."""
    categories = ("summarization", "rag", "writing", "coding", "math", "translation")
    rows = [{"category": c, "turns": [f"{c} {i}", "more"]} for c in categories for i in range(3)]
    (tmp_path / "spec_bench_questions.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_requests_are_the_same_for_the_same_seed(kind: str, data: Path) -> None:
    found = requests(kind, 3, tokenizer(), data)
    assert found == requests(kind, 3, tokenizer(), data)
    assert len(set(found)) == 3
    assert found != requests(kind, 3, tokenizer(), data, seed=1)


def test_an_edit_begins_with_the_new_name() -> None:
    for asked in requests("edit", 5, tokenizer()):
        old, new = (asked.request.split("`")[i] for i in (1, 3))
        assert new == f"{old}_new"
        assert new in asked.begun
        assert f"({old}," not in asked.begun


def test_wrong_work_is_refused(data: Path) -> None:
    with pytest.raises(UserError, match="unknown kind of work 'dance'"):
        requests("dance", 1, tokenizer(), data)
    with pytest.raises(UserError, match="name their folder with --data"):
        requests("chat", 1, tokenizer(), data / "nowhere")
    (data / "spec_bench_questions.jsonl").write_text('{"turns": []}')
    with pytest.raises(UserError, match="cannot be read"):
        requests("chat", 1, tokenizer(), data)


class Said(NamedTuple):
    ids: list[int]


class FakeLLM:
    """Says the same tokens always; the second in half as many steps, and wrongly where told."""

    def __init__(self, tokens_per_step: int, wrong: bool = False) -> None:
        self.per_step, self.wrong = tokens_per_step, wrong
        self.counted = {"steps": 0}

    def generate(self, prompts: Sequence[Any], params: SamplingParams | None = None) -> list[list[Said]]:
        assert params is not None
        assert params.max_tokens is not None
        self.counted["steps"] += params.max_tokens // self.per_step
        return [[Said(list(range(params.max_tokens - self.wrong)))] for _ in prompts]

    def counters(self) -> Mapping[str, int]:
        return self.counted


def test_a_cell_counts_by_side() -> None:
    engines: dict[str, Any] = {PLAIN: FakeLLM(1), "twice": FakeLLM(2), "wrong": FakeLLM(2, wrong=True)}
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    told: list[int] = []
    cell = Bench(engines, params).cell("chat", [[1, 2]] * 5, 2, 3, lambda: told.append(1))
    assert len(told) == 3 * 2 * 3  # rounds, twice two of five requests, engines
    assert {name: side.per_step for name, side in cell.sides.items()} == {PLAIN: 1, "twice": 2, "wrong": 11 / 6}
    assert {name: side.different for name, side in cell.sides.items()} == {PLAIN: 0, "twice": 0, "wrong": 4}
    assert len(cell.ratios("twice")) == 3


def test_arrivals_are_as_many_and_as_fast_as_asked() -> None:
    times = poisson(2_000, 50.0, 0)
    assert times[0] == 0
    assert times == sorted(times)
    assert times[-1] == pytest.approx(40, rel=0.1)
    assert poisson(2_000, 50.0, 0) == times


def test_what_arrives_is_answered() -> None:
    of = owed.service("ngram", "smartspec")
    life = owed.Life(of)
    prompts = [owed.prompt(30 + i, i) for i in range(6)]
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    steps: list[int] = []
    done = serve(life.engine, of.name, prompts, [0.0, 0.0, 0.01, 0.01, 0.02, 0.02], params, lambda: steps.append(1))
    assert [done.said[i] for i in range(6)] == [[t for t, _ in owed.alone(owed.service(), p)] for p in prompts]
    assert all(latency > 0 for latency in done.latencies)
    assert len(steps) >= 12 // 2


def test_the_law_s_test_has_power() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(40))
    right = rng.multinomial(20_000, p)
    assert chi_square(right, p * 20_000) > 0.001
    wrong = p * (1 + 0.2 * np.sin(np.arange(40)))
    assert chi_square(rng.multinomial(20_000, wrong / wrong.sum()), p * 20_000) < 1e-6
    assert string_law(Study(), 4_000) > 0.001
