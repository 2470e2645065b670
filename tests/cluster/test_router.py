"""The router over toy engines: who runs what, and that nothing is lost or said twice when engines die."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from cluster.toys import Front
from diastole.cluster.members import HOMELESS, REFUSALS
from diastole.cluster.router import Cluster
from diastole.config import Config
from diastole.frontend import wire
from diastole.params import PoolParams
from diastole.types import UserError
from engine.toy import expected, expected_vector

SPLIT = ["prefill", "decode"]
PROMPTS = [[(7 * i + j) % 80 + 8 for j in range(n)] for i, n in enumerate((5, 150, 64, 300, 2, 90, 17, 130))]


def play(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 60))


def right(front: Front, most: int = 8) -> bool:
    """Every text is what one engine alone would have said."""
    return all(front.said[str(i), 0] == expected(p, most) for i, p in enumerate(PROMPTS))


@pytest.mark.parametrize("roles", [SPLIT, ["prefill", "prefill", "decode", "decode"], ["both"], ["both", "both"]])
def test_texts_are_those_of_one_engine(roles: list[str]) -> None:
    async def scene() -> None:
        async with Front(roles) as front:
            for i, prompt in enumerate(PROMPTS):
                front.ask(str(i), prompt)
            await front.all_done(len(PROMPTS))
            assert right(front)
            await front.clean()
            decoders = [w.engine for m, w in zip(front.cluster.members, front.toys.workers, strict=True) if w.engine]
            assert all(e.trace.last for e in decoders)  # all had something to do

    play(scene)


def test_prefill_engines_say_first_tokens_only() -> None:
    async def scene() -> None:
        async with Front(SPLIT) as front:
            for i, prompt in enumerate(PROMPTS):
                front.ask(str(i), prompt, ignore_eos=True)
            await front.all_done(len(PROMPTS))
            prefill, decode = (w.engine.services[0].meter for w in front.toys.workers if w.engine)
            assert prefill.counters["generation_tokens"] == len(PROMPTS)
            assert prefill.counters["handed_over"] == len(PROMPTS)
            assert decode.counters["generation_tokens"] == 7 * len(PROMPTS)
            assert decode.histograms["iteration_tokens"].sum == 7 * len(PROMPTS)  # no prompt was read again

    play(scene)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("after", range(0, 40, 4))
def test_a_member_that_dies_costs_nobody_a_token(victim: int, after: int) -> None:
    """Wherever it is: prompts half read, states half moved, texts half said."""

    async def scene() -> None:
        async with Front(SPLIT) as front:
            for i, prompt in enumerate(PROMPTS):
                front.ask(str(i), prompt)
            for _ in range(after):
                await asyncio.sleep(0.003)
            front.cluster.members[victim].kill()
            await front.all_done(len(PROMPTS))
            assert not front.over
            assert right(front)
            struck = front.cluster.members[victim]
            await front.until(lambda: struck.restarts == 1 and struck.there)
            await front.clean()

    play(scene)


def test_replicas_stand_in_for_each_other() -> None:
    async def scene() -> None:
        async with Front(["both", "both"]) as front:
            for i, prompt in enumerate(PROMPTS):
                front.ask(str(i), prompt, n=2)
            await asyncio.sleep(0.05)
            front.cluster.members[0].kill()
            await front.all_done(2 * len(PROMPTS))
            for choice in (0, 1):
                assert all(front.said[str(i), choice] == expected(p, 8) for i, p in enumerate(PROMPTS))
            await front.clean()

    play(scene)


def test_several_texts_are_read_where_they_are_decoded() -> None:
    async def scene() -> None:
        async with Front(SPLIT) as front:
            front.ask("a", PROMPTS[1], n=3)
            await front.all_done(3)
            assert [front.said["a", c] for c in range(3)] == [expected(PROMPTS[1], 8)] * 3
            assert front.toys.workers[0].engine is not None
            assert front.toys.workers[0].engine.trace.last == 0
            await front.clean()

    play(scene)


@pytest.mark.parametrize("after", [0, 4, 10, 20])
def test_aborts_leave_nothing(after: int) -> None:
    async def scene() -> None:
        async with Front(SPLIT) as front:
            for i, prompt in enumerate(PROMPTS):
                front.ask(str(i), prompt, 30, ignore_eos=True)
            for _ in range(after):
                await asyncio.sleep(0.003)
            for i in range(0, len(PROMPTS), 2):
                front.cluster.put(wire.Abort(str(i)))
            await front.all_done(len(PROMPTS) // 2)
            for i in range(1, len(PROMPTS), 2):
                assert front.said[str(i), 0] == expected(PROMPTS[i], 30, frozenset())
            await front.clean()

    play(scene)


def test_a_choice_can_be_ended_alone() -> None:
    async def scene() -> None:
        async with Front(["both"]) as front:
            front.ask("a", PROMPTS[0], 200, n=2, ignore_eos=True)
            await front.until(lambda: len(front.said.get(("a", 1), [])) > 3)
            front.cluster.put(wire.Abort("a", "stop", 1))
            await front.until(lambda: ("a", 0) in front.finished)
            assert front.said["a", 0] == expected(PROMPTS[0], 200, frozenset())
            assert ("a", 1) not in front.finished
            assert len(front.cluster.journal) == 0
            await front.clean()

    play(scene)


def test_a_crowd_passes_through_a_small_decode_engine() -> None:
    """States wait at the prefill side, which holds up its prompts; nothing stands still."""

    async def scene() -> None:
        async with Front(SPLIT, pages=8) as front:
            front.toys.fast.set()
            prompts = [[(5 * i + j) % 80 + 8 for j in range(40 + 23 * i)] for i in range(14)]
            for i, prompt in enumerate(prompts):
                front.ask(str(i), prompt, 20, ignore_eos=True)
            await front.all_done(len(prompts))
            assert all(front.said[str(i), 0] == expected(p, 20, frozenset()) for i, p in enumerate(prompts))
            await front.clean()

    play(scene)


def test_beginnings_go_where_they_were_read_before() -> None:
    async def scene() -> None:
        async with Front(["both", "both", "both"]) as front:
            common = [(3 * j) % 80 + 8 for j in range(256)]
            for i in range(6):
                front.ask(str(i), [*common, 9 + i])
                await front.all_done(i + 1)
            had = [w.engine.services[0].meter.counters["prefix_cache_hits"] for w in front.toys.workers if w.engine]
            assert sorted(had) == [0, 0, 5 * 256]

    play(scene)


def test_vectors_survive_a_death() -> None:
    async def scene() -> None:
        async with Front(SPLIT) as front:
            prompt = np.array(PROMPTS[3], np.int32).tobytes()
            for i in range(4):
                front.cluster.put(wire.Embed(str(i), "lm", prompt, PoolParams("mean")))
            front.cluster.members[0].kill()
            await front.until(lambda: len(front.vectors) == 4)
            for vector in front.vectors.values():
                np.testing.assert_array_equal(vector, expected_vector(PROMPTS[3]).astype(np.float32))
            assert len(front.cluster.journal) == 0

    play(scene)


def test_what_can_never_be_served_is_refused_by_its_own_name() -> None:
    async def scene() -> None:
        async with Front(SPLIT) as front:
            front.ask("long", [9] * 2000)
            await front.all_done(1)
            assert "tokens" in front.refused["long"]
            await front.clean()

    play(scene)


def test_meters_are_added_up_and_views_given() -> None:
    async def scene() -> None:
        async with Front(SPLIT) as front:
            front.ask("a", PROMPTS[0], ignore_eos=True)
            await front.all_done(1)
            for command in (
                wire.Measure(),
                wire.Trace(0),
                wire.Ping(),
                wire.Reload("lm", "", wire.Card("lm", 8, 97, 64)),
            ):
                front.cluster.put(command)
            await front.until(lambda: len(front.others) == 4)
            by_kind = {type(r): r for r in front.others}
            counters = by_kind[wire.Stats].services["lm"]["counters"]
            assert counters["generation_tokens"] == 8
            assert by_kind[wire.NotReloaded].code == "reload_in_cluster"
            view = by_kind[wire.Traced].view
            pages = {name: one.pages for name, one in view.services.items()}
            assert pages == {"lm (prefill-0)": 64, "lm (decode-1)": 64}
            assert {step.service for step in view.steps} == set(view.services)
            assert len({step.seq for step in view.steps}) == len(view.steps)
            assert [step.began for step in view.steps] == sorted(step.began for step in view.steps)

    play(scene)


def test_who_watches_is_told_each_step_once() -> None:
    async def scene() -> None:
        async with Front(SPLIT) as front:
            seen: list[int] = []
            last = 0
            for i, prompt in enumerate(PROMPTS[:3]):
                front.ask(str(i), prompt, ignore_eos=True)
                await front.all_done(i + 1)
                front.others.clear()
                front.cluster.put(wire.Trace(last))
                await front.until(lambda: len(front.others) == 1)
                view = front.others[0].view  # type: ignore[union-attr]
                assert view.last > last
                assert view.steps
                seen += [step.seq for step in view.steps]
                last = view.last
            assert len(set(seen)) == len(seen)
            done = sum(w.engine.trace.last for w in front.toys.workers if w.engine)
            assert len(seen) == done

    play(scene)


def test_when_no_member_comes_back_requests_end_and_the_cluster_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with Front(SPLIT) as front:
            monkeypatch.setattr("diastole.cluster.members.LONGEST_WAIT", 0.0)
            front.ask("a", PROMPTS[3], 500, ignore_eos=True)
            await front.until(lambda: ("a", 0) in front.said)
            front.toys.barren = True
            for member in front.cluster.members:
                member.kill()
            await front.until(lambda: front.lost)
            assert front.over == {"a": "error"}
            assert not front.cluster.alive()
            front.ask("b", PROMPTS[0])
            assert front.over["b"] == "error"

    play(scene)


def test_who_finds_no_place_is_given_longer_than_who_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diastole.cluster.members.LONGEST_WAIT", 0.0)

    async def scene() -> None:
        async with Front(SPLIT) as front:
            front.ask("a", PROMPTS[3], ignore_eos=True)
            front.toys.homeless = 2 * REFUSALS
            front.cluster.members[0].kill()
            await front.all_done(1)
            assert not front.toys.homeless
            assert front.said["a", 0] == expected(PROMPTS[3], 8)
            assert not front.cluster.members[0].given_up

    async def nowhere_at_all() -> None:
        async with Front(SPLIT) as front:
            front.toys.homeless = len(SPLIT) * HOMELESS
            for member in front.cluster.members:
                member.kill()
            await front.until(lambda: front.lost)
            assert not front.toys.homeless

    play(scene)
    play(nowhere_at_all)


@pytest.mark.parametrize("roles", [[], ["prefill"], ["decode"], ["prefill", "both"]])
def test_roles_that_make_no_cluster_are_refused(roles: list[str]) -> None:
    from cluster.toys import Toys

    with pytest.raises(UserError, match="at least one prefill and one decode"):
        Cluster(Config(), roles, Toys())  # type: ignore[arg-type]
