"""Evidence: what of DistServe's claims comes out of the simulator with its published constants. All of it is simulated.

The paper's lengths (ShareGPT) do not come along, so there are synthetic ones with ShareGPT's mean lengths as the paper
tells them (755.5 in, 200.3 out; from memory, not verified), in two spreads that were fixed beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from diastole.sim.cluster import Group, PrefillAlone, System
from diastole.sim.colocated import Chunked, PrefillFirst
from diastole.sim.goodput import Search
from diastole.sim.hardware import hardware
from diastole.sim.latency import Decode, Latency, Line, Prefill
from diastole.sim.life import Limits
from diastole.sim.load import Length, Lengths, LogNormal, poisson
from diastole.sim.place import Planner
from diastole.sim.profile import profile
from diastole.sim.queueing import crossover, one, pipeline, tensor
from diastole.sim.shape import shape
from diastole.sim.systems import Placement, Role, Systems
from diastole.types import SLO

LENGTHS: tuple[Lengths, ...] = (LogNormal(755.5, 200.3, 1.0), LogNormal(755.5, 200.3, 0.5))
PROMISED = SLO(0.2, 0.1)  # OPT-13B on ShareGPT
PAIRS = ((1, 1), (2, 1), (2, 2))  # GPUs of prefill and decode
TENSORS = (1, 2, 4)
GAPS = (0.1, 0.07, 0.05, 0.04, 0.03)  # seconds per token
LOADS = (0.3, 0.5, 0.7)
CALM = 0.5  # requests per second and GPU
SLOW, FAST = 25e9 / 8, 300e9  # bytes per second: between nodes in the paper's cluster, and NVLink


class Served(NamedTuple):
    """A goodput, simulated."""

    lengths: str
    what: str
    gpus: int
    goodput: float  # requests per second and GPU that keep both promises
    apart: float  # the same as the published simulator judges
    stall: float  # seconds at half a request/s per GPU: the longest gap between two tokens, in 99 % of requests


class Queue(NamedTuple):
    """A mean time to the first token in seconds, simulated and by formula."""

    load: float  # of one GPU
    what: str
    simulated: float
    formula: float


class Tightened(NamedTuple):
    """The best goodput per GPU that four GPUs reach under a limit, simulated."""

    gap: float  # seconds per token
    split: float
    colocated: float


class Chosen(NamedTuple):
    """What a search took."""

    search: str
    network: float  # bytes per second
    placement: str
    goodput: float


@dataclass(slots=True)
class Evidence:
    """All of it."""

    pairs: list[Served] = field(default_factory=list)
    colocated: list[Served] = field(default_factory=list)
    tightened: list[Tightened] = field(default_factory=list)
    queues: list[Queue] = field(default_factory=list)
    crossing: float = 0.0  # requests per second, of the published fit
    chosen: list[Chosen] = field(default_factory=list)

    def of(self, lengths: Lengths, what: str) -> Served:
        """One of ``pairs`` and ``colocated``."""
        return next(s for s in (*self.pairs, *self.colocated) if (s.lengths, s.what) == (str(lengths), what))


def evidence(
    count: int = 300,
    tolerance: float = 0.05,
    seed: int = 0,
    lengths: Sequence[Lengths] = LENGTHS,
    requests: int = 50_000,
    gpus: int = 8,
    step: Callable[[str], None] = lambda what: None,
) -> Evidence:
    """Everything anew.

    Args:
        count: requests of each run that a goodput is looked for with.
        tolerance: requests per second and GPU.
        requests: of each simulated queue.
        gpus: of the searches, on two nodes.
        step: is told of each part before it begins.
    """
    found = Evidence()
    model, gpu = shape("opt-13b"), hardware("a100-80g")
    systems = Systems(profile(model, gpu), FAST)
    vllm = Systems(profile(model, gpu, "@vllm"), FAST)
    for source in lengths:
        search = Search(source.draw(count, seed), PROMISED, ceiling=5.0, tolerance=tolerance, seed=seed)
        step(f"placements: {source}")
        found.pairs += [_served(source, search, systems, Placement(Role(p), Role(d))) for p, d in PAIRS]
        step(f"colocated: {source}")
        for built, note in ((systems, ""), (vllm, ", fits of vLLM")):
            for kind in (PrefillFirst, Chunked):
                found.colocated += [_colocated(source, search, built, Role(t), kind, note) for t in TENSORS]
    drawn = lengths[0].draw(count, seed)
    for gap in GAPS:
        step(f"at most {gap * 1e3:g} ms per token")
        found.tightened.append(_tightened(systems, drawn, gap, tolerance, seed))
    step("queues")
    found.queues, found.crossing = queues(systems, requests, seed)
    for network in (FAST, SLOW):
        step(f"searches at {network / 1e9:g} GB/s")
        search = Search(drawn, PROMISED, ceiling=5.0, tolerance=max(tolerance, 0.15), seed=seed)
        high = Planner(Systems(systems.profile, network), search, gpus, gpus // 2).high().options[0]
        low = Planner(systems, search, gpus, gpus // 2).low().options[0]
        found.chosen += [
            Chosen("high", network, high.what, high.goodput),
            Chosen("low", network, low.what, low.goodput),
        ]
    return found


def _served(source: Lengths, search: Search, systems: Systems, p: Placement) -> Served:
    system = systems.disaggregated(p)
    return _judged(source, search, system, f"{p.prefill} + {p.decode}", p.gpus)


def _colocated(
    source: Lengths, search: Search, systems: Systems, role: Role, kind: type[PrefillFirst], note: str
) -> Served:
    system = systems.colocated(role, kind)
    return _judged(source, search, system, f"{role}, {kind.name}{note}", role.gpus)


def _judged(source: Lengths, search: Search, system: System, what: str, gpus: int) -> Served:
    goodputs = search.goodput(system, gpus), search.apart().goodput(system, gpus)
    return Served(str(source), what, gpus, *goodputs, search.stall(system, CALM * gpus))


def _tightened(systems: Systems, drawn: Sequence[Length], gap: float, tolerance: float, seed: int) -> Tightened:
    search = Search(drawn, SLO(PROMISED.first, gap), ceiling=5.0, tolerance=tolerance, seed=seed)
    split = [Placement(Role(p), Role(d)) for p, d in PAIRS]
    return Tightened(
        gap,
        max(search.goodput(systems.disaggregated(p), p.gpus) for p in split),
        max(search.goodput(systems.colocated(Role(t), PrefillFirst), t) for t in TENSORS),
    )


# ---- queues


def mean_first(rate: float, service: float, stages: int, requests: int, seed: int) -> float:
    """Mean seconds to the first token of equal prompts that run one by one, simulated by the cluster's own parts."""
    nothing = Line(0.0, 0.0, 0.0)
    latency = Latency(Prefill(service, 0.0, 0.0), Decode(nothing, nothing, 1), stages, 0.0, 0.0, 0.0)
    group = Group(1, latency, 16 * requests, Limits(saturation=1))
    timelines = PrefillAlone(group).run(poisson([Length(1, 1)] * requests, rate, seed))
    return sum(t.ttft for t in timelines) / len(timelines)


def queues(systems: Systems, requests: int, seed: int) -> tuple[list[Queue], float]:
    """Of prompts of 512 tokens with the published fits, and where two GPUs should become a pipeline."""
    service, fast = (systems.profile.latency(t, 1).prefill.seconds([512]) for t in (1, 2))
    speedup = service / fast
    found = []
    for load in LOADS:
        rate = load / service
        for what, stages, takes, formula in (
            ("one GPU", 1, service, one(rate, service)),
            ("pipeline of 2", 2, service, pipeline(rate, service)),
            ("tensors on 2", 1, fast, tensor(rate, service, speedup)),
        ):
            found.append(Queue(load, what, mean_first(rate, takes, stages, requests, seed), formula))
    return found, crossover(service, speedup)
