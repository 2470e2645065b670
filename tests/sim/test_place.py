"""Goodput and placements, on small runs of the published constants."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diastole.sim.cluster import Disaggregated, Group, PrefillAlone
from diastole.sim.colocated import PrefillFirst
from diastole.sim.evidence import LENGTHS, PROMISED
from diastole.sim.goodput import Search
from diastole.sim.hardware import hardware
from diastole.sim.latency import Decode, Latency, Line, Prefill
from diastole.sim.life import Limits
from diastole.sim.load import Length
from diastole.sim.place import Planner
from diastole.sim.profile import profile
from diastole.sim.shape import shape
from diastole.sim.systems import Placement, Role, Systems
from diastole.sim.timeline import Apart, Joint, Timeline, attainment
from diastole.types import SLO, UserError

SYSTEMS = Systems(profile(shape("opt-13b"), hardware("a100-80g")), 300e9)
SEARCH = Search(LENGTHS[1].draw(120, 0), PROMISED, ceiling=5.0, tolerance=0.3)
GENEROUS = Search([Length(10, 2)] * 20, SLO(1e6, 1e6), ceiling=0.5, tolerance=0.25)


def planner(gpus: int, rate: float | None = None, search: Search = SEARCH, per_node: int = 8) -> Planner:
    return Planner(SYSTEMS, search, gpus, per_node, rate)


def test_goodput_lies_between_a_rate_that_is_good_and_one_that_is_not() -> None:
    system = SYSTEMS.disaggregated(Placement(Role(2), Role(1)))
    found = SEARCH.goodput(system, 3)
    assert found > 0
    assert SEARCH.judge(SEARCH.run(system, 3 * found), PROMISED)
    assert not SEARCH.judge(SEARCH.run(system, 3 * (found + SEARCH.tolerance)), PROMISED)
    finer = replace(SEARCH, tolerance=0.05).goodput(system, 3)
    assert found <= finer <= found + SEARCH.tolerance


def test_goodput_of_a_known_server() -> None:
    """Prompts of 0.1 s, one by one: 10 a second at most; promises nobody can keep, and ones that anybody does."""
    nothing = Line(0, 0, 0)
    latency = Latency(Prefill(0.1, 0, 0), Decode(nothing, nothing, 1), hand_on=0, overhead=0, overhead_token=0)
    alone = PrefillAlone(Group(1, latency, 1 << 20, Limits(saturation=1)))
    for first, low, high in ((0.05, 0.0, 0.0), (0.2, 2.0, 9.0), (1.0, 7.0, 12.0), (1e9, 31.0, 32.0)):
        search = Search([Length(1, 1)] * 500, SLO(first, 1.0), ceiling=32.0, tolerance=0.5)
        assert low <= search.goodput(alone, 1) <= high


def test_a_memory_that_is_too_small_has_no_goodput() -> None:
    group = SYSTEMS.group(Role(1))
    system = Disaggregated(group, replace(group, tokens=64), SYSTEMS.link())
    assert SEARCH.goodput(system, 2) == 0


def test_promises_are_judged_together() -> None:
    slo = SLO(1.0, 1.0)
    late, slow, good = Timeline(0, [2.0, 2.1]), Timeline(0, [0.1, 5.0]), Timeline(0, [0.1, 0.2])
    load = [late] * 9 + [slow] * 9 + [good] * 82
    assert attainment(load, slo) == pytest.approx(0.82)
    assert not Joint(0.9)(load, slo)
    assert Apart(0.9)(load, slo)  # each promise by itself is kept by 91 %
    halved = [Timeline(0, [0.0, 1.5])]  # one gap of 1.5 s, two tokens
    assert Apart(0.9)(halved, slo)
    assert not Joint(0.9)(halved, slo)


def test_prefill_on_two_and_decode_on_one_serve_most_per_gpu() -> None:
    """DistServe's example: OPT-13B on four A100, 200 and 100 ms."""
    found = {
        (p, d): SEARCH.goodput(SYSTEMS.disaggregated(Placement(Role(p), Role(d))), p + d)
        for p, d in ((1, 1), (2, 1), (2, 2))
    }
    assert found[2, 1] > max(found[1, 1], found[2, 2])


@pytest.mark.parametrize("search", ["high", "low"])
def test_both_searches_find_that_placement(search: str) -> None:
    search_ = replace(SEARCH, lengths=LENGTHS[0].draw(300, 0))
    found = getattr(planner(4, search=search_), search)()
    assert str(found.chosen) == "1 x prefill TP2 + 1 x decode TP1"
    assert (found.gpus, found.replicas) == (3, 1)
    goodputs = [o.goodput for o in found.options]
    assert goodputs == sorted(goodputs, reverse=True)
    assert all(o.apart >= o.goodput - SEARCH.tolerance for o in found.options)


def test_of_equals_who_needs_fewer_gpus_comes_first() -> None:
    found = planner(6, search=GENEROUS).low()
    assert len({o.goodput for o in found.options}) == 1
    assert [o.gpus for o in found.options] == sorted(o.gpus for o in found.options)
    assert found.chosen.gpus == 2


def test_a_rate_is_served_by_as_many_as_it_needs() -> None:
    coarse = replace(SEARCH, lengths=LENGTHS[1].draw(60, 0), ceiling=4.0, tolerance=0.5)
    found = planner(6, rate=6.0, search=coarse).high()
    assert (found.attained or 0) >= 0.9
    assert 3 < found.gpus <= 6
    low = planner(6, rate=1.0, search=GENEROUS).low()
    assert low.replicas > 1
    assert low.replicas * low.options[0].goodput * low.chosen.gpus >= 1.0
    assert low.gpus == low.replicas * low.chosen.gpus <= 6
    with pytest.raises(UserError, match=r"100 requests/s need \d+ GPUs \(simulated\), and there are 4") as e:
        planner(4, rate=100.0).low()
    assert e.value.param == "gpus"


def test_what_cannot_be_kept_is_refused_with_the_bound() -> None:
    with pytest.raises(UserError, match=r"--slo-ttft 0.01 s is below the unloaded prefill time .* \d+ ms") as e:
        planner(4, search=replace(SEARCH, slo=SLO(0.01, 0.1))).high()
    assert (e.value.param, e.value.code) == ("slo-ttft", "infeasible")
    with pytest.raises(UserError, match=r"--slo-tpot 0\.001 s is below the unloaded time of a decode step, 1[0-9] ms"):
        planner(4, search=replace(SEARCH, slo=SLO(0.2, 0.001))).low()


def test_segments_share_nodes_and_layers() -> None:
    pairs = [*planner(8, per_node=4)._pairs()]
    assert {p.cross for p in pairs} == {1, 2}
    for p in pairs:
        assert p.prefill.gpus + p.decode.gpus <= 4
        assert p.gpus <= 8
        assert 40 % (p.prefill.stages * p.cross) == 0
    two = SYSTEMS.disaggregated(Placement(Role(1), Role(1), cross=2))
    assert two.link.token == SYSTEMS.link().token / 2
    assert two.prefill.latency.stages == 2


def test_colocated_is_told_beside_it() -> None:
    found = planner(2).colocated()
    assert [o.what.split(", ")[1] for o in found] == ["prefill first", "chunked"]
    assert found[0].stall is None or found[0].stall > 0.1  # a prompt holds up everybody
    calm = SEARCH.stall(SYSTEMS.disaggregated(Placement(Role(2), Role(1))), 1.0)
    assert calm < 0.3 * SEARCH.stall(SYSTEMS.colocated(Role(2), PrefillFirst), 1.0)
