"""Systems: from placements, which are numbers, to clusters that can be simulated."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from diastole.sim.cluster import Colocated, DecodeAlone, Disaggregated, Group, PrefillAlone
from diastole.sim.colocated import PrefillFirst
from diastole.sim.latency import Prefill, saturation
from diastole.sim.life import Limits, Link
from diastole.sim.profile import Profile


class Role(NamedTuple):
    """How one instance is cut."""

    tensor: int  # GPUs that share every layer
    stages: int = 1  # of its pipeline

    @property
    def gpus(self) -> int:
        return self.tensor * self.stages

    def __str__(self) -> str:
        return f"TP{self.tensor}" + (f" PP{self.stages}" if self.stages > 1 else "")


class Placement(NamedTuple):
    """Instances of both phases.

    Attributes:
        cross: segments of the layers, each on a node of its own that holds that part of both phases; ``stages`` of the
            roles are those within a segment.
    """

    prefill: Role
    decode: Role
    prefills: int = 1
    decodes: int = 1
    cross: int = 1

    @property
    def gpus(self) -> int:
        return self.cross * (self.prefills * self.prefill.gpus + self.decodes * self.decode.gpus)

    def __str__(self) -> str:
        across = f", {self.cross} segments" if self.cross > 1 else ""
        return f"{self.prefills} x prefill {self.prefill} + {self.decodes} x decode {self.decode}{across}"


class Systems(NamedTuple):
    """Builds them for one model on one kind of GPU.

    Attributes:
        bandwidth: bytes per second of the link that caches move over.
    """

    profile: Profile
    bandwidth: float

    def group(self, role: Role, count: int = 1, cross: int = 1) -> Group:
        """Instances of this kind."""
        latency = self.profile.latency(role.tensor, role.stages * cross)
        limits = Limits(saturation=_saturation(latency.prefill))
        return Group(count, latency, self.profile.tokens(role.gpus * cross), limits)

    def disaggregated(self, p: Placement) -> Disaggregated:
        prefill, decode = self.group(p.prefill, p.prefills, p.cross), self.group(p.decode, p.decodes, p.cross)
        return Disaggregated(prefill, decode, self.link(p.cross))

    def prefill(self, role: Role) -> PrefillAlone:
        return PrefillAlone(self.group(role))

    def decode(self, role: Role) -> DecodeAlone:
        return DecodeAlone(self.group(role), self.link())

    def colocated(self, role: Role, kind: type[PrefillFirst], count: int = 1) -> Colocated:
        return Colocated(self.group(role, count), kind)

    def link(self, cross: int = 1) -> Link:
        """Every segment moves its own layers, at the same time."""
        return Link(self.bandwidth, self.profile.shape.token_bytes / cross)


@lru_cache(256)
def _saturation(prefill: Prefill) -> int:
    return saturation(prefill)
