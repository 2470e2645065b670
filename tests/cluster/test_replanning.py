"""Who reads prompts and who decodes is decided anew when another load comes, and nothing is lost over it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cluster.toys import Front
from diastole.cluster.replanning import FEWEST, LATEST, Engines, Replanning, goodputs
from diastole.engine.service import COSTS
from diastole.sim.load import Length
from diastole.types import SLO
from engine.toy import expected

ENGINE = Engines((0.003, 0.0007, 0.0002, 0.0001), 65_536)  # about a core with a small model
PROMISES = SLO(3.0, 0.05)
ROLES = ["prefill", "prefill", "decode"]


def watching(prompt: int, output: int, slo: SLO = PROMISES) -> Replanning:
    replanning = Replanning(1.0, "lm", slo, goodputs)
    for _ in range(LATEST):
        replanning.ended("lm", prompt, output, None)
    return replanning


def test_few_requests_tell_nothing() -> None:
    replanning = Replanning(1.0, "lm", PROMISES, goodputs)
    for _ in range(FEWEST - 1):
        replanning.ended("lm", 100, 10, None)
        replanning.ended("another", 5000, 10, None)  # of which nobody asked
        assert not replanning.due()
        assert replanning.plan(ENGINE, 4, 2) == 2
    replanning.ended("lm", 100, 10, None)
    assert replanning.due()


@pytest.mark.parametrize(("prompt", "output", "prefills"), [(2000, 20, 3), (40, 400, 1)])
def test_who_has_most_to_do_gets_more_engines(prompt: int, output: int, prefills: int) -> None:
    assert watching(prompt, output).plan(ENGINE, 4, 2) == prefills


def test_what_is_found_serves_more() -> None:
    """And all other ways to deal the engines out serve no more."""
    found = goodputs(ENGINE, 4, [Length(2000, 20)] * LATEST, PROMISES)
    assert found[3] == max(found.values())
    assert found[3] > 1.3 * found[2] > 0


def test_nothing_changes_without_a_gain() -> None:
    impossible = SLO(1e-6, 1e-6)
    assert watching(2000, 20, slo=impossible).plan(ENGINE, 4, 2) == 2
    assert watching(2000, 20).plan(ENGINE, 4, 3) == 3


def test_it_is_decided_again_only_for_another_load() -> None:
    replanning = watching(2000, 20)
    assert replanning.due()
    replanning.plan(ENGINE, 4, 2)
    assert not replanning.due()
    replanning.ended("lm", 2100, 19, None)
    assert not replanning.due()
    for _ in range(LATEST):
        replanning.ended("lm", 40, 400, None)
    assert replanning.due()
    assert replanning.plan(ENGINE, 4, 3) == 1


def test_an_engine_is_known_by_what_all_say() -> None:
    def told(pages: int, *costs: float) -> dict[str, object]:
        return {"lm": {"gauges": {"kv_pages": pages, **dict(zip(COSTS, costs, strict=True))}}, "another": {}}

    replanning = Replanning(1.0, "lm", PROMISES, goodputs)
    assert replanning.engines([]) is None
    assert replanning.engines([{"lm": {"gauges": {"kv_pages": 3}}}]) is None
    found = replanning.engines([told(8, 3, 1, 0, 0), told(4, 1, 3, 0, 0), told(9, 2, 2, 0, 0)])
    assert found == Engines([2, 2, 0, 0], 4 * 64)


def play(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 60))


@pytest.mark.parametrize("prefills", [1, 2, 3])
@pytest.mark.parametrize("after", range(0, 30, 6))
def test_roles_change_in_the_middle_of_requests(prefills: int, after: int) -> None:
    prompts = [[(7 * i + j) % 80 + 8 for j in range(n)] for i, n in enumerate((5, 150, 64, 300, 2, 90, 17, 130))]

    async def scene() -> None:
        async with Front(["prefill", "prefill", "decode", "decode"]) as front:
            for i, prompt in enumerate(prompts):
                front.ask(str(i), prompt)
                if i == 4:
                    for _ in range(after):
                        await asyncio.sleep(0.003)
                    front.cluster._deal_out(prefills)
            await front.all_done(len(prompts))
            assert sum(m.role == "prefill" for m in front.cluster.members) == prefills
            assert not front.over
            assert all(front.said[str(i), 0] == expected(p, 8) for i, p in enumerate(prompts))
            await front.clean()

    play(scene)


def test_a_cluster_follows_its_load() -> None:
    """Long answers to short prompts: of two engines that read prompts one decodes soon."""

    async def scene() -> None:
        replanning = Replanning(0.01, "lm", SLO(5.0, 0.015))  # simulated in a process of its own
        async with Front(ROLES, replanning=replanning) as front:
            assert [m.name for m in front.cluster.members] == ["engine-0", "engine-1", "engine-2"]
            front.toys.fast.set()
            for i in range(FEWEST + 4):
                front.ask(str(i), [9, 10, 11 + i], most=60, ignore_eos=True)
            await front.all_done(FEWEST + 4)
            await front.until(lambda: sum(m.role == "prefill" for m in front.cluster.members) == 1)
            front.ask("then", [3, 4, 5], most=6)
            await front.until(lambda: ("then", 0) in front.finished)
            assert front.said["then", 0] == expected([3, 4, 5], 6)

    play(scene)
