"""Real clusters of this machine under a load: processes that share its two cores in different ways."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from diastole.bench.load.drive import Run, Timeline
from diastole.bench.load.work import Wish as Asked
from diastole.cluster.journal import Wish
from diastole.cluster.members import Member, Role
from diastole.cluster.placing import Here
from diastole.cluster.router import Cluster
from diastole.config import Bytes, Config, EngineConfig, ServiceConfig
from diastole.frontend import wire
from diastole.params import SamplingParams

MODEL = "smollm2-135m"
STREAMS = 32
MEMORY = 1 << 30  # bytes of pages of each engine
PATIENCE = 120.0  # seconds that a load may take beyond its last arrival


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to use the cores."""

    roles: tuple[Role, ...]
    use: tuple[str, ...] = ()
    gbit: float = 0.0  # of the network between engines; 0: none is emulated


@dataclass(slots=True)
class Served:
    """A load that was served."""

    run: Run
    said: dict[str, list[int]]
    moved: list[float] = field(default_factory=list)  # seconds from a held state to its being taken over


class Watched(Cluster):
    """A cluster that notes how long states take to move."""

    def __init__(self, *args: object, **more: object) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self.moved: list[float] = []
        self._held: dict[str, float] = {}

    def _move(self, wish: Wish) -> None:
        self._held[wish.name] = time.perf_counter()
        super()._move(wish)

    def _took(self, member: Member, name: str) -> None:
        if name in self._held:
            self.moved.append(time.perf_counter() - self._held.pop(name))
        super()._took(member, name)


class System:
    """A cluster that is up, for as long as it is entered."""

    def __init__(self, shape: Shape) -> None:
        cores = sorted(os.sched_getaffinity(0))
        each = max(len(cores) // len(shape.roles), 1)
        shares = [cores[i * each % len(cores) :][:each] for i in range(len(shape.roles))]
        service = ServiceConfig(
            model=MODEL, use=shape.use, max_streams=STREAMS, prefix_cache=False, context=8192, repetition_stop=False
        )
        engine = replace(EngineConfig(), threads=each, memory=Bytes(MEMORY), costs="")
        self._config = Config(engine=engine, service={MODEL: service})
        self.cluster = Watched(self._config, shape.roles, Here(), shares, shape.gbit * 1e9 / 8)
        self._hear: Callable[[wire.Reply], None] = lambda reply: None

    async def __aenter__(self) -> System:
        await self.cluster.start(lambda reply: self._hear(reply), lambda: None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cluster.stop()

    async def serve(self, asked: Sequence[Asked], times: Sequence[float]) -> Served:
        """All requests, each sent at its time in seconds from now."""
        began = time.perf_counter()
        lines = [Timeline(at, prompt=len(a.prompt)) for a, at in zip(asked, times, strict=True)]
        said: dict[str, list[int]] = {str(i): [] for i in range(len(asked))}
        left, done = set(said), asyncio.Event()
        self.cluster.moved.clear()

        def end(id: str, error: str | None = None) -> None:
            lines[int(id)].error = error
            left.discard(id)
            if not left:
                done.set()

        def hear(reply: wire.Reply) -> None:
            now = time.perf_counter() - began
            match reply:
                case wire.Heard(spoken):
                    for one in spoken:
                        line = lines[int(one.id)]
                        if one.ids:
                            line.times.append(now)
                            line.tokens += len(one.ids)
                            said[one.id] += one.ids
                        if one.finish is not None:
                            line.finish = one.finish
                            end(one.id)
                case wire.Refused(id, message):
                    end(id, message)
                case wire.Over(id, finish):
                    end(id, finish)

        self._hear = hear
        for i, (a, at) in enumerate(zip(asked, times, strict=True)):
            await asyncio.sleep(max(at - (time.perf_counter() - began), 0))
            params = SamplingParams(max_tokens=a.output, temperature=0, seed=0, ignore_eos=True)
            self.cluster.put(wire.Add(str(i), MODEL, np.array(a.prompt, np.int32).tobytes(), params))
        async with asyncio.timeout(PATIENCE):
            await done.wait()
        return Served(Run(lines, time.perf_counter() - began), said, list(self.cluster.moved))
