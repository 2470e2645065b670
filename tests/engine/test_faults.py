"""Faults in a step: the request that causes one ends with an error, and to all others it is as if it had not been."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from diastole.engine.faults import MOST_ALONE
from diastole.engine.service import Service
from diastole.live import Chunk, LiveParams
from diastole.loops.ar import AutoRegressive
from diastole.params import PoolParams
from diastole.sample import Sampler, SomeFailed, choose_all
from diastole.state.pages import PAGE
from diastole.types import Array, Batch, Ended, Event, Grant, Request, Stream
from engine.test_live import FEATURES, live_service
from engine.toy import EOS, VOCAB, ToyLM, assert_clean, expected, request, run, texts, toy_engine, toy_service

FAULT = Ended("error")
PLACES = ("prepare", "forward", "fork", "adjust", "take")


class Saboteur:
    """Makes steps of some requests raise, in one place, once they know so many tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: str, culprits: dict[str, int]) -> None:
        self.culprits, self.struck = culprits, 0
        getattr(self, f"_in_{place}")(monkeypatch)

    def _strike(self, stream: Stream) -> None:
        if stream.known >= self.culprits.get(stream.req.id, 10**9):
            self.struck += 1
            raise RuntimeError(f"sabotage of {stream.req.id}")

    def _in_prepare(self, monkeypatch: pytest.MonkeyPatch) -> None:
        prepare = AutoRegressive.prepare

        def sabotaged(loop: AutoRegressive, grants: Sequence[Grant]) -> Batch:
            batch = prepare(loop, grants)  # so leases have grown
            for stream, _ in grants:
                self._strike(stream)
            return batch

        monkeypatch.setattr(AutoRegressive, "prepare", sabotaged)

    def _in_forward(self, monkeypatch: pytest.MonkeyPatch) -> None:
        forward = ToyLM.forward

        def sabotaged(model: ToyLM, b: Batch, state: Any) -> Array:
            output = forward(model, b, state)
            for (stream, _), lo, hi in zip(b.grants, b.starts, b.starts[1:], strict=False):
                if stream.known >= self.culprits.get(stream.req.id, 10**9):
                    state["kv"].rows[b.rows[lo:]] = -7  # it and those behind it are half done
                    assert hi > lo
                self._strike(stream)
            return output

        monkeypatch.setattr(ToyLM, "forward", sabotaged)

    def _in_fork(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """When a prompt with several choices is absorbed; requests with one choice fail in "take"."""
        self._in_sampler(monkeypatch, "fork")
        self._in_sampler(monkeypatch, "take")

    def _in_adjust(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._in_sampler(monkeypatch, "adjust")

    def _in_take(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._in_sampler(monkeypatch, "take")

    def _in_sampler(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        """Samplers do not know whose they are, so streams are looked up by the sampler."""
        usual, streams = getattr(Sampler, method), self._streams

        def sabotaged(sampler: Sampler, *arguments: Any) -> Any:
            for stream in streams():
                if stream.own.sampler is sampler:
                    self._strike(stream)
            return usual(sampler, *arguments)

        monkeypatch.setattr(Sampler, method, sabotaged)

    service: Service

    def _streams(self) -> list[Stream]:
        return [s for s in self.service.ledger.streams if s.speaks]


def penalised(id: str, prompt: Sequence[int], most: int, n: int = 1) -> Request:
    """Its sampler keeps notes of what was taken, so that taking twice would show."""
    return request(id, prompt, most, n=n, frequency_penalty=0.4, logprobs=0, ignore_eos=True)


def lives(seed: int, culprits: dict[str, int], monkeypatch: pytest.MonkeyPatch, place: str) -> tuple[list[Event], int]:
    """A crowd that shares a small pool; the events, and how often a step raised."""
    rng = np.random.default_rng(seed)
    service = toy_service(pages=14, cap=40, prefix=bool(seed % 2), swap=int(rng.choice([0, 1 << 20])), most=6)
    engine = toy_engine(service)
    shared = rng.integers(0, VOCAB, 3 * PAGE).tolist()
    with monkeypatch.context() as patch:
        saboteur = Saboteur(patch, place, culprits)
        saboteur.service = service
        events: list[Event] = []
        for i in range(12):
            prompt = [*shared[: int(rng.integers(1, len(shared)))], i]
            engine.add(penalised(f"r{i}", prompt, int(rng.integers(5, 90)), n=int(rng.choice([1, 1, 2]))))
            for _ in range(int(rng.integers(0, 12))):
                events += engine.step() or []
            assert_clean(service)
        events += run(engine)
    assert_clean(service)
    assert service.ledger.pools["kv"].used == 0
    ends = [(e.id, e.choice) for e in events if e.final]
    assert len(ends) == len(set(ends)), "a choice ended twice"
    assert sum(service.meter.finished.values()) == 12
    assert service.meter.finished["error"] == len({e.id for e in events if e.data == FAULT})
    return events, saboteur.struck


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("seed", range(6))
def test_others_say_what_they_would_have_said(seed: int, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sound, _ = lives(seed, {}, monkeypatch, place)
    rng = np.random.default_rng(seed + 100)
    culprits = {f"r{i}": int(rng.integers(1, 2 * PAGE)) for i in rng.choice(12, 3, replace=False)}
    events, struck = lives(seed, culprits, monkeypatch, place)
    failed = {e.id for e in events if e.data == FAULT}
    assert failed, "nobody failed: the test shows nothing"
    assert failed <= culprits.keys()
    assert struck >= len(failed)
    want, said = texts(sound), texts([e for e in events if e.data != FAULT])
    for (id, choice), tokens in want.items():
        if id not in failed:
            assert said[id, choice] == tokens, f"{id} was harmed"
        else:
            assert said.get((id, choice), []) == tokens[: len(said.get((id, choice), []))]


@pytest.mark.parametrize("place", PLACES)
def test_a_poisoned_request_alone_is_ended_and_the_next_one_served(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = toy_service()
    engine = toy_engine(service)
    Saboteur(monkeypatch, place, {"poison": 5}).service = service
    for i in range(2 * MOST_ALONE):  # as often as it comes, between requests that are well
        caplog.clear()
        engine.add(penalised("poison", [1, 2, 3, 4, 5], 8, n=2))
        with caplog.at_level(logging.ERROR):
            events = run(engine)
        assert {e.data for e in events if e.final} == {FAULT}
        (record,) = caplog.records
        assert record.exc_info is not None
        assert str(record.exc_info[1]) == "sabotage of poison"
        engine.add(request(f"well{i}", [1, 2, 3, 4, 5]))
        assert texts(run(engine)) == {(f"well{i}", 0): expected([1, 2, 3, 4, 5], 8)}
    assert_clean(service)


@pytest.mark.parametrize("place", PLACES)
def test_where_all_fail_the_engine_is_at_fault(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = toy_service()
    engine = toy_engine(service)
    Saboteur(monkeypatch, place, {"a": 1, "b": 1}).service = service
    engine.add(penalised("a", [1, 2, 3], 8))
    engine.add(penalised("b", [1, 2, 4], 8))
    with pytest.raises(RuntimeError, match="sabotage of a"):
        run(engine)


@pytest.mark.parametrize("place", PLACES)
def test_where_one_after_the_other_fails_the_engine_is_at_fault(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = toy_service()
    engine = toy_engine(service)
    Saboteur(monkeypatch, place, {f"r{i}": 1 for i in range(100)}).service = service
    for i in range(MOST_ALONE):
        engine.add(penalised(f"r{i}", [1, 2, 3], 8))
        assert [e.data for e in run(engine)] == [FAULT]
    engine.add(penalised("r99", [1, 2, 3], 8))
    with pytest.raises(RuntimeError, match="sabotage of r99"):
        run(engine)


def test_readers_in_a_batch_with_a_culprit_get_the_same_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    def vector(poisoned: bool) -> Array:
        service = toy_service(cap=64)
        engine = toy_engine(service)
        with monkeypatch.context() as patch:
            Saboteur(patch, "forward", {"poison": 20} if poisoned else {}).service = service
            engine.add(request("poison", [1] * 10, 60, ignore_eos=True))
            engine.add(Request("reader", "lm", tuple(i % VOCAB for i in range(500)), PoolParams("mean")))
            events = run(engine)
        assert any(isinstance(e.data, Ended) for e in events) == poisoned
        return next(e.data.vector for e in events if e.id == "reader")

    assert (vector(True) == vector(False)).all()


def test_a_stream_whose_state_may_be_spoilt_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are changed in place, so a forward pass that failed cannot be repeated."""
    service = live_service()
    engine = toy_engine(service)
    calls: list[Batch] = []

    def broken(b: Batch, state: Any) -> Array:
        calls.append(b)
        raise RuntimeError("sabotage")

    monkeypatch.setattr(service.model, "forward", broken, raising=False)
    engine.add(Request("a", service.name, None, LiveParams()))
    engine.step()
    engine.feed("a", Chunk(np.zeros((64, FEATURES), np.float32), last=True))
    assert [e.data for e in run(engine)] == [FAULT]
    assert len(calls) == 1
    assert service.ledger.pools["cell"].used == 0  # type: ignore[attr-defined]


def test_choosing_fails_for_single_rows() -> None:
    class Broken(Sampler):
        __slots__ = ()

        def take(self, token: int, logits: Array, row: int) -> Any:
            raise RuntimeError("sabotage")

    params = penalised("a", [1], 8).params
    samplers = [Sampler(params, [1], 0), Broken(params, [1], 0), Sampler(params, [1], 0)]
    logits = np.eye(3, VOCAB, k=EOS, dtype=np.float32)
    with pytest.raises(SomeFailed) as caught:
        choose_all(samplers, logits, [1, 1, 1])
    assert caught.value.errors.keys() == {1}
    assert {row: c.id for row, c in caught.value.chosen.items()} == {0: EOS, 2: EOS + 2}
