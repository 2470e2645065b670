"""Masked language models and models of pictures run for a measurement: an engine of their own, requests in a crowd."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from types import TracebackType
from typing import Any, NamedTuple

from diastole.config import Config, EngineConfig, ServiceConfig
from diastole.frontend.assembly import build_engine
from diastole.params import PictureParams, SamplingParams
from diastole.types import Array, Ended, Event, Request


class Written(NamedTuple):
    """A text that was settled."""

    ids: tuple[int, ...]  # every place, also those behind the end
    steps: int
    rows: int  # that these computed


class Painted(NamedTuple):
    """A picture."""

    x: Array  # (H, W, C) float32 from -1 to 1
    encoded: int  # steps in which the encoder ran


class _Desk:
    """One service on an engine of its own, in this process."""

    def __init__(self, model: str, use: Sequence[str], streams: int, threads: int, **settings: Any) -> None:
        service = ServiceConfig(model=model, use=tuple(use), max_streams=streams, **settings)
        self._engine, _, self.kernels = build_engine(
            Config(engine=EngineConfig(threads=threads), service={"desk": service})
        )
        (self.service,) = self._engine.services
        self._ids = count()

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()

    def _run(self, wishes: Sequence[tuple[Any, Any]]) -> list[list[Event]]:
        """Events of each, all asked for at once; as many as there is room for run together."""
        ids = [f"desk-{next(self._ids)}" for _ in wishes]
        for id, (inputs, params) in zip(ids, wishes, strict=True):
            self._engine.add(Request(id, self.service.name, inputs, params))
        found: dict[str, list[Event]] = {id: [] for id in ids}
        while self._engine.busy:
            for event in self._engine.step() or ():
                if isinstance(event.data, Ended):
                    raise RuntimeError(f"the engine ended a request: {event.data.finish}")
                found[event.id].append(event)
        return [found[id] for id in ids]


class Writer(_Desk):
    """A masked language model.

    Args:
        use: techniques.
        streams: texts that run together.
    """

    def __init__(self, model: str = "masked-lm", use: Sequence[str] = (), streams: int = 1, threads: int = 0) -> None:
        super().__init__(model, use, streams, threads, prefix_cache=False)

    def write(self, wishes: Sequence[tuple[Sequence[int], SamplingParams]]) -> list[Written]:
        """All of these texts."""
        written = []
        for (_, params), events in zip(wishes, self._run(wishes), strict=True):
            places = dict(place for e in events for place in e.data.settled)
            last = events[-1].data
            ids = tuple(places.get(i, -1) for i in range(params.max_tokens or 0))
            written.append(Written(ids, last.steps, last.rows))
        return written


class Painter(_Desk):
    """A model of pictures.

    Args:
        use: techniques.
        streams: pictures that are made together.
    """

    def __init__(self, model: str = "unet", use: Sequence[str] = (), streams: int = 1, threads: int = 0) -> None:
        super().__init__(model, use, streams, threads)

    def paint(self, wishes: Sequence[PictureParams]) -> list[Painted]:
        """All of these pictures."""
        last = [events[-1].data for events in self._run([(None, wish) for wish in wishes])]
        return [Painted(d.picture, d.encoded) for d in last]
