"""The trace: what a watcher is told of the steps, and that it is bounded."""

from __future__ import annotations

from diastole.engine.trace import DECODE, PREFILL, Trace, granted
from diastole.types import SLO, Event, Grant, Request, Stream
from engine.toy import request, run, toy_engine, toy_service


def test_steps_tell_chunks_then_beats_with_their_times() -> None:
    engine = toy_engine(toy_service(cap=48))
    engine.add(request("chatcmpl-0123456789abcdef", [1] * 100, most=4, ignore_eos=True))
    run(engine)
    view = engine.view()
    works = [work for step in view.steps for work in step.streams]
    assert works == [
        ("89abcdef", 0, PREFILL, 48, 0),
        ("89abcdef", 0, PREFILL, 48, 0),
        ("89abcdef", 0, PREFILL, 4, 1),  # the end of the prompt gives the first token
        *[("89abcdef", 0, DECODE, 1, 1)] * 3,
    ]
    assert [step.seq for step in view.steps] == [1, 2, 3, 4, 5, 6]
    assert view.last == 6
    # The toy's cost is 10 ms a step and 1 ms a unit, on a fake clock.
    assert [round(step.took, 9) for step in view.steps] == [0.058, 0.058, 0.014, 0.011, 0.011, 0.011]
    assert all(a.began + a.took <= b.began for a, b in zip(view.steps, view.steps[1:], strict=False))
    assert view.now == view.steps[-1].began + view.steps[-1].took
    assert {step.service for step in view.steps} == {"lm"}


def test_since_gives_what_is_new() -> None:
    engine = toy_engine(toy_service())
    engine.add(request("a", [1, 2, 3], most=5, ignore_eos=True))
    engine.step()
    engine.step()
    assert [step.seq for step in engine.view(1).steps] == [2]
    assert engine.view(2).steps == []
    assert engine.view(10**9).steps == []


def test_a_stream_that_is_computed_again_fills() -> None:
    service = toy_service(swap=0)
    engine = toy_engine(service)
    engine.add(request("a", [1, 2, 3], most=20, ignore_eos=True))
    for _ in range(4):
        engine.step()
    (stream,) = service.ledger.running
    service.ledger.preempt(stream)
    assert not engine.view().services["lm"].streams[0].running
    engine.step()
    (again,) = engine.view(4).steps
    assert again.streams == [("a", 0, PREFILL, 7, 1)]  # three of the prompt and four it had said


def test_the_view_shows_streams_and_pages() -> None:
    service = toy_service(pages=8, most=1)
    engine = toy_engine(service)
    engine.add(request("chatcmpl-first-of-two", [1] * 70, most=9, ignore_eos=True, n=2))
    engine.add(request("waits", [2] * 10))
    engine.step()
    before = engine.view().services["lm"]
    assert (before.pages, before.pages_used, before.running, before.waiting) == (8, 1, 1, 1)
    running, waiting = before.streams
    assert (running.id, running.running, running.known, running.done, running.first) == ("t-of-two", True, 70, 48, None)
    assert (waiting.id, waiting.running, waiting.done) == ("waits", False, 0)
    assert waiting.due == waiting.arrived + SLO().first
    engine.step()
    spoken, twin, _ = engine.view().services["lm"].streams
    assert (spoken.choice, twin.choice) == (0, 1)
    assert spoken.first == engine.clock.now()
    assert spoken.due == spoken.first + spoken.slo.gap


def test_ring_and_answer_are_bounded() -> None:
    trace = Trace(steps=8)
    streams = [Stream(Request(f"r{i}", "lm", None, None), 0, known=5) for i in range(10)]
    for step in range(20):
        trace.ran("lm", float(step), 0.5, granted([Grant(s, 5) for s in streams]), ())
    assert trace.last == 20
    assert [s.seq for s in trace.since(0)] == list(range(13, 21))
    assert [s.seq for s in trace.since(0, most=35)] == [18, 19, 20]  # whole steps, the newest
    assert [s.began for s in trace.since(18)] == [18.0, 19.0]


def test_outputs_are_told_by_stream() -> None:
    trace = Trace()
    request = Request("chatcmpl-0badcafe", "lm", None, None)
    streams = [Stream(request, i, known=9) for i in range(3)]
    mute = Stream(Request("reads", "lm", None, None), 0, known=9, speaks=False)
    said = [
        Event(request.id, 2, None, True, 1.0, units=4),
        Event(request.id, 0, None, False, 1.0),
        Event(request.id, 0, None, False, 1.0, units=2),  # a loop may say several things in one step
        Event("reads", 0, None, True, 1.0, speaks=False),  # its result is no unit of output
    ]
    trace.ran("lm", 0.0, 0.5, granted([Grant(s, 5) for s in (*streams, mute)]), said)
    (step,) = trace.since(0)
    assert [work[-1] for work in step.streams] == [3, 0, 4, 0]


def test_a_view_names_no_more_streams_than_it_says() -> None:
    service = toy_service(most=4)
    engine = toy_engine(service)
    for i in range(300):
        engine.add(request(f"r{i}", [1, 2, 3]))
    engine.step()
    view = engine.view().services["lm"]
    assert (view.running, view.waiting, len(view.streams)) == (4, 296, 256)
    assert view.streams[0].id == "r0"
