"""The masked models that come along do what they were taught, as services that are started, however they cache."""

from __future__ import annotations

from random import Random

import pytest

from diastole.assets import resolve
from diastole.assets.models import tokenizer_of
from diastole.bench.filling import Writer
from diastole.params import SamplingParams, Unmasking
from diastole.recipes.masked_tasks import SHORT, items, words
from diastole.reproduce.dkv_cache import Set


@pytest.mark.parametrize(
    ("use", "remasking"),
    [
        ((), "low_confidence"),
        (("dkv-cache",), "low_confidence"),
        (("dkv-cache:variant=prefill",), "entropy"),
        (("dkv-cache:variant=pd",), "low_confidence"),
        (("dkv-cache:variant=greedy",), "random"),
    ],
)
def test_it_turns_letters_round(use: tuple[str, ...], remasking: str) -> None:
    asked = Set("reverse", items("reverse", 77, 16, SHORT), 32, 32)
    with Writer("masked-lm", use, 4, 1) as writer:
        assert asked.score(writer.write(asked.wishes(remasking=remasking))) >= 0.9


@pytest.mark.parametrize("use", [(), ("dkv-cache:refresh=8",)])
def test_smollm2_turns_words_round(use: tuple[str, ...]) -> None:
    tokenizer = tokenizer_of(resolve("masked-smollm2"))
    rng = Random(5)
    asked = [words(rng, SHORT) for _ in range(8)]
    params = SamplingParams(max_tokens=32, temperature=0, ignore_eos=True, unmasking=Unmasking(steps=32))
    with Writer("masked-smollm2", use, 8, 1) as writer:
        written = writer.write([(tokenizer.encode(item.prompt, special=False), params) for item in asked])
    ends = [next((n for n, i in enumerate(w.ids) if i in tokenizer.eos_ids), len(w.ids)) for w in written]
    said = [tokenizer.decode(w.ids[:n]).strip() for w, n in zip(written, ends, strict=True)]
    assert sum(a == item.answer for a, item in zip(said, asked, strict=True)) >= 6
