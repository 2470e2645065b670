"""Random arrivals, aborts, preemptions and page starvation on a fake clock: no page lost, no stream stuck, every
request ends exactly once, and every text that was not aborted is the right one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from diastole.state.pages import PAGE
from diastole.types import Event, Request
from engine.toy import VOCAB, assert_clean, expected, request, toy_engine, toy_service

STEPS = 2_500


@pytest.mark.parametrize("seed", range(8))
def test_random_life(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pages = int(rng.integers(4, 14))
    service = toy_service(
        pages=pages,
        context=pages * PAGE,
        cap=int(rng.integers(4, 130)),
        prefix=bool(seed % 2),
        swap=int(rng.choice([0, 4_000, 1 << 20])),
        most=int(rng.integers(1, 10)),
    )
    engine = toy_engine(service)
    shared = rng.integers(0, VOCAB, pages * PAGE).tolist()  # prompts begin alike, so that prefixes hit
    wishes: dict[str, tuple[list[int], int, int]] = {}
    aborted: set[str] = set()
    events: list[Event] = []
    for step in range(STEPS):
        if rng.random() < 0.15 and len(service.ledger) < 12:
            id, n = f"r{step}", int(rng.choice([1, 1, 1, 3]))
            cut = int(rng.integers(0, pages * PAGE // 2))
            prompt = shared[:cut] + rng.integers(0, VOCAB, int(rng.integers(1, 80))).tolist()
            most = int(rng.integers(1, max(pages * PAGE - len(prompt), 2)))
            wishes[id] = prompt, most, n
            wish = request(id, prompt, most, n=n)
            salt = str(rng.integers(2))
            engine.add(Request(wish.id, wish.service, wish.inputs, wish.params, salt=salt))
        alive = sorted({s.req.id for s in service.ledger.streams})
        if alive and rng.random() < 0.03:
            victim = str(rng.choice(alive))
            assert engine.abort(victim)
            aborted.add(victim)
        events += engine.step() or []
        if step % 50 == 0:
            assert_clean(service)
    for _ in range(60_000):
        if not engine.busy:
            break
        events += engine.step() or []
    assert not engine.busy, "a stream is stuck"
    assert_clean(service)
    assert service.ledger.pools["kv"].used == 0

    ends = Counter((e.id, e.choice) for e in events if e.final)
    for id, (prompt, most, n) in wishes.items():
        if id in aborted:
            continue
        want = expected(prompt, most)
        for index in range(n):
            assert ends[id, index] == 1
            said = [c.id for e in events if (e.id, e.choice) == (id, index) for c in e.data.chosen]
            assert said == want
    assert all(count == 1 for count in ends.values())
    assert sum(service.meter.finished.values()) == len(wishes)
    assert len(wishes) > 20


def test_the_random_lives_do_preempt_swap_and_hit() -> None:
    """The property above would be empty if its runs never starved: this run must."""
    service = toy_service(pages=5, context=5 * PAGE, cap=64, swap=1 << 20, most=6)
    engine = toy_engine(service)
    for i in range(8):
        engine.add(request(f"r{i}", [3] * 100 + [i], most=150, ignore_eos=True))
    for _ in range(5_000):
        engine.step()
    assert not engine.busy
    counters = service.meter.counters
    assert counters["preemptions"] > 3
    assert counters["swaps"] > 0
    assert counters["prefix_cache_hits"] > 64
