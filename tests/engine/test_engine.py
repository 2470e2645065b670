"""The engine on a toy model: every text is the one computed without an engine, and nothing leaks."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest

from diastole.loops import decoding
from diastole.state.pages import PAGE
from diastole.types import SLO, Event, Request, UserError
from engine.toy import assert_clean, expected, request, run, texts, toy_engine, toy_service

PROMPTS = {f"r{i}": [(7 * i + 3 * j) % 97 for j in range(5 + 37 * i)] for i in range(6)}


@pytest.mark.parametrize("cap", [1, 7, 64, 512])
@pytest.mark.parametrize("prefix", [False, True])
def test_texts_do_not_depend_on_chunks_or_company(cap: int, prefix: bool) -> None:
    service = toy_service(cap=cap, prefix=prefix)
    engine = toy_engine(service)
    for id, prompt in PROMPTS.items():
        engine.add(request(id, prompt))
    assert texts(run(engine)) == {(id, 0): expected(p, 8) for id, p in PROMPTS.items()}
    assert_clean(service)
    assert service.ledger.pools["kv"].used == 0


def test_decode_steps_are_committed_as_any_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through few calls or stream by stream: the same events at the same times, the same pages in the prefix cache."""

    def lived() -> tuple[list[Event], int]:
        service = toy_service()
        engine = toy_engine(service)
        for id, prompt in PROMPTS.items():
            engine.add(request(id, prompt, most=90))
        events = run(engine)
        engine.add(request("again", PROMPTS["r5"], most=3))
        events += run(engine)
        assert_clean(service)
        return events, service.meter.counters["prefix_cache_hits"]

    quick = lived()
    assert len({e.at for e in quick[0]}) > 20
    called: list[int] = []
    monkeypatch.setattr(decoding, "commit", lambda *_: called.append(1))
    assert lived() == quick
    assert called


def test_starvation_preempts_and_every_text_is_still_right() -> None:
    for swap in (0, 1 << 20):
        service = toy_service(pages=6, swap=swap)
        engine = toy_engine(service)
        for id, prompt in PROMPTS.items():
            engine.add(request(id, prompt, most=150, ignore_eos=True))
        said = texts(run(engine))
        assert said == {(id, 0): expected(p, 150, frozenset()) for id, p in PROMPTS.items()}
        assert service.meter.counters["preemptions"] > 0
        assert_clean(service)


def test_a_stream_that_fills_the_whole_pool_alone_gets_on_despite_the_cache() -> None:
    service = toy_service(pages=3)
    engine = toy_engine(service)
    prompt = [i % 97 for i in range(100)]
    want = expected(prompt, 3 * PAGE - 100, frozenset())
    for id in ("a", "b", "c"):  # later ones hit inside a page that the cache holds
        engine.add(request(id, prompt, most=3 * PAGE - 100, ignore_eos=True))
        assert texts(run(engine))[id, 0] == want
    assert_clean(service)


def test_prefix_is_reused_and_counted() -> None:
    service = toy_service()
    engine = toy_engine(service)
    longer = [i % 97 for i in range(400)]
    prompt = longer[:300]
    engine.add(request("a", longer))
    run(engine)
    steps = service.meter.counters["steps"]
    engine.add(request("b", prompt))
    events = run(engine)
    assert texts(events)["b", 0] == expected(prompt, 8)
    assert events[0].data.cached == 299  # four whole pages and most of the fifth; the last token always runs
    assert service.meter.counters["steps"] - steps == len(events)


def test_salts_do_not_share() -> None:
    service = toy_service()
    engine = toy_engine(service)
    prompt = [i % 97 for i in range(300)]
    for id, salt, cached in (("a", "x", 0), ("b", "y", 0), ("c", "x", 256)):
        wish = request(id, prompt)
        engine.add(Request(wish.id, wish.service, wish.inputs, wish.params, salt=salt))
        assert run(engine)[0].data.cached == cached


def test_choices_share_the_prompt_and_all_end() -> None:
    service = toy_service()
    engine = toy_engine(service)
    prompt = [i % 97 for i in range(200)]
    engine.add(request("a", prompt, n=4, most=20, ignore_eos=True))
    said = texts(run(engine))
    assert said == {("a", i): expected(prompt, 20, frozenset()) for i in range(4)}
    assert service.meter.finished == {"length": 1}
    assert_clean(service)


@pytest.mark.parametrize("after", range(0, 12, 2))
def test_abort_at_any_step_leaks_nothing(after: int) -> None:
    service = toy_service(pages=8)
    engine = toy_engine(service)
    for id, prompt in PROMPTS.items():
        engine.add(request(id, prompt, n=2, most=60, ignore_eos=True))
    for _ in range(after):
        engine.step()
    for id in PROMPTS:
        engine.abort(id)
        assert not engine.abort(id)
    assert not engine.busy
    assert_clean(service)
    assert service.ledger.pools["kv"].used == 0
    assert sum(service.meter.finished.values()) == len(PROMPTS)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"inputs": ()}, "prompt"),
        ({"inputs": (5, 97)}, "prompt"),
        ({"inputs": (-1,)}, "prompt"),
        ({"inputs": ("a",)}, "prompt"),
        ({"inputs": tuple([1] * 1024)}, "prompt"),
        ({"service": "nobody"}, "model"),
    ],
)
def test_wrong_requests_name_the_field(change: dict[str, object], param: str) -> None:
    engine = toy_engine(toy_service())
    good = request("a", [1, 2, 3])
    fields = {"id": "a", "service": "lm", "inputs": good.inputs, "params": good.params, **change}
    with pytest.raises(UserError) as e:
        engine.add(Request(**fields))  # type: ignore[arg-type]
    assert e.value.param == param
    assert not engine.busy


def test_too_many_tokens_and_a_used_id_are_refused() -> None:
    engine = toy_engine(toy_service())
    with pytest.raises(UserError, match="at most 1021"):
        engine.add(request("a", [1, 2, 3], most=5000))
    engine.add(request("a", [1, 2, 3]))
    with pytest.raises(UserError, match="in use"):
        engine.add(request("a", [1, 2, 3]))


def test_times_are_metered() -> None:
    service = toy_service()
    engine = toy_engine(service)
    wish = request("a", [1] * 40, most=3, ignore_eos=True)
    engine.add(Request("a", "lm", wish.inputs, wish.params, SLO(1, 1)))
    run(engine)
    seen = service.meter.histograms
    assert seen["time_to_first_token_seconds"].sum == pytest.approx(0.050)  # 10 ms + 40 tokens of 1 ms
    assert seen["inter_token_latency_seconds"].sum == pytest.approx(0.022)
    assert service.meter.counters["generation_tokens"] == 3
    assert service.meter.counters["prompt_tokens"] == 40


def test_a_service_is_replaced_while_it_runs() -> None:
    old, other, new = toy_service(), toy_service(name="other"), toy_service(pages=20)
    engine = toy_engine(old, other)
    engine.add(request("before", PROMPTS["r1"], most=40, ignore_eos=True))
    engine.add(replace(request("other", PROMPTS["r2"], most=60, ignore_eos=True), service="other"))
    events = [*(engine.step() or ()), *(engine.step() or ())]
    engine.add_service(new)
    with pytest.raises(UserError, match="in use"):
        engine.add(request("before", PROMPTS["r1"]))
    engine.add(request("after", PROMPTS["r3"]))
    assert len(new.ledger) == 1
    assert engine.services == [old, other, new]
    engine.add(request("aborted", PROMPTS["r1"]))
    assert engine.abort("aborted")
    events += run(engine)
    assert texts(events) == {
        ("before", 0): expected(PROMPTS["r1"], 40, frozenset()),
        ("other", 0): expected(PROMPTS["r2"], 60, frozenset()),
        ("after", 0): expected(PROMPTS["r3"], 8),
    }
    assert sum(new.meter.finished.values()) == 3  # of all that its name has served
    assert_clean(old)
    assert old.ledger.pools["kv"].used == 0
    model = weakref.ref(old.model)
    del old
    engine.step()
    assert engine.services == [other, new]
    assert model() is None  # nothing keeps its memory
