"""Diastole as a contender: the whole engine, offline. Scheduling and sampling are inside the measured time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import numpy as np

from diastole.bench.limits import Needs
from diastole.bench.task import Prompt
from diastole.config import Config, EngineConfig, ServiceConfig
from diastole.frontend.assembly import build_engine
from diastole.frontend.wire import of_texts
from diastole.nn.decoder import Decoder
from diastole.params import SamplingParams
from diastole.types import SLO, Ended, Request, UserError


class Ours:
    """An engine with one service.

    Args:
        model: asset, GGUF file or directory.
        threads: compute threads; 0: one per physical core.
        streams: most streams at once.
        context: most tokens of a stream.
        service: settings of the service beside these.
        params: how tokens are chosen; None: greedily.
    """

    def __init__(
        self,
        model: str,
        threads: int,
        streams: int,
        context: int,
        service: ServiceConfig | None = None,
        params: SamplingParams | None = None,
    ) -> None:
        wanted = replace(service or ServiceConfig(), model=model, name="bench", max_streams=streams, prefix_cache=False)
        config = Config(engine=replace(EngineConfig(), threads=threads), service={"bench": wanted})
        self.engine, (found,), self.kernels = build_engine(config)
        card = of_texts(found)
        if streams * context > card.room:
            raise UserError(
                f"{streams} streams of {context} tokens do not fit: there is room for {card.room}",
                param="engine.memory",
            )
        decoder = self.engine.services[0].model
        if not isinstance(decoder, Decoder):
            raise UserError("only decoders are measured", param="model")
        self.decoder, self.vocab = decoder, card.vocab
        self._context = context
        self._params = params or SamplingParams(temperature=0, ignore_eos=True)
        self._ids = count()
        self._open: dict[str, int] = {}  # streams and the tokens they have given

    def needs(self) -> Needs:
        """What this model's steps must at least move and multiply."""
        model, kv = self.decoder, self.engine.services[0].state["kv"]
        layers: dict[str, int] = {}
        inner = [m for b in model.blocks for m in (b.attn.qkv, b.attn.o, b.mlp.gate_up, b.mlp.down)]
        for part in (p for m in inner for p in m.parts):
            layers[part.fmt] = layers.get(part.fmt, 0) + part.n * part.k
        attn, head = model.blocks[0].attn, model.head.parts[0]
        return Needs(
            weights=sum(p.nbytes for m in (*inner, model.head) for p in m.parts),
            kv_token=kv.bytes_per_token,
            layers=layers,
            head=(head.fmt, head.n * head.k),
            attention=2 * len(model.blocks) * attn.heads * attn.head_dim,
            kernels=self.kernels,
        )

    def prefill(self, prompt: Prompt) -> float:
        id = self._add(prompt, 1)
        began = time.perf_counter()
        while self._open[id] == 0:
            self.step()
        seconds = time.perf_counter() - began
        self.end()
        return seconds

    def begin(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self._add(prompt, self._context - len(prompt))
        while not all(self._open.values()):
            self.step()

    def decode(self, steps: int) -> float:
        return self._until({id: given + steps for id, given in self._open.items()})

    def finish(self, tokens: int) -> float:
        """Seconds until every stream has given so many tokens in all."""
        return self._until(dict.fromkeys(self._open, tokens))

    @property
    def given(self) -> int:
        """Tokens of all open streams so far."""
        return sum(self._open.values())

    def _until(self, goal: dict[str, int]) -> float:
        began = time.perf_counter()
        while any(self._open[id] < wanted for id, wanted in goal.items()):
            self.step()
        return time.perf_counter() - began

    def end(self) -> None:
        for id in list(self._open):
            self.engine.abort(id)
        self._open.clear()

    def _add(self, prompt: Prompt, tokens: int) -> str:
        id = f"bench-{next(self._ids)}"
        params = replace(self._params, max_tokens=tokens)
        self.engine.add(Request(id, "bench", np.asarray(prompt, np.int32), params, SLO(1e9, 1e9)))
        self._open[id] = 0
        return id

    def step(self) -> float:
        """One step of the engine: seconds."""
        began = time.perf_counter()
        events = self.engine.step()
        seconds = time.perf_counter() - began
        for event in events or ():
            if isinstance(event.data, Ended):
                raise RuntimeError("the engine failed on a request: see the log")
            self._open[event.id] += 1
        return seconds
