"""A language model without arithmetic: its next token is a hash of every cached row it can see.

Any lost, stale or foreign row changes the text, so equality of texts proves the bookkeeping of pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diastole.clock import FakeClock
from diastole.engine.admission import Admission
from diastole.engine.compose import Mixed
from diastole.engine.cost import LinearCost
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.engine.executor import Simulated
from diastole.engine.ledger import Ledger
from diastole.engine.service import Service
from diastole.loops.ar import AutoRegressive
from diastole.loops.pooling import unit
from diastole.metrics import Meter
from diastole.params import SamplingParams
from diastole.state.host import HostTier
from diastole.state.pages import PAGE, PagePool
from diastole.state.prefix import PrefixCache
from diastole.types import Array, Batch, Event, Request

VOCAB = 97
EOS = 7
WIDTH = 3


class ToyStore:
    """One int64 per row."""

    layout = "toy"

    def __init__(self, pages: int) -> None:
        self.rows = np.full(pages * PAGE, -1, np.int64)

    def copy_page(self, src: int, dst: int) -> None:
        self._page(dst)[:] = self._page(src)

    def pack(self, pages: Sequence[int]) -> Array:
        return np.stack([self._page(p) for p in pages]).copy()

    def unpack(self, pages: Sequence[int], data: Array) -> None:
        for page, rows in zip(pages, data, strict=True):
            self._page(page)[:] = rows

    def _page(self, page: int) -> Array:
        return self.rows[page * PAGE : (page + 1) * PAGE]


class ToyLM:
    caps: frozenset[str] = frozenset({"paged_kv"})

    def forward(self, b: Batch, state: Any) -> Array:
        store: ToyStore = state["kv"]
        store.rows[b.rows] = b.inputs.astype(np.int64) * 1000 + b.pos
        out = np.zeros((len(b.want), VOCAB), np.float32)
        for w, t in enumerate(b.want):
            out[w, next_token(self._seen(b, t, store))] = 1.0
        if b.tap is not None:
            for i, t in enumerate(b.tap.rows):
                b.tap.hidden[i] = hidden_state(self._seen(b, t, store))
        return out

    @staticmethod
    def _seen(b: Batch, t: int, store: ToyStore) -> Array:
        stream = int(np.searchsorted(b.starts, t, "right")) - 1
        at = np.arange(b.lo[t], b.hi[t])
        return store.rows[b.tables[stream][at // PAGE].astype(np.int64) * PAGE + at % PAGE]


def next_token(seen: Array) -> int:
    value = 17
    for x in seen.tolist():
        value = (value * 31 + x) % 1_000_003
    return value % VOCAB


def hidden_state(seen: Array) -> Array:
    """(WIDTH,) float32: depends on every row seen, and adding many is not exact."""
    return np.array([seen.sum() % 1009, next_token(seen), len(seen)], np.float32) / np.float32(7)


def expected_vector(prompt: Sequence[int]) -> Array:
    """The mean of the hidden states, added in order, with length 1; computed without any engine."""
    rows = np.array([t * 1000 + i for i, t in enumerate(prompt)])
    total = np.zeros(WIDTH)
    for i in range(len(rows)):
        total += hidden_state(rows[: i + 1])
    return unit(total)


def expected(prompt: Sequence[int], most: int, eos: frozenset[int] = frozenset({EOS})) -> list[int]:
    """What a stream must say, computed without any engine."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + most:
        tokens.append(next_token(np.array([t * 1000 + i for i, t in enumerate(tokens)])))
        if tokens[-1] in eos:
            break
    return tokens[len(prompt) :]


def toy_service(
    pages: int = 32,
    context: int = 1024,
    cap: int = 48,
    prefix: bool = True,
    swap: int = 1 << 20,
    most: int = 16,
    name: str = "lm",
    admission: Admission | None = None,
) -> Service:
    store = ToyStore(pages)
    pool = PagePool(pages, store, PrefixCache(PAGE) if prefix else None)
    loop = AutoRegressive(pool, context, VOCAB, frozenset({EOS}), "toy", WIDTH)
    cost, meter = LinearCost(0.010, 0.001), Meter()
    ledger = Ledger(loop, {"kv": pool}, cost, meter, HostTier(swap) if swap else None, most, admission)
    return Service(name, ToyLM(), loop, {"kv": store}, Mixed(cap), cost, ledger, meter)


def toy_engine(*services: Service, clock: FakeClock | None = None) -> Engine:
    clock = clock or FakeClock()
    return Engine(services, clock, LeastSlack(), Simulated(clock))


def request(id: str, prompt: Sequence[int], most: int = 8, **params: Any) -> Request:
    return Request(id, "lm", tuple(prompt), SamplingParams(max_tokens=most, temperature=0, seed=0, **params))


def run(engine: Engine, steps: int = 10_000) -> list[Event]:
    """Step until idle."""
    events: list[Event] = []
    for _ in range(steps):
        if not engine.busy:
            return events
        events += engine.step() or []
    raise AssertionError(f"still busy after {steps} steps")


def texts(events: Sequence[Event]) -> dict[tuple[str, int], list[int]]:
    said: dict[tuple[str, int], list[int]] = {}
    for e in events:
        said.setdefault((e.id, e.choice), []).extend(c.id for c in e.data.chosen)
    return said


def assert_clean(service: Service) -> None:
    """Nobody holds anything."""
    pool = service.ledger.pools["kv"]
    problems: list[str] = []
    pool.check([x for s in service.ledger.streams for x in s.leases.values()], problems.append)  # type: ignore[attr-defined]
    service.ledger.check(problems.append)
    assert not problems, problems
