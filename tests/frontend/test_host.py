"""EngineHost: work that would hold up everybody is done on a thread beside the engine's."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from diastole.clock import FakeClock
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.frontend import wire
from diastole.frontend.host import EngineHost, Loaded
from diastole.live import LiveParams
from diastole.loops.ar import AutoRegressive
from diastole.params import Grammar, SamplingParams
from diastole.text.grammar import GrammarError, Guide
from diastole.types import SLO, Array, Request
from engine.test_live import live_service
from engine.toy import assert_clean, expected, toy_engine, toy_service

PLAIN = SamplingParams(max_tokens=4, temperature=0, seed=0)
GUIDED = SamplingParams(max_tokens=4, temperature=0, seed=0, grammar=Grammar("regex", "slow"))


class Free(Guide):
    """Allows everything."""

    def __init__(self) -> None:
        self.finish = None

    def restrict(self, logits: Array) -> Array:
        return logits

    def take(self, token: int) -> None:
        pass


class SlowGrammars:
    """Compiles when told to."""

    def __init__(self) -> None:
        self.compiling, self.go_on, self.kept = threading.Event(), threading.Event(), set[Grammar]()
        self.fault: Exception | None = None

    def __contains__(self, grammar: Grammar) -> bool:
        return grammar in self.kept

    def guide(self, grammar: Grammar) -> Guide:
        if grammar not in self.kept:
            self.compiling.set()
            assert self.go_on.wait(10)
            if self.fault is not None:
                raise self.fault
            self.kept.add(grammar)
        return Free()


def no_loading(reload: wire.Reload) -> Loaded:
    raise AssertionError("nobody reloads here")


class Hosted:
    """A host on a thread, and what it said."""

    def __init__(self) -> None:
        self.service = toy_service()
        self.grammars = SlowGrammars()
        assert isinstance(self.service.loop, AutoRegressive)
        self.service.loop.grammars = self.grammars  # type: ignore[assignment]
        self.said = threading.Condition()
        self.replies: list[wire.Reply] = []
        self.host = EngineHost(toy_engine(self.service), self._hear, {}, no_loading)
        self.thread = threading.Thread(target=self.host.run)

    def _hear(self, reply: wire.Reply) -> None:
        with self.said:
            self.replies.append(reply)
            self.said.notify_all()

    def add(self, id: str, params: SamplingParams) -> None:
        self.host.put(wire.Add(id, "lm", np.array([1, 2, 3], np.int32).tobytes(), params))

    def tokens(self, id: str) -> list[int]:
        heard = [r for r in self.replies if isinstance(r, wire.Heard)]
        return [t for h in heard for s in h.spoken if s.id == id for t in s.ids]

    def refused(self, id: str) -> list[wire.Refused]:
        return [r for r in self.replies if isinstance(r, wire.Refused) and r.id == id]

    def until(self, condition: object) -> None:
        with self.said:
            assert self.said.wait_for(condition, 10), "it was never said"  # type: ignore[arg-type]


@contextmanager
def running() -> Iterator[Hosted]:
    hosted = Hosted()
    hosted.thread.start()
    try:
        yield hosted
    finally:
        hosted.grammars.go_on.set()
        hosted.host.put(wire.Quit(now=True))
        hosted.thread.join(10)
    assert not hosted.thread.is_alive()
    assert_clean(hosted.service)


def test_others_go_on_while_a_grammar_is_compiled() -> None:
    with running() as hosted:
        hosted.add("guided", GUIDED)
        assert hosted.grammars.compiling.wait(10)
        hosted.add("plain", PLAIN)
        hosted.until(lambda: len(hosted.tokens("plain")) == 4)
        assert not hosted.tokens("guided")
        hosted.grammars.go_on.set()
        hosted.until(lambda: len(hosted.tokens("guided")) == 4)
        assert hosted.tokens("guided") == hosted.tokens("plain") == expected([1, 2, 3], 4)
        hosted.add("again", GUIDED)  # compiled by now
        hosted.until(lambda: len(hosted.tokens("again")) == 4)


def test_what_is_aborted_meanwhile_never_begins() -> None:
    with running() as hosted:
        hosted.add("guided", GUIDED)
        assert hosted.grammars.compiling.wait(10)
        hosted.host.put(wire.Abort("guided"))
        hosted.host.put(wire.Measure())
        hosted.until(lambda: any(isinstance(r, wire.Stats) for r in hosted.replies))  # the abort was taken in
        hosted.grammars.go_on.set()
        hosted.add("later", GUIDED)
        hosted.until(lambda: len(hosted.tokens("later")) == 4)
        assert not hosted.tokens("guided")


@pytest.mark.parametrize("fault", [GrammarError("regex", "why"), RuntimeError("a fault of ours")])
def test_what_cannot_be_compiled_is_refused(fault: Exception) -> None:
    with running() as hosted:
        hosted.grammars.fault = fault
        hosted.grammars.go_on.set()
        hosted.add("guided", GUIDED)
        hosted.until(lambda: hosted.refused("guided"))
        hosted.add("plain", PLAIN)
        hosted.until(lambda: len(hosted.tokens("plain")) == 4)


def test_quitting_waits_for_what_is_being_prepared() -> None:
    hosted = Hosted()
    hosted.thread.start()
    hosted.add("guided", GUIDED)
    assert hosted.grammars.compiling.wait(10)
    hosted.host.put(wire.Quit())
    hosted.grammars.go_on.set()
    hosted.thread.join(10)
    assert not hosted.thread.is_alive()
    assert len(hosted.tokens("guided")) == 4


def test_a_request_that_makes_a_step_fail_is_over_and_others_are_not() -> None:
    class Faulty(Free):
        def take(self, token: int) -> None:
            raise RuntimeError("sabotage")

        def fork(self) -> Guide:
            return Faulty()

    with running() as hosted:
        hosted.grammars.guide = lambda grammar: Faulty()  # type: ignore[method-assign]
        hosted.add("plain", replace(PLAIN, max_tokens=40, ignore_eos=True))
        hosted.add("faulty", replace(GUIDED, n=2))
        hosted.until(lambda: wire.Over("faulty", "error") in hosted.replies)
        hosted.until(lambda: len(hosted.tokens("plain")) == 40)
        assert hosted.tokens("plain") == expected([1, 2, 3], 40, frozenset())
        assert [r for r in hosted.replies if isinstance(r, wire.Over)] == [wire.Over("faulty", "error")]  # told once


def test_a_fault_while_a_request_is_opened_is_its_own() -> None:
    with running() as hosted:
        hosted.grammars.kept.add(GUIDED.grammar)  # type: ignore[arg-type]
        hosted.grammars.guide = lambda grammar: 1 // 0  # type: ignore[assignment,method-assign,return-value]
        hosted.add("faulty", GUIDED)
        hosted.until(lambda: wire.Over("faulty", "error") in hosted.replies)
        hosted.add("plain", PLAIN)
        hosted.until(lambda: len(hosted.tokens("plain")) == 4)


def test_a_deadline_wakes_a_host_that_idles() -> None:
    """A live stream without input: nothing runs, and no command comes."""
    clock, service, replies = FakeClock(), live_service(), queue.SimpleQueue[wire.Reply]()
    engine = Engine([service], clock, LeastSlack())
    host = EngineHost(engine, replies.put, {}, no_loading)
    engine.add(Request("a", service.name, None, LiveParams(), SLO(total=0.05)))
    thread = threading.Thread(target=host.run)
    thread.start()
    clock.advance(0.05)
    assert replies.get(timeout=10) == wire.Over("a", "deadline")
    host.put(wire.Quit())
    thread.join(10)
    assert not thread.is_alive()
