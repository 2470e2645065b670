"""Letting in only who will have room until the end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diastole.engine.peak import Peak
from diastole.engine.service import Service
from diastole.state.pages import PAGE
from diastole.types import Request, Stream
from engine.toy import assert_clean, expected, request, run, texts, toy_engine, toy_service


def stream(prompt: int, said: int = 0) -> Stream:
    return Stream(Request("r", "lm", (8,) * prompt, None), 0, prompt + said)


def test_the_fullest_moment_is_found_by_hand() -> None:
    """Two of 100 tokens, one lacks 10 and one 200: 2 pages each when the first ends, 5 when the second does."""
    a, b = stream(100), stream(100)
    most = {id(a): 110, id(b): 300}
    peak = Peak(100, lambda s: most[id(s)])
    assert peak.expected([a]) == 2
    assert peak.expected([b]) == 5
    assert peak.expected([a, b]) == 5  # not 7: the first has given its pages back by then


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 400)), min_size=1, max_size=12))
def test_it_is_what_happens_when_all_go_on_at_one_pace(shapes: list[tuple[int, int]]) -> None:
    streams = [stream(known) for known, _ in shapes]
    ends = {id(s): known + lacks for s, (known, lacks) in zip(streams, shapes, strict=True)}
    most = 0
    for step in range(max(lacks for _, lacks in shapes) + 1):
        alive = [known + step for known, lacks in shapes if lacks >= step]
        most = max(most, sum(-(-units // PAGE) for units in alive))
    assert Peak(1, lambda s: ends[id(s)]).expected(streams) == most


def test_texts_are_taken_to_be_as_long_as_most_were() -> None:
    peak = Peak(1, lambda s: 10_000)
    assert peak._lacks(stream(50)) == 9950
    for said in range(10, 110, 10):
        peak.ended(stream(50, said))
    assert peak._lacks(stream(50)) == 90  # nine in ten were no longer
    assert peak._lacks(stream(50, 85)) == 15  # of those that were longer than 85
    assert peak._lacks(stream(50, 100)) == 9850  # none was
    assert Peak(1, lambda s: 60)._lacks(stream(50)) == 10


def crowd(service: Service, count: int = 8, most: int = 200) -> int:
    """Texts that grow from a page to more than four; how often somebody had to give way."""
    engine = toy_engine(service)
    rng = np.random.default_rng(2)
    wishes = [request(str(i), rng.integers(8, 90, 50).tolist(), most, ignore_eos=True) for i in range(count)]
    for wish in wishes:
        engine.add(wish)
    said = texts(run(engine))
    assert said == {(w.id, 0): expected(w.inputs, most, frozenset()) for w in wishes}
    assert_clean(service)
    return service.meter.counters["preemptions"]


@pytest.mark.parametrize("pages", [4, 9, 16])
def test_nobody_who_is_let_in_has_to_give_way(pages: int) -> None:
    assert crowd(toy_service(pages=pages, prefix=False)) > 0
    careful = toy_service(pages=pages, prefix=False)
    careful.ledger.room = Peak(pages, careful.loop.most)
    assert crowd(careful) == 0


def test_more_are_let_in_once_texts_are_known_to_be_short() -> None:
    """All may say 900 tokens, and end after a few."""
    service = toy_service(pages=32, prefix=False)
    peak = service.ledger.room = Peak(32, service.loop.most)
    engine = toy_engine(service)
    for i in range(12):
        engine.add(request(str(i), [9 + i] * 20, 900))
    engine.step()
    assert len(service.ledger.running) <= 2
    for _ in range(20):
        peak.ended(stream(20, 30))
    engine.step()
    assert len(service.ledger.running) == 12
    for i in range(12):
        engine.abort(str(i))
    assert_clean(service)
