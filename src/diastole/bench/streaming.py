"""A recording through a model of live input as a stream would bring it, on a simulated clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from diastole import registry
from diastole.assets import resolve
from diastole.assets.models import open_model
from diastole.clock import FakeClock
from diastole.config import ServiceConfig
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.engine.live import assemble_live
from diastole.engine.service import Service
from diastole.kernels.table import Ops
from diastole.live import Chunk, LiveModel, LiveParams, Reading
from diastole.types import Array, Request

NAME = "live"


class Told(NamedTuple):
    """A reading, and the sample behind what had come by then."""

    reading: Reading
    came: int


def opened(model: str, ops: Ops) -> LiveModel:
    """A model of live input by its name or place.

    Raises:
        UserError: there is none.
    """
    checkpoint = open_model(resolve(model))
    found: LiveModel = registry.model(str(checkpoint.config.get("model_type"))).live(ops, checkpoint)
    return found


def serving(model: LiveModel, streams: int = 8) -> tuple[Engine, Service]:
    """An engine that runs it alone, on a clock that stands still."""
    service = assemble_live(NAME, model, ServiceConfig(max_streams=streams))
    return Engine([service], FakeClock(), LeastSlack()), service


def streamed(model: LiveModel, x: Array, pieces: Iterable[int], options: Mapping[str, Any] | None = None) -> list[Told]:
    """All readings of a stream whose input x (n, C) comes in pieces of so many samples, and then what is left.

    Raises:
        UserError: the model refuses the options or the input.
    """
    engine, _ = serving(model, 1)
    engine.add(Request("stream", NAME, None, LiveParams(options or {})))
    told: list[Told] = []
    at = 0
    for size in (*pieces, len(x)):
        piece = x[at : at + size]
        at += len(piece)
        engine.feed("stream", Chunk(piece, last=at == len(x)))
        while events := engine.step():
            told += [Told(reading, at) for event in events for reading in event.data.readings]
        if at == len(x):
            break
    return told
