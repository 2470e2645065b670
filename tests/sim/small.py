"""Small loads and clusters, drawn by hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from diastole.sim.cluster import Colocated, Disaggregated, Group, System
from diastole.sim.colocated import Chunked, PrefillFirst
from diastole.sim.latency import Decode, Latency, Line, Prefill
from diastole.sim.life import Limits, Link
from diastole.sim.timeline import Arrival

LONGEST = 80  # tokens of a request here
FIT = Prefill(0.010, 0.001, 1e-6)
DECODE = Decode(Line(0.005, 1e-5, 1e-4), Line(0.004, 1e-5, 3e-4), 4)

gaps = st.sampled_from([0.0, 0.0, 0.001, 0.02, 0.3])
requests = st.tuples(gaps, st.integers(1, 50), st.integers(1, LONGEST - 50))


@st.composite
def loads(draw: st.DrawFn) -> list[Arrival]:
    at, load = 0.0, []
    for gap, prompt, output in draw(st.lists(requests, min_size=1, max_size=25)):
        at += gap
        load.append(Arrival(at, prompt, output))
    return load


@st.composite
def groups(draw: st.DrawFn) -> Group:
    limits = Limits(
        prompts=draw(st.integers(1, 4)),
        prompt_tokens=draw(st.integers(1, 90)),
        saturation=draw(st.integers(1, 90)),
        streams=draw(st.integers(1, 6)),
        context=draw(st.integers(1, 200)),
        waiting=draw(st.sampled_from([0.0, 0.05, 0.5])),
        chunk=draw(st.integers(1, 40)),
    )
    latency = Latency(FIT, DECODE, stages=draw(st.integers(1, 3)))
    return Group(draw(st.integers(1, 3)), latency, draw(st.integers(LONGEST, 3 * LONGEST)), limits)


@st.composite
def systems(draw: st.DrawFn) -> System:
    kind = draw(st.sampled_from([None, PrefillFirst, Chunked]))
    if kind is not None:
        return Colocated(draw(groups()), kind)
    link = Link(draw(st.sampled_from([1e4, 1e9])), 100.0, host=draw(st.sampled_from([1e4, 1e9])))
    return Disaggregated(draw(groups()), draw(groups()), link)
