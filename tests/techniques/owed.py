"""What every technique of a language model owes, as functions that a test calls with the technique as users write it.

All run a small random Llama whose heads look at few tokens, on a fake clock. Texts are compared with their log
probabilities, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from diastole.bench.tiny import Remembered, TinyLlama
from diastole.clock import FakeClock
from diastole.config import ServiceConfig
from diastole.engine.assemble import assemble
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.engine.executor import Simulated
from diastole.engine.service import Service
from diastole.kernels.table import load
from diastole.models import llama
from diastole.nn.inside import Inside
from diastole.nn.linear import Loader
from diastole.params import SamplingParams
from diastole.slots import Facts
from diastole.state.pages import PAGE
from diastole.types import Request

Text = list[tuple[int, float]]  # tokens and their log probabilities
VOCAB, CONTEXT = 256, 2048
SAID = 12  # tokens of an answer


@cache
def _tiny() -> tuple[TinyLlama, Remembered]:
    return TinyLlama(), Remembered()


def first_layers_know(monkeypatch: pytest.MonkeyPatch, layers: int) -> None:
    """The small model is one whose first layers know nearly all: as if it had been trained for early exits."""

    @cache
    def tiny() -> tuple[TinyLlama, Remembered]:
        made = TinyLlama(seed=1)
        for name, w in made._tensors.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")) and int(name.split(".")[2]) >= layers:
                w *= np.float32(0.1)
        return made, Remembered()

    monkeypatch.setattr("techniques.owed._tiny", tiny)


def service(
    *use: str,
    pages: int = 0,
    swap: int = 0,
    chunk: int = 256,
    prefix: bool = True,
    kv: str = "auto",
    streams: int = 8,
    memory: int = 64 << 20,
) -> Service:
    """A service of the small model; ``pages`` > 0 leaves so many to its pool."""
    tiny, remembered = _tiny()
    settings = ServiceConfig(
        model="tiny", use=use, step_tokens=chunk, max_streams=streams, prefix_cache=prefix, kv=kv, context=CONTEXT
    )

    def build(room: int) -> Service:
        return assemble("tiny", Loader(load(1), tiny, "auto", remembered), settings, frozenset(), room, swap)

    built = build(memory)
    if pages:
        page = int(built.state["kv"].bytes_per_token * PAGE)
        built = build(pages * page + page // 2)
        assert built.pages()[1] == pages
    return built


def facts() -> Facts:
    """What techniques may know of the small model."""
    tiny, remembered = _tiny()
    return llama.build(Loader(load(1), tiny, "auto", remembered), tiny.config, CONTEXT).facts(tiny)  # type: ignore[arg-type]


def prompt(n: int, seed: int = 0) -> list[int]:
    """Random tokens in which passages come again, so that some of the past matters."""
    rng = np.random.default_rng(seed)
    piece = rng.integers(0, VOCAB, 40)
    parts = [piece if rng.random() < 0.3 else rng.integers(0, VOCAB, 40) for _ in range(-(-n // 40))]
    return [int(x) for x in np.concatenate(parts)[:n]]


class Life:
    """A service with an engine on a fake clock, and what its requests have said."""

    def __init__(self, of: Service) -> None:
        clock = FakeClock()
        self.service = of
        self.engine = Engine([of], clock, LeastSlack(), Simulated(clock))
        self.said: dict[str, Text] = {}
        self.ended: list[str] = []

    def ask(self, id: str, tokens: Sequence[int], most: int = SAID, salt: str = "", n: int = 1) -> None:
        params = SamplingParams(max_tokens=most, temperature=0, ignore_eos=True, logprobs=1, n=n)
        self.engine.add(Request(id, self.service.name, tuple(tokens), params, salt=salt))

    def step(self) -> None:
        for event in self.engine.step() or ():
            text = self.said.setdefault(event.id if event.choice == 0 else f"{event.id}/{event.choice}", [])
            text += [(c.id, float(c.logprob or 0.0)) for c in event.data.chosen]
            if event.final:
                self.ended.append(event.id)

    def finish(self, steps: int = 4_000) -> None:
        for _ in range(steps):
            if not self.engine.busy:
                return
            self.step()
        raise AssertionError("a stream is stuck")

    def check(self, idle: bool = False) -> None:
        """Nothing is lost or held twice; when idle, nothing is held."""
        wrong: list[str] = []
        ledger = self.service.ledger
        ledger.check(wrong.append)
        for name, pool in ledger.pools.items():
            pool.check([s.leases[name] for s in ledger.running if name in s.leases], wrong.append)
        assert not wrong, wrong
        if idle:
            assert self.service.pages()[0] == 0


def alone(of: Service, tokens: Sequence[int], most: int = SAID) -> Text:
    """What is said to one prompt with nobody else there."""
    life = Life(of)
    life.ask("alone", tokens, most)
    life.finish()
    life.check(idle=True)
    return life.said["alone"]


# ---- what is owed


def same_as_plain(*use: str, kv: str = "auto", length: int = 700) -> None:
    """Identity: with these knobs the technique changes nothing, beside a plain service with the same form of rows."""
    with_it = service(*use, kv=kv)
    plain = service(kv=with_it.state["kv"].fmt)
    for seed in range(3):
        tokens = prompt(length + 97 * seed, seed)
        assert alone(with_it, tokens) == alone(plain, tokens)


def acts(*use: str, length: int = 900) -> None:
    """The technique changes what is said, or how likely it is: else the other tests of it say nothing."""
    tokens = prompt(length)
    assert alone(service(*use), tokens) != alone(service(), tokens)


def indifferent_to_company(*use: str, chunks: Sequence[int] = (64, 200, 1024), length: int = 900) -> None:
    """The same bits alone, in a crowd, in other chunks, and after a cached prefix."""
    of = service(*use)
    tokens = prompt(length)
    want = alone(of, tokens)
    assert alone(of, tokens) == want  # now its prompt is cached
    crowd = Life(service(*use))
    for i in range(4):
        crowd.ask(f"other-{i}", prompt(300 + 250 * i, 10 + i))
    for _ in range(3):
        crowd.step()
    crowd.ask("it", tokens)
    crowd.finish()
    assert crowd.said["it"] == want
    for chunk in chunks:
        assert alone(service(*use, chunk=chunk), tokens) == want, chunk


def survives_preemption(*use: str, length: int = 500, most: int = 60) -> None:
    """Swapped out and in again, or computed again, a stream says what it would have said."""
    wishes = {f"r{i}": prompt(length + 30 * i, 20 + i) for i in range(4)}
    roomy = service(*use)
    want = {id: alone(roomy, tokens, most) for id, tokens in wishes.items()}
    pages = 2 * -(-(length + 150 + most) // PAGE) - 2  # nearly two of the four fit
    for swap, counter in ((256 << 20, "swaps"), (0, "preemptions")):
        life = Life(service(*use, pages=pages, swap=swap, prefix=False))
        for id, tokens in wishes.items():
            life.ask(id, tokens, most)
        life.finish()
        life.check(idle=True)
        assert life.service.meter.counters[counter] > 0, counter
        assert life.said == want, counter


def layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on policies are asked in every layer, also those that could do without."""
    monkeypatch.setattr(Inside, "between", lambda *_: None)


def same_without_coming_back(monkeypatch: pytest.MonkeyPatch, *use: str, kv: str = "auto", always: bool = True) -> None:
    """An ``Unbroken`` says the same bits as when it is asked layer by layer: prompts and answers, long and short.

    Args:
        monkeypatch: pytest's.
        use: techniques.
        kv: form of keys and values.
        always: it never has to come back; False: in some batches.
    """

    def crowd() -> dict[str, Text]:
        life = Life(service(*use, kv=kv, chunk=300))
        for i in range(5):
            life.ask(f"r{i}", prompt(60 + 270 * i, 40 + i), 30)
            life.step()
        life.finish()
        life.check(idle=True)
        return life.said

    made: list[object] = []
    between = Inside.between

    def watch(self: Inside, *args: Any) -> object | None:
        made.append(between(self, *args))
        return made[-1]

    monkeypatch.setattr(Inside, "between", watch)
    unbroken = crowd()
    assert any(made)
    assert (None not in made) == always
    layer_by_layer(monkeypatch)
    assert unbroken == crowd()


def abort_leaks_nothing(*use: str, length: int = 400, every: int = 1) -> None:
    """Aborted after any number of steps, a stream leaves nothing behind."""
    of = service(*use, chunk=64)
    life = Life(of)
    for steps in range(1, 2 + length // 64 + SAID, every):
        life.ask("gone", prompt(length, steps), salt=str(steps))
        for _ in range(steps):
            life.step()
        life.engine.abort("gone")
        life.check(idle=True)
    assert not life.engine.busy


def random_life(
    *use: str,
    seed: int,
    steps: int = 250,
    pages: int = 24,
    lengths: tuple[int, int] = (20, 700),
    check: Callable[[Service], None] = lambda of: None,
) -> None:
    """Arrivals, aborts, forks, starvation, shared beginnings: everybody ends once, and has said what he would alone."""
    rng = np.random.default_rng(seed)
    life = Life(
        service(*use, pages=pages, swap=int(rng.choice([0, 1 << 30])), chunk=int(rng.integers(60, 400)), streams=6)
    )
    shared = prompt(lengths[1], seed)
    wishes: dict[str, tuple[list[int], int]] = {}
    aborted: set[str] = set()
    for step in range(steps):
        if rng.random() < 0.12 and len(life.service.ledger) < 8:
            cut = int(rng.integers(0, lengths[1] - lengths[0]))
            tokens = shared[:cut] + prompt(int(rng.integers(lengths[0], 60)), 1000 * seed + step)
            wishes[f"r{step}"] = tokens, int(rng.integers(1, 40))
            life.ask(f"r{step}", *wishes[f"r{step}"], salt=str(rng.integers(2)), n=int(rng.choice([1, 1, 1, 2])))
        alive = sorted({s.req.id for s in life.service.ledger.streams})
        if alive and rng.random() < 0.04:
            aborted.add(victim := str(rng.choice(alive)))
            assert life.engine.abort(victim)
        life.step()
        if step % 25 == 0:
            life.check()
    life.finish()
    life.check(idle=True)
    check(life.service)
    assert len(wishes) > 10
    roomy = service(*use)
    for id, (tokens, most) in wishes.items():
        if id not in aborted:
            assert life.said[id] == alone(roomy, tokens, most), id
            assert life.said.get(f"{id}/1", life.said[id]) == life.said[id]
