"""The masked model that comes along does what it was taught, through a service as it is started, however it caches."""

from __future__ import annotations

import pytest

from diastole.bench.filling import Writer
from diastole.recipes.masked_tasks import SHORT, items
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
