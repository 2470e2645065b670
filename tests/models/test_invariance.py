"""The embedded model's answers do not depend on company, chunks or cached prefixes: compared bit for bit."""

from __future__ import annotations

from typing import Any

import pytest

from diastole.llm import LLM, Completion
from diastole.params import SamplingParams
from models.common import embedded, real_text

pytestmark = [pytest.mark.model, pytest.mark.slow]

CROWD = 32
LENGTHS = [3 + 17 * i % 200 for i in range(CROWD - 2)] + [700, 1100]


def wishes() -> list[tuple[list[int], SamplingParams]]:
    """Requests of mixed lengths, greedy and sampled in several ways."""
    text = real_text(4_000).tolist()
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0.9, "top_p": 0.9},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 40, "repetition_penalty": 1.2},
        {"temperature": 1.2, "min_p": 0.05, "frequency_penalty": 0.5, "presence_penalty": 0.5},
    ]
    return [
        (text[37 * i : 37 * i + n], SamplingParams(max_tokens=6, seed=i, logprobs=3, ignore_eos=True, **kinds[i % 5]))
        for i, n in enumerate(LENGTHS)
    ]


def answers(llm: LLM, alone: bool) -> list[Completion]:
    asked = wishes()
    if alone:
        return [llm.generate([p], s)[0][0] for p, s in asked]
    return llm.generate_each(asked)


@pytest.fixture(scope="module")
def alone() -> list[Completion]:
    embedded()
    with LLM(prefix_cache=False) as llm:
        return answers(llm, alone=True)


def same(some: list[Completion], others: list[Completion]) -> None:
    for a, b in zip(some, others, strict=True):
        assert a.ids == b.ids
        assert a.logprobs == b.logprobs  # floats, bit for bit


def test_a_crowd_changes_nothing(alone: list[Completion]) -> None:
    with LLM(prefix_cache=False) as llm:
        same(answers(llm, alone=False), alone)


@pytest.mark.parametrize("step", [1, 7, 64, 512])
def test_chunks_change_nothing(alone: list[Completion], step: int) -> None:
    with LLM(prefix_cache=False, step_tokens=step) as llm:
        asked = wishes()[-3:] if step == 1 else wishes()  # a long prompt one token at a time is slow; three are enough
        same(llm.generate_each(asked), alone[-3:] if step == 1 else alone)


def test_cached_prefixes_change_nothing(alone: list[Completion]) -> None:
    with LLM() as llm:
        answers(llm, alone=False)
        again = answers(llm, alone=False)
        same(again, alone)
        assert sum(c.usage.cached for c in again) > 1_000


def test_one_thread_changes_nothing(alone: list[Completion]) -> None:
    with LLM(prefix_cache=False, threads=1) as llm:
        same(llm.generate_each(wishes()[::8]), alone[::8])
