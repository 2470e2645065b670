"""Live streams, pictures and texts of masked models in clusters of real small services."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.test_router import play
from cluster.toys import Front
from diastole import registry
from diastole.cluster.worker import portable
from diastole.config import ServiceConfig
from diastole.engine.live import assemble_live
from diastole.engine.service import Service
from diastole.frontend import wire
from diastole.kernels.table import load
from diastole.live import LiveParams
from diastole.params import PictureParams
from diastole.types import UserError
from diastole.weights import open_checkpoint
from live import small as live
from masked import small as masked
from pictures import small as pictures

BOTH = ["both", "both"]
WISH = PictureParams(steps=40, seed=3, label=1, previews=1)
TEXT = masked.params(24, seed=5, temperature=0.7)
PROMPT = np.arange(10, 30, dtype=np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model of each kind."""
    made: Path = tmp_path_factory.mktemp("models")
    pictures.written(made / "pictures")
    masked.written(made / "masked")
    net = live.classifier()
    net.register_buffer("covariance", torch.eye(5))
    live.written(net, live.classifier_config(), made / "live")
    return made


def services(folder: Path) -> list[Service]:
    """Of all of them, anew for each engine."""
    checkpoint = open_checkpoint(folder / "live")
    model = registry.model("dbconformer").live(load(1), checkpoint)
    found = [pictures.service(folder / "pictures"), masked.service(folder / "masked")]
    found[0].name, found[1].name = "pictures", "masked"
    return [*found, assemble_live("live", model, ServiceConfig(model="live", max_streams=4))]


def scene(work: Callable[[Front], Awaitable[None]], folder: Path, roles: Any = BOTH) -> None:
    async def whole() -> None:
        async with Front(roles, also=partial(services, folder)) as front:
            await work(front)
            await front.clean()
            assert not len(front.cluster.staying)

    play(whole)


def told(front: Front, id: str) -> list[wire.Painted]:
    return [r for r in front.others if isinstance(r, wire.Painted) and r.id == id]


def alone(folder: Path) -> bytes:
    """The picture that one engine makes."""
    picture = pictures.alone(pictures.service(folder / "pictures"), WISH)
    return ((picture + 1) * 127.5).round().astype(np.uint8).tobytes()


def test_a_picture_is_made_again_when_its_engine_dies(folder: Path) -> None:
    async def work(front: Front) -> None:
        for i in range(4):
            front.cluster.put(wire.Paint(str(i), "pictures", WISH))
        await front.until(lambda: len(told(front, "0")) > 3)
        front.cluster.members[0].kill()
        await front.until(lambda: all(told(front, str(i)) and told(front, str(i))[-1].finish for i in range(4)))
        for i in range(4):
            steps = [r.done for r in told(front, str(i))]
            assert steps == sorted(set(steps)), "a step was told twice"
            assert told(front, str(i))[-1].picture == alone(folder)

    scene(work, folder)


def test_a_live_stream_ends_with_its_engine_and_no_other_does(folder: Path) -> None:
    x = np.random.default_rng(0).standard_normal((150, 5)).astype(np.float32)

    def beats(front: Front, id: str) -> list[wire.Beat]:
        return [r for r in front.others if isinstance(r, wire.Beat) and r.id == id]

    async def work(front: Front) -> None:
        for id in "ab":
            front.cluster.put(wire.Open(id, "live", LiveParams(deadline=60.0)))
            front.cluster.put(wire.Feed(id, x.tobytes()))
        await front.until(lambda: bool(beats(front, "a") and beats(front, "b")))
        front.cluster.members[0].kill()
        await front.until(lambda: bool(front.over))
        assert front.over == {"a": "error"}
        front.cluster.put(wire.Feed("a", x.tobytes()))  # nobody hears it
        front.cluster.put(wire.Feed("b", x.tobytes(), last=True))
        await front.until(lambda: beats(front, "b")[-1].final)
        front.cluster.put(wire.Open("c", "live", LiveParams(deadline=60.0)))
        front.cluster.put(wire.Abort("c"))
        front.cluster.put(wire.Open("d", "live", LiveParams(options={"nothing": 1})))
        await front.until(lambda: "d" in front.refused)

    scene(work, folder)


def test_texts_that_are_settled_in_any_order_are_begun_again(folder: Path) -> None:
    alone_ = masked.alone(masked.service(folder / "masked"), PROMPT.tolist(), TEXT)

    async def work(front: Front) -> None:
        for i in range(4):
            front.cluster.put(wire.Add(str(i), "masked", PROMPT.tobytes(), TEXT))
        await front.until(lambda: bool(front.said))
        front.cluster.members[1].kill()
        await front.until(lambda: len(front.finished) + len(front.over) + len(front.refused) == 4)
        assert [front.said[str(i), 0] for i in range(4)] == [alone_] * 4

    scene(work, folder)


def test_prefill_and_decode_apart_are_for_texts_only(folder: Path) -> None:
    for service in services(folder):
        with pytest.raises(UserError, match="use replicas"):
            portable(service)
