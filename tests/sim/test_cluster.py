"""Whatever the cluster and the load: everybody is served once, nothing is left behind, nothing happens too early."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from diastole.sim.blocks import Room
from diastole.sim.cluster import Colocated, DecodeAlone, Disaggregated, Group, PrefillAlone, System
from diastole.sim.colocated import Chunked, PrefillFirst
from diastole.sim.decode import DecodeInstance
from diastole.sim.decoding import Residents
from diastole.sim.events import Agenda
from diastole.sim.latency import Chunk, Decode, Latency, Line, Prefill, saturation
from diastole.sim.life import Life, Limits, Link
from diastole.sim.prefill import PrefillInstance
from diastole.sim.timeline import Arrival, Timeline
from diastole.types import UserError
from sim.small import DECODE, FIT, LONGEST, loads, systems

ALONE = Latency(FIT, DECODE)
INSTANT = Link(1e30, 1.0)


@given(systems(), loads())
@settings(max_examples=300, deadline=None)
def test_everybody_is_served_once_and_nothing_too_early(system: System, load: list[Arrival]) -> None:
    timelines = system.run(load)  # itself raises if a request is unfinished or room is still held
    assert [t.arrival for t in timelines] == [a.at for a in load]
    for asked, told in zip(load, timelines, strict=True):
        assert len(told.times) == asked.output
        assert all(a < b for a, b in zip(told.times, told.times[1:], strict=False))
        # A batch never ends sooner than its longest prompt alone; stages share the work, so one at least is theirs.
        assert told.ttft >= FIT.seconds([asked.prompt]) - 1e-12


@given(systems(), loads())
@settings(max_examples=50, deadline=None)
def test_the_same_load_gives_the_same_run(system: System, load: list[Arrival]) -> None:
    assert system.run(load) == system.run(load)


@given(systems(), loads())
@settings(max_examples=150, deadline=None)
def test_steps_are_the_same_without_the_short_cut(system: System, load: list[Arrival]) -> None:
    quick = system.run(load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Residents, "_all", lambda self, most: None)
        assert system.run(load) == quick


def test_a_request_alone_takes_what_the_latency_says() -> None:
    group = Group(1, ALONE, 1000)
    link = Link(1e6, 1000.0, delay=0.5)
    (told,) = Disaggregated(group, group, link).run([Arrival(2.0, 100, 3)])
    first, stage = ALONE.of_prompts([100])
    assert told.ttft == pytest.approx(first + stage)
    moved = 0.5 + 100 * 1000.0 / 1e6
    steps = [sum(ALONE.of_step(context, 1)) for context in (101, 102)]
    gaps = [b - a for a, b in zip(told.times, told.times[1:], strict=False)]
    assert gaps == pytest.approx([moved + steps[0], steps[1]])
    assert told.worst_gap == pytest.approx(moved + steps[0])


def test_a_pipeline_overlaps_batches() -> None:
    latency = Latency(Prefill(1.0, 0.0, 0.0), DECODE, stages=2, hand_on=0.0, overhead=0.0, overhead_token=0.0)
    alone = PrefillAlone(Group(1, latency, 1000, Limits(saturation=1)))
    told = alone.run([Arrival(0.0, 10, 1), Arrival(0.0, 10, 1), Arrival(0.0, 10, 1)])
    assert [t.ttft for t in told] == pytest.approx([1.0, 1.5, 2.0])


def test_short_prompts_are_batched_up_to_saturation_and_long_ones_run_alone() -> None:
    latency = Latency(Prefill(1.0, 0.0, 0.0), DECODE, hand_on=0.0, overhead=0.0, overhead_token=0.0)
    alone = PrefillAlone(Group(1, latency, 10_000, Limits(saturation=100)))
    told = alone.run([Arrival(0.0, n, 1) for n in (60, 40, 10, 500, 5)])
    assert [t.ttft for t in told] == pytest.approx([1.0, 1.0, 2.0, 3.0, 4.0])


def test_caches_that_nobody_pulled_hold_up_prefill() -> None:
    slow = Link(1.0, 1.0)  # a second per token
    small, large = Group(1, ALONE, 32), Group(1, ALONE, 10_000)
    load = [Arrival(0.0, 20, 2), Arrival(0.0, 20, 2)]
    held_up = Disaggregated(small, large, slow).run(load)
    free = Disaggregated(large, large, slow).run(load)
    assert held_up[1].ttft > 20 > free[1].ttft


def test_an_empty_decode_instance_accepts_whatever_fits() -> None:
    group = Group(1, ALONE, LONGEST, Limits(waiting=0.0))
    told = Disaggregated(group, group, INSTANT).run([Arrival(0.0, 70, 10)] * 4)
    assert [len(t.times) for t in told] == [10] * 4


def test_dispatch_and_pull_take_the_least_loaded() -> None:
    group = Group(2, ALONE, 10_000, Limits(saturation=1))
    told = Disaggregated(group, group, INSTANT).run([Arrival(0.0, 50, 20)] * 2)
    (alone,) = Disaggregated(Group(1, ALONE, 10_000), Group(1, ALONE, 10_000), INSTANT).run([Arrival(0.0, 50, 20)])
    assert told[0].times == told[1].times == alone.times


def test_memory_that_runs_out_sends_the_youngest_away(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[DecodeInstance] = []
    swap = DecodeInstance._swap_out

    def watched(self: DecodeInstance, life: Life) -> None:
        seen.append(self)
        swap(self, life)

    monkeypatch.setattr(DecodeInstance, "_swap_out", watched)
    group = Group(1, ALONE, 112, Limits(waiting=1.0))
    load = [Arrival(0.0, 30, 50), Arrival(0.0, 30, 50)]
    told = DecodeAlone(group, INSTANT).run(load)
    assert [x.swaps for x in seen] == [1]
    (alone,) = DecodeAlone(group, INSTANT).run(load[:1])
    assert told[0].times[-1] < told[1].times[-1]
    assert told[0].times[-1] < 1.5 * alone.times[-1]


def test_prompts_first_stall_those_who_speak_and_pieces_do_not() -> None:
    group = Group(1, ALONE, 10_000, Limits(chunk=64))
    load = [Arrival(0.0, 10, 40), Arrival(0.1, 1500, 2)]
    stalled, pieces = (Colocated(group, kind).run(load)[0] for kind in (PrefillFirst, Chunked))
    apart = Disaggregated(group, group, INSTANT).run(load)[0]
    assert stalled.worst_gap > FIT.seconds([1500])
    assert apart.worst_gap < pieces.worst_gap < stalled.worst_gap / 5


def test_who_is_sent_away_does_not_wait_before_a_prompt_that_holds_its_room() -> None:
    """Else neither would find room: found by trying loads at random with the order turned round."""
    group = Group(1, ALONE, 112, Limits(chunk=4))
    load = [Arrival(0.0, 13, 56), Arrival(0.05, 2, 47), Arrival(0.05, 45, 18)]
    told = Colocated(group, Chunked).run(load)
    assert [len(t.times) for t in told] == [56, 47, 18]


def test_pieces_of_a_prompt_cost_what_the_whole_does_but_for_their_bases() -> None:
    whole = ALONE.of_mix([Chunk(0, 100)], 0, 0).stage
    pieces = [ALONE.of_mix([Chunk(i, 25)], 0, 0).stage for i in range(0, 100, 25)]
    assert whole == pytest.approx(ALONE.of_prompts([100]).stage)
    assert sum(pieces) == pytest.approx(whole + 3 * (FIT.base + ALONE.hand_on))


def test_saturation_is_the_fewest_tokens_that_are_nearly_as_fast_as_any() -> None:
    fit = Prefill(0.0181, 0.0001019, 7.12e-9)
    found = saturation(fit, 0.9)
    speed = [n / fit.seconds([n]) for n in range(1, 8193)]
    assert speed[found - 1] >= 0.9 * max(speed) > speed[found - 2]
    flat = Decode(Line(0, 0, 0), Line(0, 0, 0), 1)
    assert flat.seconds(10, 10) == 0


def test_what_cannot_be_served_is_refused() -> None:
    group = Group(1, ALONE, 64)
    with pytest.raises(UserError, match="decode has memory for 64 tokens, and the longest request has 70"):
        Disaggregated(Group(1, ALONE, 1000), group, INSTANT).run([Arrival(0.0, 60, 10)])
    for wrong in ([Arrival(1.0, 5, 5), Arrival(0.5, 5, 5)], [Arrival(0.0, 0, 5)], [Arrival(float("nan"), 5, 5)]):
        with pytest.raises(UserError, match="in order of arrival"):
            Colocated(group, PrefillFirst).run(wrong)


def test_leaks_and_steps_back_in_time_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(64)
    with pytest.raises(ValueError, match="taken"):
        room.take(80)
    with pytest.raises(ValueError, match="come back"):
        room.give(16)
    agenda = Agenda()
    agenda.at(1.0, lambda: agenda.at(0.5, lambda: None))
    with pytest.raises(ValueError, match="nothing can happen"):
        agenda.run()
    monkeypatch.setattr(PrefillInstance, "release", lambda self, life: None)
    group = Group(1, ALONE, 1000)
    with pytest.raises(RuntimeError, match="0 requests unfinished and room held: \\[16, 0\\]"):
        Disaggregated(group, group, INSTANT).run([Arrival(0.0, 5, 2)])


def test_a_timeline_counts_gaps_and_not_tokens() -> None:
    told = Timeline(1.0, [1.5, 2.0, 3.0])
    assert (told.ttft, told.tpot, told.worst_gap) == (0.5, 0.75, 1.0)
    assert Timeline(0.0, [1.0]).tpot == 0
