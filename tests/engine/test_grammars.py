"""Grammars in the engine: forks, preemption, dead ends; on the toy model, whose wishes a grammar mostly forbids."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from diastole.loops.ar import AutoRegressive
from diastole.params import Grammar
from diastole.text.grammar import Grammars
from diastole.types import Event
from engine.toy import EOS, VOCAB, assert_clean, request, run, texts, toy_engine, toy_service

FIRST = 32  # token i stands for the character 32 + i


def toy_tokenizer(without: str = "") -> Any:
    def encode(text: str, special: bool) -> list[int]:
        return [ord(c) - FIRST for c in text if FIRST <= ord(c) < FIRST + VOCAB and c not in without]

    def token_bytes(i: int) -> bytes:
        return b"</s>" if i == EOS else bytes([FIRST + i]) if chr(FIRST + i) not in without else b""

    return SimpleNamespace(
        eos_ids=frozenset({EOS}),
        special_ids=frozenset({EOS}),
        bos_id=None,
        vocab_size=VOCAB,
        token_bytes=token_bytes,
        encode=encode,
    )


def service(without: str = "", **more: Any) -> Any:
    made = toy_service(**more)
    assert isinstance(made.loop, AutoRegressive)
    made.loop.grammars = Grammars(lambda: toy_tokenizer(without), VOCAB)
    return made


def said(events: list[Event]) -> dict[tuple[str, int], str]:
    return {k: "".join(chr(FIRST + t) for t in ids if t != EOS) for k, ids in texts(events).items()}


def finishes(events: list[Event]) -> dict[tuple[str, int], str | None]:
    return {(e.id, e.choice): e.data.finish for e in events if e.final}


def guided(id: str, regex: str, most: int = 40, **params: Any) -> Any:
    return request(id, [1, 2, 3, ord(id[0]) - FIRST], most, grammar=Grammar("regex", regex), **params)


def test_texts_match_and_end_without_waiting_for_an_end_token() -> None:
    lm = service()
    engine = toy_engine(lm)
    engine.add(guided("a", "[a-z]{5}-[0-9]{3}"))
    events = run(engine)
    assert re.fullmatch("[a-z]{5}-[0-9]{3}", said(events)["a", 0])
    assert EOS not in texts(events)["a", 0]
    assert finishes(events) == {("a", 0): "stop"}
    assert_clean(lm)


def test_each_choice_has_its_own_place() -> None:
    engine = toy_engine(service())
    engine.add(guided("a", "(x[a-m]{3}|y[n-z]{6})", n=4))
    events = run(engine)
    assert len(said(events)) == 4
    assert all(re.fullmatch("x[a-m]{3}|y[n-z]{6}", text) for text in said(events).values())


def test_a_length_that_is_too_short_is_told() -> None:
    engine = toy_engine(service())
    engine.add(guided("a", "[a-z]{50}", most=10))
    events = run(engine)
    assert len(said(events)["a", 0]) == 10
    assert finishes(events) == {("a", 0): "length"}


def test_a_dead_end_ends_one_stream_alone() -> None:
    lm = service(without="b")
    engine = toy_engine(lm)
    engine.add(guided("a", "aaa(b|bc)"))
    engine.add(guided("c", "[c-z]{8}"))
    events = run(engine)
    assert finishes(events) == {("a", 0): "error", ("c", 0): "stop"}
    assert said(events)["a", 0].startswith("aaa")
    assert_clean(lm)


@pytest.mark.parametrize("swap", [0, 1 << 20])
def test_preemption_changes_nothing(swap: int) -> None:
    """Six streams in room for two: their places in the grammar survive losing the pages."""

    def write(pages: int) -> tuple[dict[tuple[str, int], str], int]:
        lm = service(pages=pages, prefix=False, swap=swap)
        engine = toy_engine(lm)
        for i in range(6):
            engine.add(guided(f"{i}", "([a-z]{7},)+", most=100))
        events = run(engine)
        assert_clean(lm)
        return said(events), lm.meter.counters["preemptions"]

    roomy, tight = write(64), write(4)
    assert tight[1] > roomy[1] == 0
    assert tight[0] == roomy[0]
    assert all(re.match("([a-z]{7},)+", text) for text in roomy[0].values())


def test_a_service_without_grammars_says_so() -> None:
    engine = toy_engine(toy_service())
    with pytest.raises(ValueError, match="follows no grammars"):
        engine.add(guided("a", "a"))
