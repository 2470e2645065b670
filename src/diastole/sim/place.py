"""Place: which placement serves most requests per GPU (DistServe, section 4, algorithms 1 and 2). All is simulated.

    high node affinity   caches may move between any two GPUs: the phases are searched one by one, and as many instances
                         of the best of each are taken as the rate asks for
    low node affinity    caches stay in a node: pairs that share one are searched together, and replicated

The searches differ from the published ones in that phases which were found one by one are then simulated together: each
may break promises to other requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from diastole.sim.cluster import System
from diastole.sim.colocated import Chunked, PrefillFirst
from diastole.sim.goodput import Search
from diastole.sim.profile import Profile
from diastole.sim.systems import Placement, Role, Systems
from diastole.sim.timeline import attainment, quantile
from diastole.types import UserError

SHOWN = 8  # alternatives that are simulated with both phases, and told


class Option(NamedTuple):
    """One way to serve."""

    what: str
    gpus: int
    goodput: float  # requests per second and GPU, both promises together
    apart: float  # the same as the published simulator judges
    stall: float | None  # seconds: the longest gap between two tokens at that goodput, in 99 % of requests
    placement: Placement | None = None  # None: colocated


@dataclass(frozen=True, slots=True)
class Plan:
    """What a search found, best first."""

    options: Sequence[Option]
    chosen: Placement
    replicas: int  # of it
    attained: float | None  # share of requests that keep their promises at the rate that was asked for

    @property
    def gpus(self) -> int:
        return self.chosen.gpus * self.replicas


@dataclass(frozen=True, slots=True)
class Planner:
    """
    Args:
        gpus: that there are.
        rate: requests per second to be served; None: as many per GPU as possible.
        told: is called with the number of searches before they begin, and gives what is called after each.
    """

    systems: Systems
    search: Search
    gpus: int
    per_node: int = 8
    rate: float | None = None
    told: Callable[[int], Callable[[], None]] = lambda total: lambda: None

    # ---- the two searches

    def high(self) -> Plan:
        """Raises:
        UserError: promises that nothing can keep, or more requests than these GPUs can serve.
        """
        roles = self._roles(self.gpus - 1)
        self.feasible(roles)
        step = self.told(2 * len(roles))
        prefills: dict[Role, float] = {}
        decodes: dict[Role, float] = {}
        for role in roles:
            hopes = self._first(role), self._gap(role)
            systems: tuple[System, System] = self.systems.prefill(role), self.systems.decode(role)
            for found, hope, system in zip((prefills, decodes), hopes, systems, strict=True):
                found[role] = self.search.goodput(system, role.gpus) * role.gpus if hope else 0.0
                step()
        picked = self._counted(prefills, decodes)[:SHOWN]
        if not picked:
            self._nothing()
        options = self._judged(picked)
        if self.rate is None:
            return self._plan(options, options[0].placement, 1)
        chosen = self._enough(_best(prefills), _best(decodes), prefills, decodes, self.rate)
        return self._plan(options, self._mended(chosen, self.rate), 1)

    def low(self) -> Plan:
        """Raises:
        UserError: promises that nothing can keep, or more requests than these GPUs can serve.
        """
        pairs = [*self._pairs()]
        self.feasible([Role(r.tensor, r.stages * p.cross) for p in pairs for r in (p.prefill, p.decode)])
        pairs = [
            p
            for p in pairs
            if self._first(Role(p.prefill.tensor, p.prefill.stages * p.cross))
            and self._gap(Role(p.decode.tensor, p.decode.stages * p.cross))
        ]
        step = self.told(len(pairs))
        found = []
        for pair in pairs:
            found.append((self.search.goodput(self.systems.disaggregated(pair), pair.gpus), pair))
            step()
        found.sort(key=lambda f: (-f[0], f[1].gpus))
        options = self._judged([p for _, p in found[:SHOWN]])
        best = options[0]
        assert best.placement is not None
        if best.goodput <= 0:
            self._nothing()
        replicas = 1 if self.rate is None else math.ceil(self.rate / (best.goodput * best.gpus))
        if replicas * best.gpus > self.gpus:
            self._short(replicas * best.gpus)
        return self._plan(options, best.placement, replicas)

    # ---- what there is to choose from

    def _roles(self, most: int) -> list[Role]:
        """Cuts of an instance that fit into so many GPUs, and whose memory holds more than the weights."""
        profile = self.systems.profile
        return [
            role
            for role in (Role(t, p) for t in profile.tensors for p in profile.pipelines if t * p <= most)
            if profile.tokens(role.gpus) > 0 and role.tensor <= self.per_node
        ]

    def _pairs(self) -> Iterator[Placement]:
        """Pairs of which a segment fits into a node."""
        profile = self.systems.profile
        cuts = [Role(t, p) for t in profile.tensors for p in profile.pipelines if t * p < self.per_node]
        nodes = max(self.gpus // self.per_node, 1)
        for cross in (c for c in profile.pipelines if c <= nodes):
            fitting = [r for r in cuts if profile.tokens(r.gpus * cross) > 0 and r.stages * cross in profile.pipelines]
            for p in fitting:
                for d in fitting:
                    if p.gpus + d.gpus <= self.per_node and cross * (p.gpus + d.gpus) <= self.gpus:
                        yield Placement(p, d, cross=cross)

    def _counted(self, prefills: dict[Role, float], decodes: dict[Role, float]) -> list[Placement]:
        """Of every two roles the numbers of instances that serve most per GPU if both phases are busy, best first."""
        found: list[tuple[float, int, Placement]] = []
        for p, gp in prefills.items():
            for d, gd in decodes.items():
                counts = (
                    (min(n * gp, m * gd) / (n * p.gpus + m * d.gpus), n * p.gpus + m * d.gpus, Placement(p, d, n, m))
                    for n in range(1, (self.gpus - d.gpus) // p.gpus + 1)
                    for m in range(1, (self.gpus - n * p.gpus) // d.gpus + 1)
                )
                if best := max(counts, key=lambda c: (c[0], -c[1]), default=None):
                    found.append(best)
        found.sort(key=lambda f: (-f[0], f[1]))
        return [placement for goodput, _, placement in found if goodput > 0]

    def _enough(
        self, p: Role, d: Role, prefills: dict[Role, float], decodes: dict[Role, float], rate: float
    ) -> Placement:
        """As many instances of the best of each phase as the rate needs."""
        placement = Placement(p, d, math.ceil(rate / prefills[p]), math.ceil(rate / decodes[d]))
        if placement.gpus > self.gpus:
            self._short(placement.gpus)
        return placement

    def _mended(self, placement: Placement, rate: float) -> Placement:
        """With another instance where the phases together break too many promises, as long as there are GPUs."""
        while not self.search.judge(self.search.run(self.systems.disaggregated(placement), rate), self.search.slo):
            more = [
                placement._replace(prefills=placement.prefills + 1),
                placement._replace(decodes=placement.decodes + 1),
            ]
            more = [p for p in more if p.gpus <= self.gpus]
            if not more:
                return placement
            placement = max(more, key=lambda p: (self._attained(p, rate), -p.gpus))
        return placement

    # ---- what cannot be, without a simulation

    def _first(self, role: Role) -> bool:
        """Whether enough prompts would have their first token in time if each were alone."""
        latency, limit = self.systems.group(role).latency, self.search.slo.first
        in_time = sum(latency.unloaded_prefill(n.prompt) <= limit for n in self.search.lengths)
        return in_time >= self.share * len(self.search.lengths)

    def _gap(self, role: Role) -> bool:
        """The same of the gaps between tokens; a text of one token has none."""
        latency, limit = self.systems.group(role).latency, self.search.slo.gap
        in_time = sum(n.output == 1 or latency.unloaded_step(n.prompt + 1) <= limit for n in self.search.lengths)
        return in_time >= self.share * len(self.search.lengths)

    @property
    def share(self) -> float:
        """Of requests that must keep both promises."""
        return self.search.judge.share

    # ---- judging

    def _attained(self, placement: Placement, rate: float) -> float:
        return attainment(self.search.run(self.systems.disaggregated(placement), rate), self.search.slo)

    def _judged(self, placements: Sequence[Placement]) -> list[Option]:
        """Both phases simulated together, best first; of equals who needs fewer GPUs."""
        step = self.told(2 * len(placements))
        found = []
        for p in placements:
            system = self.systems.disaggregated(p)
            both = self.search.goodput(system, p.gpus)
            step()
            found.append(self._option(str(p), p.gpus, both, system, p))
            step()
        return sorted(found, key=lambda o: (-o.goodput, o.gpus))

    def _option(
        self, what: str, gpus: int, goodput: float, system: System, placement: Placement | None = None
    ) -> Option:
        stall = self.search.stall(system, goodput * gpus) if goodput else None
        return Option(what, gpus, goodput, self.search.apart().goodput(system, gpus), stall, placement)

    def colocated(self, profile: Profile | None = None, note: str = "") -> list[Option]:
        """The best instance of each way to do both at one place.

        Args:
            profile: of another engine, if not the planner's own.
            note: to tell that.
        """
        systems = self.systems if profile is None else self.systems._replace(profile=profile)
        roles = self._roles(self.gpus)
        step = self.told(2 * len(roles))
        best = []
        for kind in (PrefillFirst, Chunked):
            found = []
            for role in roles:
                hope = self._first(role) and self._gap(role)
                goodput = self.search.goodput(systems.colocated(role, kind), role.gpus) if hope else 0.0
                found.append((goodput, -role.gpus, role))
                step()
            goodput, _, role = max(found)
            what = f"colocated {role}, {kind.name}{note}"
            best.append(self._option(what, role.gpus, goodput, systems.colocated(role, kind)))
        return best

    def _plan(self, options: Sequence[Option], chosen: Placement | None, replicas: int) -> Plan:
        assert chosen is not None
        attained = None if self.rate is None else self._attained(chosen, self.rate / replicas)
        return Plan(options, chosen, replicas, attained)

    # ---- refusals

    def feasible(self, roles: Sequence[Role]) -> None:
        """Raises:
        UserError: no placement can keep a promise even for a request that is alone.
        """
        if not roles:
            name = self.systems.profile.shape.name
            message = f"no placement of {name} is known that fits {self.gpus} GPUs twice; give more, or larger ones"
            raise UserError(message, param="gpus", code="infeasible")
        slo, prompts = self.search.slo, [n.prompt for n in self.search.lengths]
        latencies = [self.systems.group(role).latency for role in dict.fromkeys(roles)]
        first = min(quantile([x.unloaded_prefill(n) for n in prompts], self.share) for x in latencies)
        gap = min(quantile([x.unloaded_step(n + 1) for n in prompts], self.share) for x in latencies)
        for flag, limit, bound, what, possible in (
            ("slo-ttft", slo.first, first, f"prefill time of {self.share:.0%} of the prompts", self._first),
            ("slo-tpot", slo.gap, gap, "time of a decode step", self._gap),
        ):
            if not any(possible(role) for role in dict.fromkeys(roles)):
                message = (
                    f"infeasible: --{flag} {limit:g} s is below the unloaded {what}, {1e3 * bound:.0f} ms (simulated)"
                )
                raise UserError(message, param=flag, code="infeasible")

    def _nothing(self) -> None:
        message = f"no placement keeps these promises at {self.search.tolerance:g} requests/s per GPU (simulated)"
        raise UserError(message, param="slo-ttft", code="infeasible")

    def _short(self, needed: int) -> None:
        message = f"{self.rate:g} requests/s need {needed} GPUs (simulated), and there are {self.gpus}"
        raise UserError(message, param="gpus", code="infeasible")


def _best(goodputs: dict[Role, float]) -> Role:
    """The most per GPU; of equals who needs fewer."""
    return max(goodputs, key=lambda role: (goodputs[role] / role.gpus, -role.gpus))
