"""Diastole as a contender: the whole engine, offline. Scheduling and sampling are inside the measured time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import numpy as np

from diastole.bench.task import Prompt
from diastole.config import Config, EngineConfig, ServiceConfig
from diastole.frontend.assembly import build_engine
from diastole.params import SamplingParams
from diastole.types import SLO, Request


class Ours:
    """An engine with one service.

    Args:
        model: asset, GGUF file or directory.
        threads: compute threads; 0: one per physical core.
        streams: most streams at once.
        context: most tokens of a stream.
        service: settings of the service beside these.
    """

    def __init__(
        self, model: str, threads: int, streams: int, context: int, service: ServiceConfig | None = None
    ) -> None:
        wanted = replace(service or ServiceConfig(), model=model, name="bench", max_streams=streams, prefix_cache=False)
        config = Config(engine=replace(EngineConfig(), threads=threads), service={"bench": wanted})
        self.engine, (card,), self.kernels = build_engine(config)
        if streams * context > card.room:
            raise MemoryError(f"{streams} streams of {context} tokens do not fit: there is room for {card.room}")
        self.vocab = card.vocab
        self._context = context
        self._ids = count()
        self._open: dict[str, int] = {}  # streams and the tokens they have given

    def prefill(self, prompt: Prompt) -> float:
        id = self._add(prompt, 1)
        began = time.perf_counter()
        while self._open[id] == 0:
            self._step()
        seconds = time.perf_counter() - began
        self.end()
        return seconds

    def begin(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self._add(prompt, self._context - len(prompt))
        while not all(self._open.values()):
            self._step()

    def decode(self, steps: int) -> float:
        goal = {id: given + steps for id, given in self._open.items()}
        began = time.perf_counter()
        while any(self._open[id] < wanted for id, wanted in goal.items()):
            self._step()
        return time.perf_counter() - began

    def end(self) -> None:
        for id in list(self._open):
            self.engine.abort(id)
        self._open.clear()

    def _add(self, prompt: Prompt, tokens: int) -> str:
        id = f"bench-{next(self._ids)}"
        params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        self.engine.add(Request(id, "bench", np.asarray(prompt, np.int32), params, SLO(1e9, 1e9)))
        self._open[id] = 0
        return id

    def _step(self) -> None:
        for event in self.engine.step() or ():
            self._open[event.id] += 1
