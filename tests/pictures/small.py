"""A small UNet with random weights, as a checkpoint and as a service on a fake clock."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diastole import registry
from diastole.clock import FakeClock
from diastole.config import ServiceConfig
from diastole.engine.denoise import assemble_denoise
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.engine.executor import Simulated
from diastole.engine.service import Service
from diastole.kernels.table import load
from diastole.loops.denoise import Shown
from diastole.params import PictureParams
from diastole.recipes import unet
from diastole.types import SLO, Array, Request
from diastole.weights import open_checkpoint

SIZES = unet.Sizes(
    sample_size=8, in_channels=2, block_out_channels=(16, 24), attention=(False, True), layers_per_block=1,
    norm_num_groups=4, attention_head_dim=8, num_class_embeds=4,
)  # fmt: skip
PLAN = unet.Plan(sizes=SIZES)


@cache
def net(sizes: unet.Sizes = SIZES) -> unet.Net:
    torch.manual_seed(2)
    made = unet.Net(sizes)
    with torch.no_grad():
        for p in made.parameters():
            p += 0.1 * torch.randn(p.shape)
    return made.eval()


def written(out: Path, sizes: unet.Sizes = SIZES, **more: Any) -> Path:
    unet.write(net(sizes), unet.Plan(sizes=sizes), out, {}, torch.float32, **more)
    return out


def model(place: Path) -> Any:
    checkpoint = open_checkpoint(place)
    return registry.model(str(checkpoint.config["model_type"])).denoiser(load(1), checkpoint)


def service(place: Path, *use: str, streams: int = 8) -> Service:
    return assemble_denoise("small", model(place), ServiceConfig(model="small", use=use, max_streams=streams))


class Life:
    """A service with an engine on a fake clock, and what its requests have shown."""

    def __init__(self, of: Service) -> None:
        self.clock = FakeClock()
        self.service, self.engine = of, Engine([of], self.clock, LeastSlack(), Simulated(self.clock))
        self.shown: dict[str, list[Shown]] = {}

    def ask(self, id: str, wish: PictureParams, slo: SLO | None = None) -> None:
        self.engine.add(Request(id, "small", None, wish, slo or SLO()))

    def step(self) -> None:
        for event in self.engine.step() or ():
            self.shown.setdefault(event.id, []).append(event.data)

    def finish(self) -> Life:
        for _ in range(4000):
            if not self.engine.busy:
                return self
            self.step()
        raise AssertionError("a stream is stuck")

    def picture(self, id: str) -> Array:
        found = self.shown[id][-1].picture
        assert found is not None
        return found

    def check(self) -> None:
        wrong: list[str] = []
        ledger = self.service.ledger
        ledger.check(wrong.append)
        ledger.pools["cell"].check([s.leases["cell"] for s in ledger.running], wrong.append)
        assert not wrong, wrong
        if not self.engine.busy:
            assert self.service.ledger.pools["cell"].used == 0  # type: ignore[attr-defined]


def alone(of: Service, wish: PictureParams) -> Array:
    life = Life(of)
    life.ask("a", wish)
    life.finish().check()
    return life.picture("a")


@torch.no_grad()
def slowly(
    wish: PictureParams, keys: Sequence[int] | None = None, noise: float = 0.0, below: float = 0.5, apart: bool = False
) -> Array:
    """The picture, step by step, in torch, as the papers write it down.

    Args:
        keys: steps in which the encoder runs; None: all.
        apart: tell pictures of the branches in two calls.
    """
    made = net()
    shape = (SIZES.sample_size, SIZES.sample_size, SIZES.in_channels)
    begun = np.random.Generator(np.random.Philox(key=wish.seed)).standard_normal(shape, np.float32)
    x = begun = torch.from_numpy(begun).permute(2, 0, 1)[None]
    shares = unet.kept_shares()
    apart_ = unet.TIMES // wish.steps
    times = [i * apart_ for i in reversed(range(wish.steps))]
    nothing = SIZES.num_class_embeds - 1
    labels = [nothing] if wish.label is None else [wish.label] if wish.guidance == 1 else [nothing, wish.label]
    kept: dict[int, Any] = {}
    for i, t in enumerate(times):
        if t / unet.TIMES < below:
            x = x + noise * begun
        found = []
        for label in labels:
            emb = made.embedded(torch.tensor([t]), torch.tensor([label]))
            if keys is None or i in keys:
                kept[label] = made.encode(x, emb)
            found.append(made.decode(*kept[label], emb))
        e = found[-1] if len(found) == 1 else found[0] + wish.guidance * (found[1] - found[0])
        share, then = shares[t], shares[times[i + 1]] if i + 1 < len(times) else 1.0
        clean = (x - (1 - share) ** 0.5 * e) / share**0.5
        x = then**0.5 * clean + (1 - then) ** 0.5 * e
    picture: Array = x[0].permute(1, 2, 0).numpy().clip(-1, 1)
    return picture
