"""Faults on the real model: what is run again one by one is what would have been said."""

from __future__ import annotations

import pytest

from diastole.engine.executor import Inline
from diastole.engine.service import Service
from diastole.frontend.types import RequestEnded
from diastole.llm import LLM
from diastole.params import SamplingParams
from diastole.types import SLO, Array, Batch, Ended, Event, Request
from models.common import embedded

pytestmark = [pytest.mark.model]
PROMPTS = {f"r{i}": [(31 * i + 7 * j) % 40_000 + 100 for j in range(20 + 60 * i)] for i in range(4)}


class Saboteur(Inline):
    """Fails every batch that has this request in it and knows so much of it, after the model has run."""

    def __init__(self, id: str, known: int) -> None:
        self.id, self.known, self.struck = id, known, 0

    def run(self, service: Service, batch: Batch) -> Array:
        output = super().run(service, batch)
        if any(s.req.id == self.id and s.known >= self.known for s, _ in batch.grants):
            self.struck += 1
            raise RuntimeError("sabotage")
        return output


def texts(llm: LLM) -> tuple[dict[str, list[int]], set[str]]:
    engine = llm._engine
    params = SamplingParams(max_tokens=24, temperature=0.8, seed=3, frequency_penalty=0.3, ignore_eos=True)
    for id, prompt in PROMPTS.items():
        engine.add(Request(id, llm.name, tuple(prompt), params, SLO(1e9, 1e9), salt=str(engine.trace.last)))
    events: list[Event] = []
    while engine.busy:
        events += engine.step() or []
    failed = {e.id for e in events if isinstance(e.data, Ended)}
    said: dict[str, list[int]] = {}
    for e in events:
        if not isinstance(e.data, Ended):
            said.setdefault(e.id, []).extend(c.id for c in e.data.chosen)
    return said, failed


def test_others_get_the_same_tokens_from_the_real_model() -> None:
    with LLM(str(embedded())) as llm:
        engine = llm._engine
        usual = engine.executor
        sound, nobody = texts(llm)
        assert not nobody
        for known in (1, len(PROMPTS["r1"]) + 9):  # while it reads, and while it writes
            saboteur = engine.executor = Saboteur("r1", known)
            said, failed = texts(llm)
            engine.executor = usual
            assert failed == {"r1"}
            assert saboteur.struck >= 2  # together, and alone
            assert {id: t for id, t in said.items() if id != "r1"} == {i: t for i, t in sound.items() if i != "r1"}
            assert said.get("r1", []) == sound["r1"][: len(said.get("r1", []))]
        assert engine.services[0].pages()[0] == 0

        engine.executor = Saboteur("llm-0", 1)
        with pytest.raises(RequestEnded):
            llm.generate(["Once"])
        engine.executor = usual
        assert llm.generate(["Once"], SamplingParams(max_tokens=3, ignore_eos=True))[0][0].finish == "length"
