"""Streams that only read, on the toy model: every vector is the one computed without an engine, bit for bit, whoever
else runs, however the prompt is cut, and whatever was cached, preempted or aborted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from diastole.params import Pooling, PoolParams
from diastole.state.pages import PAGE
from diastole.types import Array, Event, Request, UserError
from engine.toy import (
    VOCAB,
    assert_clean,
    expected,
    expected_vector,
    hidden_state,
    request,
    run,
    texts,
    toy_engine,
    toy_service,
)

PROMPTS = {f"e{i}": [(7 * i + 3 * j) % 97 for j in range(1 + 61 * i)] for i in range(5)}


def wish(id: str, prompt: Sequence[int], kind: Pooling = "mean") -> Request:
    return Request(id, "lm", tuple(prompt), PoolParams(kind))


def vectors(events: Sequence[Event]) -> dict[str, Array]:
    return {e.id: e.data.vector for e in events if hasattr(e.data, "vector")}


@pytest.mark.parametrize("cap", [1, 7, 64, 512])
def test_vectors_and_texts_do_not_depend_on_chunks_or_company(cap: int) -> None:
    service = toy_service(cap=cap)
    engine = toy_engine(service)
    for id, prompt in PROMPTS.items():
        engine.add(request(f"t-{id}", prompt))
        engine.add(wish(id, prompt))
    events = run(engine)
    got = vectors(events)
    assert set(got) == set(PROMPTS)
    for id, prompt in PROMPTS.items():
        np.testing.assert_array_equal(got[id], expected_vector(prompt))
        assert got[id].dtype == np.float32
    said = texts([e for e in events if e.id not in PROMPTS])
    assert said == {(f"t-{id}", 0): expected(p, 8) for id, p in PROMPTS.items()}
    assert all(e.final for e in events if e.id in PROMPTS)
    assert_clean(service)
    assert service.ledger.pools["kv"].used == 0


def test_the_last_hidden_state() -> None:
    engine = toy_engine(toy_service(cap=50))
    prompt = PROMPTS["e3"]
    engine.add(wish("a", prompt, "last"))
    (got,) = vectors(run(engine)).values()
    last = hidden_state(np.array([t * 1000 + i for i, t in enumerate(prompt)])).astype(np.float64)
    np.testing.assert_allclose(got, last / np.linalg.norm(last), atol=1e-7)


def test_nothing_cached_is_used_or_left_behind() -> None:
    service = toy_service()
    engine = toy_engine(service)
    prompt = [i % 97 for i in range(300)]
    engine.add(wish("before", prompt))
    first = vectors(run(engine))["before"]
    engine.add(request("text", prompt))
    assert run(engine)[0].data.cached == 0  # reading left nothing
    engine.add(wish("after", prompt))
    np.testing.assert_array_equal(vectors(run(engine))["after"], first)
    assert service.meter.counters["prefix_cache_hits"] == 0
    np.testing.assert_array_equal(first, expected_vector(prompt))


def test_readers_are_counted_as_requests_without_answers() -> None:
    """They give no token and look nothing up; what a text counts is as if they were not there."""
    service = toy_service()
    engine = toy_engine(service)
    for id, prompt in PROMPTS.items():
        engine.add(wish(id, prompt))
    run(engine)
    meter = service.meter
    assert meter.counters["prompt_tokens"] == sum(map(len, PROMPTS.values()))
    assert meter.finished == {"stop": len(PROMPTS)}
    assert meter.counters["slo_attained"] == len(PROMPTS)
    for name in ("generation_tokens", "prefix_cache_queries", "prefix_cache_hits"):
        assert meter.counters[name] == 0, name
    for name in ("time_to_first_token", "inter_token_latency", "request_time_per_output_token", "request_decode_time"):
        assert sum(meter.histograms[f"{name}_seconds"].counts) == 0, name
    assert meter.histograms["request_generation_tokens"].sum == 0
    engine.add(request("text", [1] * 70, most=8))
    run(engine)
    assert meter.counters["generation_tokens"] == 8
    assert meter.counters["prefix_cache_queries"] == 70


@pytest.mark.parametrize("swap", [0, 1 << 20])
def test_preemption_in_the_middle_of_reading(swap: int) -> None:
    """Readers and speakers starve together; the youngest give way and read on, or from the start."""
    service = toy_service(pages=6, cap=5, swap=swap)
    engine = toy_engine(service)
    for i in range(3):
        engine.add(request(f"t{i}", [i] * 40, most=200, ignore_eos=True))
    long = [(5 * j) % 97 for j in range(3 * PAGE)]
    engine.add(wish("e", long))
    events: list[Event] = []
    gave_way_at = set()  # tokens that it had read
    read = 0
    while engine.busy:
        events += engine.step() or []
        for stream in service.ledger.streams:
            if stream.req.id == "e":
                if not stream.leases and read:
                    gave_way_at.add(read)
                read = stream.done or read
    assert any(0 < n < len(long) for n in gave_way_at), "the reader was never preempted: the test shows nothing"
    assert (service.meter.counters["swaps"] > 0) == (swap > 0)
    np.testing.assert_array_equal(vectors(events)["e"], expected_vector(long))
    assert_clean(service)


def test_a_prompt_may_fill_the_context_and_no_more() -> None:
    service = toy_service(pages=4, context=3 * PAGE)
    engine = toy_engine(service)
    full = [i % 97 for i in range(3 * PAGE)]
    engine.add(wish("full", full))
    np.testing.assert_array_equal(vectors(run(engine))["full"], expected_vector(full))
    for prompt, code in (([*full, 1], "context_length_exceeded"), ([], "empty_prompt"), ([VOCAB], "invalid_token_id")):
        with pytest.raises(UserError) as e:
            engine.add(wish("x", prompt))
        assert (e.value.param, e.value.code) == ("prompt", code)
    with pytest.raises(UserError, match="must be one of mean, last"):
        PoolParams("max")  # type: ignore[arg-type]
    service.loop.width = 0  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="no hidden states"):
        engine.add(wish("x", [1]))
    assert not engine.busy


@pytest.mark.parametrize("seed", range(4))
def test_random_life_with_readers(seed: int) -> None:
    """Random arrivals, aborts at every step of reading, and starvation: no page lost, every vector right."""
    rng = np.random.default_rng(seed)
    pages = int(rng.integers(4, 10))
    service = toy_service(
        pages=pages, context=pages * PAGE, cap=int(rng.integers(4, 80)), swap=int(rng.choice([0, 1 << 20])), most=6
    )
    engine = toy_engine(service)
    shared = rng.integers(0, VOCAB, pages * PAGE).tolist()
    prompts: dict[str, list[int]] = {}
    aborted: set[str] = set()
    events: list[Event] = []
    for step in range(1_200):
        if rng.random() < 0.15 and len(service.ledger) < 10:
            id = f"{'te'[int(rng.random() < 0.5)]}{step}"
            prompts[id] = shared[: int(rng.integers(1, pages * PAGE // 2))]
            engine.add(wish(id, prompts[id]) if id[0] == "e" else request(id, prompts[id], most=40))
        alive = sorted({s.req.id for s in service.ledger.streams})
        if alive and rng.random() < 0.04:
            victim = str(rng.choice(alive))
            assert engine.abort(victim)
            aborted.add(victim)
        events += engine.step() or []
        if step % 50 == 0:
            assert_clean(service)
    events += run(engine, 20_000)
    assert_clean(service)
    assert service.ledger.pools["kv"].used == 0
    got = vectors(events)
    readers = {id for id in prompts if id[0] == "e"}
    assert set(got) == readers - aborted
    assert len(got) > 15
    for id, vector in got.items():
        np.testing.assert_array_equal(vector, expected_vector(prompts[id]))
