"""What drafts bring is told: step by step in the trace, by stream in the view, and with each output."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from diastole.engine.guesses import Guesses, guesses_of
from diastole.engine.trace import DECODE
from diastole.frontend.host import spoken_of
from diastole.techniques.ngram import Lookup
from diastole.types import Request, Stream
from engine.toy import request, toy_engine, toy_service
from spec.oracle import Oracle
from techniques import owed

USE = "ngram:k=6"


@pytest.fixture(params=[1, 3], ids=["chains", "trees"])
def life(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[owed.Life]:
    """Of a service whose guesses are right in most places."""
    oracle = Oracle(owed.service, 0.7, branches=request.param)
    monkeypatch.setattr(Lookup, "draft", lambda _, streams, lengths: oracle.draft(streams, lengths))
    yield owed.Life(owed.service(USE))
    assert oracle.drafted > 0


def test_steps_tell_rows_and_tokens(life: owed.Life) -> None:
    for i in range(2):
        life.ask(f"r{i}", owed.prompt(100, i), 40)
    life.finish()
    works = [work for step in life.engine.view().steps for work in step.streams]
    beats = [(units, said) for _, _, kind, units, said in works if kind == DECODE]
    counters = life.service.meter.counters
    assert all(1 <= said <= units for units, said in beats)
    assert sum(units - 1 for units, _ in beats) == counters["spec_decode_num_draft_tokens"]
    assert sum(said - 1 for _, said in beats) == counters["spec_decode_num_accepted_tokens"] > 0
    assert sum(said for *_, said in works) == 80


def test_the_view_tells_what_each_stream_guessed(life: owed.Life) -> None:
    life.ask("r", owed.prompt(100), 40, n=2)
    for _ in range(12):
        life.step()
    views = life.engine.view().services[life.service.name].streams
    counters = life.service.meter.counters
    assert len(views) == 2
    assert sum(v.drafted for v in views) == counters["spec_decode_num_draft_tokens"]
    assert sum(v.kept for v in views) == counters["spec_decode_num_accepted_tokens"] > 0
    assert all(v.drafted > v.kept for v in views)


def test_outputs_carry_the_totals_of_their_choice(life: owed.Life) -> None:
    life.ask("r", owed.prompt(100), 40, n=2)
    totals = [Guesses(), Guesses()]
    while life.engine.busy:
        for event in life.engine.step() or ():
            spoken = spoken_of(event, life.engine.guesses)
            if spoken.drafted:
                before, totals[event.choice] = totals[event.choice], Guesses(spoken.drafted, spoken.kept)
                assert spoken.kept == before.kept + len(spoken.ids) - 1
                assert spoken.drafted >= before.drafted
            else:
                assert len(spoken.ids) == 1
    counters = life.service.meter.counters
    assert sum(t.drafted for t in totals) == counters["spec_decode_num_draft_tokens"]
    assert sum(t.kept for t in totals) == counters["spec_decode_num_accepted_tokens"]


def test_where_nothing_drafts_there_is_nothing_to_tell() -> None:
    service = toy_service()
    engine = toy_engine(service)
    engine.add(request("a", [1, 2, 3], most=5, ignore_eos=True))
    engine.step()
    engine.step()
    assert engine.guesses == {}
    (view,) = engine.view().services["lm"].streams
    assert (view.drafted, view.kept) == (0, 0)
    assert guesses_of(Stream(Request("r", "other", None, None), 0, known=1)) == (0, 0)  # a loop with no such record
