"""From a checkpoint and settings to a service of texts that are settled place by place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from diastole import registry
from diastole.clock import Clock
from diastole.config import ServiceConfig
from diastole.engine.admission import Admission
from diastole.engine.assemble import pages_for, store
from diastole.engine.compose import Mixed
from diastole.engine.cost import Features, FittedCost
from diastole.engine.ledger import Ledger
from diastole.engine.service import Service
from diastole.loops.masked import Masked
from diastole.metrics import Meter
from diastole.nn.linear import Loader
from diastole.nn.masking import MaskedModel
from diastole.params import SamplingParams, Unmasking
from diastole.state.pages import PagePool
from diastole.types import Grant, PagedSpec, Request

READS = frozenset({"refresh", "compose"})  # slots of such a service
GUESS = (0.002, 0.001, 0.0, 0.0005)  # seconds of a step, of a row, and of looking
LENGTHS = (16, 64, 256)  # places of texts that are rehearsed


def by_rows(grants: Sequence[Grant]) -> Features:
    """What steps go by: rows that are computed, and how far each looks."""
    rows = [(len(s.own.rows), s.own.canvas.length) for s, _ in grants]
    total = float(sum(n for n, _ in rows))
    return 1.0, total, sum(length for _, length in rows) / 1000, sum(n * length for n, length in rows) / 1000


def assemble_masked(
    name: str,
    load: Loader,
    config: ServiceConfig,
    eos: frozenset[int],
    memory: int,
    admission: Admission | None = None,
) -> Service:
    """A service of a masked language model. A stream takes the pages of its whole text when it is let in, so nobody has
    to give way later.

    Raises:
        UserError: the model, a setting or a technique does not fit.
    """
    checkpoint = load.checkpoint
    architecture = registry.model(str(checkpoint.config.get("model_type")))
    model: MaskedModel = architecture.masked(load, checkpoint.config, config.context)
    decoder = model.decoder
    caps = decoder.caps | {"random_rows"}
    facts = replace(decoder.facts(checkpoint), caps=caps, streams=config.max_streams)
    stack = registry.build(config.use, {"compose": Mixed(config.step_tokens)}, facts, READS)
    kv = store(stack, config.kv)
    spec: PagedSpec = decoder.state_specs()["kv"]
    pages = pages_for(load.ops, kv, spec, decoder.context, config.max_streams, memory)
    kv.alloc(spec, pages, load.ops)
    pool = PagePool(pages, kv)
    loop = Masked(pool, decoder.context, decoder.vocab, model.mask, model.shift, eos, stack.refresh)
    cost, meter = FittedCost(GUESS, by_rows), Meter()
    ledger = Ledger(loop, {"kv": pool}, cost, meter, None, config.max_streams, admission)
    return Service(name, decoder, loop, {"kv": kv}, stack.compose, cost, ledger, meter)


def rehearse_masked(service: Service, loop: Masked, clock: Clock) -> None:
    """Teach a service's cost model what steps take, before anybody waits for one."""
    for length in (n for n in LENGTHS if n < loop.context):
        unmasking = Unmasking(steps=4, remasking="random")  # the order that every technique can follow
        params = SamplingParams(max_tokens=length, temperature=0.0, seed=0, unmasking=unmasking)
        prompt = [0 if loop.mask else 1]
        stream = loop.open(Request("rehearsal", service.name, prompt, params))
        if not loop.admit(stream):
            return
        while not stream.finished:
            grants = [Grant(stream, stream.own.next())]
            began = clock.now()
            batch = loop.prepare(grants)
            output = service.model.forward(batch, service.state)
            service.cost.learn(grants, clock.now() - began)
            loop.commit(batch, output, clock.now())
        loop.close(stream)
