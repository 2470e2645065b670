"""POST /v1/images/generations: pictures, whole or with previews of what they become."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

import msgspec
import numpy as np

from diastole.frontend import wire
from diastole.frontend.types import RequestEnded
from diastole.params import MAX_PICTURE_STEPS, PictureParams
from diastole.serve.bounds import documented
from diastole.serve.errors import ApiError, ended_early, of_user_error
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.interface import PictureService
from diastole.serve.openai import SloWish, read_plain, wrong
from diastole.serve.replies import Cached, UsageReply
from diastole.serve.slo import slo_of
from diastole.serve.sse import Events
from diastole.types import SLO, UserError

MOST = 16  # pictures of a request
MOST_PREVIEWS = 16
LARGEST = 2048  # pixels of a side
FORMAT = "png"
# Fields that other servers know and that would change a picture, with the values that change nothing.
UNSERVED = {
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "output_compression": (100,),
    "style": (),
    "negative_prompt": ("",),
    "image": (),
    "mask": (),
    "strength": (),
    "encoder_propagation": (),
    "use": ([],),
    "priority": (0,),
}
Count = Annotated[int, documented(minimum=1, maximum=MOST)]
Steps = Annotated[int, documented(minimum=1, maximum=MAX_PICTURE_STEPS)]
Guidance = Annotated[float, documented(minimum=0, maximum=100)]
Seed = Annotated[int, documented(minimum=-(2**63), maximum=2**63 - 1)]


class ImagesRequest(msgspec.Struct, kw_only=True):
    """``steps`` and ``guidance`` may also be called as diffusers calls them."""

    prompt: Annotated[str, documented(maxLength=4000)]
    model: str | None = None
    n: Count | None = None
    size: str | None = None
    response_format: Annotated[str, documented(enum=["b64_json"])] | None = None
    output_format: Annotated[str, documented(enum=[FORMAT])] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, documented(minimum=0, maximum=MOST_PREVIEWS)] | None = None
    seed: Seed | None = None
    steps: Steps | None = None
    num_inference_steps: Steps | None = None
    guidance: Guidance | None = None
    guidance_scale: Guidance | None = None
    min_steps: Steps | None = None
    user: str | None = None
    slo: SloWish | None = None


class Denoising(msgspec.Struct):
    """What it took."""

    steps: int
    encoder_steps: int  # of these, those in which a UNet's encoder ran
    approximate: bool  # a technique made it cheaper, and other than the model by itself


class ImageData(msgspec.Struct):
    b64_json: str
    seed: int
    denoising: Denoising


class ImagesReply(msgspec.Struct):
    created: int
    data: list[ImageData]
    size: str
    output_format: str = FORMAT


class PartialImage(msgspec.Struct, tag_field="type", tag="image_generation.partial_image"):
    b64_json: str
    created_at: int
    size: str
    partial_image_index: int
    step: int
    steps: int
    output_format: str = FORMAT
    quality: str = "auto"
    background: str = "opaque"


class CompletedImage(msgspec.Struct, tag_field="type", tag="image_generation.completed"):
    b64_json: str
    created_at: int
    size: str
    seed: int
    denoising: Denoising
    output_format: str = FORMAT
    quality: str = "auto"
    background: str = "opaque"


ImageEvent = PartialImage | CompletedImage


async def images(face: Face, exchange: Exchange) -> None:
    """Pictures of a label.

    Raises:
        ApiError: the request is wrong or cannot be served now.
    """
    face.check_ready()
    request = await face.bodies.read(exchange, lambda body: read_plain(body, ImagesRequest, UNSERVED))
    service = face.pictures(request.model)
    making = Making(service, request, f"img-{exchange.id}", slo_of(request.slo, exchange.headers))
    async with face.running.enter(making, exchange.key.digest):
        exchange.notes["model"] = service.name
        if request.stream:
            async with Events(exchange, (), face.config.ping_seconds) as events:
                await exchange.run(_tell(making, events))
                await events.done()
            return
        replies: list[ImageData] = []
        await exchange.run(_all(making, replies))
    await exchange.reply_json(200, ImagesReply(making.created, replies, making.size))


class Making:
    """One request's pictures.

    Args:
        id: of the answer; the engine's request ids are made from it.

    Raises:
        ApiError: a field is wrong.
    """

    def __init__(self, service: PictureService, request: ImagesRequest, id: str, slo: SLO | None) -> None:
        self.service, self.id, self.model, self.created, self._slo = service, id, service.name, int(time.time()), slo
        self.count = 1 if request.n is None else request.n
        if not 1 <= self.count <= MOST:
            raise wrong("n", f"n must be 1 to {MOST}, not {self.count}.")
        if request.stream and self.count > 1:
            raise wrong("n", "n must be 1 where the answer is streamed.")
        self._previews = request.partial_images or 0
        if not 0 <= self._previews <= MOST_PREVIEWS or (self._previews and not request.stream):
            raise wrong("partial_images", f"partial_images must be 0 to {MOST_PREVIEWS}, and needs stream: true.")
        if request.response_format not in {None, "b64_json"}:
            raise wrong("response_format", "response_format must be b64_json: nothing is stored here.")
        if request.output_format not in {None, FORMAT}:
            raise wrong("output_format", f"output_format must be {FORMAT}.")
        self._larger, self.size = _size(request.size, service.card)
        self._params = _params(request, service.card, self._previews)
        _check_library()

    def usage(self) -> UsageReply:
        """Nothing is counted in tokens."""
        return UsageReply(0, 0, 0, Cached(0))

    async def steps(self, which: int) -> AsyncIterator[tuple[wire.Painted, str]]:
        """Of one of the pictures: steps that show something, with that as PNG in base64.

        Raises:
            ApiError: the engine refuses it, failed on it, or its time was up.
        """
        painted = self.service.painted(f"{self.id}-{which}", self.params(which), self._slo)
        try:
            async with aclosing(painted) as found:  # type: ignore[type-var]
                async for step in found:
                    if step.picture:
                        yield step, await asyncio.to_thread(self._png, step.picture)
        except UserError as e:
            raise of_user_error(e) from None
        except RequestEnded as e:
            raise ended_early(e) from None

    def params(self, which: int) -> PictureParams:
        """Of one of the pictures: each has its own seed."""
        p = self._params
        seed = (p.seed + which + 2**63) % 2**64 - 2**63
        return PictureParams(p.steps, p.label, p.guidance, seed, p.previews, p.min_steps)

    def denoising(self, step: wire.Painted) -> Denoising:
        """What a picture took."""
        return Denoising(step.done, step.encoded, self.service.card.approximate)

    def _png(self, picture: bytes) -> str:
        from PIL import Image

        h, w, c = self.service.card.size
        pixels = np.frombuffer(picture, np.uint8).reshape(h, w, c)
        pixels = pixels.repeat(self._larger, 0).repeat(self._larger, 1)
        made, out = Image.fromarray(pixels[..., 0] if c == 1 else pixels[..., :3]), io.BytesIO()
        made.save(out, "PNG")
        return base64.b64encode(out.getvalue()).decode()


def _check_library() -> None:
    """Raises:
    ApiError: 503, what writes pictures is not installed.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        message = "This server lacks Pillow, which writes pictures: pip install 'diastole[pictures]'."
        raise ApiError(503, message, code="not_installed") from None


def _size(wanted: str | None, card: wire.PictureCard) -> tuple[int, str]:
    """How many times as wide and high as the model makes it, and what that comes to.

    Raises:
        ApiError: 400, it is no whole number of times.
    """
    h, w, _ = card.size
    if wanted in {None, "auto"}:
        return 1, f"{w}x{h}"
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", wanted or "")
    wide, high = (int(found[1]), int(found[2])) if found else (0, 0)
    if wide % w or high % h or wide // w != high // h or not 0 < max(wide, high) <= LARGEST:
        most = LARGEST // max(w, h)
        message = f"size must be {w}x{h}, as {card.name} makes them, or up to {most} times that: {w * 8}x{h * 8}."
        raise wrong("size", message)
    return wide // w, f"{wide}x{high}"


def _params(request: ImagesRequest, card: wire.PictureCard, previews: int) -> PictureParams:
    """Raises:
    ApiError: 400, a field is wrong.
    """
    usual = PictureParams()
    steps = _either(request, "steps", "num_inference_steps", usual.steps)
    guidance = _either(request, "guidance", "guidance_scale", usual.guidance)
    if isinstance(steps, int) and steps > card.steps:
        raise wrong("steps", f"steps must be 1 to {card.steps}, not {steps}.")
    seed = secrets.randbits(63) if request.seed is None else request.seed
    every = max(int(steps) // (previews + 1), 1) if previews and steps > 0 else 0
    try:
        return PictureParams(int(steps), label_of(request.prompt, card), guidance, seed, every, request.min_steps)
    except UserError as e:
        raise of_user_error(e) from None


def _either(request: ImagesRequest, name: str, other: str, usual: float) -> float:
    """Raises:
    ApiError: 400, both names are used.
    """
    one, two = getattr(request, name), getattr(request, other)
    if one is not None and two is not None and one != two:
        raise wrong(other, f"{name} and {other} are the same: give one.")
    found: float | None = one if one is not None else two
    return usual if found is None else found


def label_of(prompt: str, card: wire.PictureCard) -> int | None:
    """The one label that a prompt names; of models whose labels have no names, its number. Nothing: none.

    Raises:
        ApiError: 400, it names none, or several.
    """
    said = prompt.strip().lower()
    if not said:
        return None
    if said.isascii() and said.isdecimal() and len(said) < 10 and int(said) < card.classes:
        return int(said)
    words = re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", said)
    known = {_one(label): i for i, label in enumerate(card.labels)}
    named = {known[word] for word in map(_one, words) if word in known}
    if len(named) != 1:
        there = ", ".join(card.labels) or f"numbers from 0 to {card.classes - 1}" if card.classes else "no labels"
        message = f"prompt must name one of what {card.name} can show: {there}; or be empty."
        raise wrong("prompt", message)
    return named.pop()


def _one(word: str) -> str:
    """Without the end of a plural."""
    word = word.lower()
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


async def _all(making: Making, replies: list[ImageData]) -> None:
    async def one(which: int) -> ImageData:
        shown = [step async for step in making.steps(which)]
        last, picture = shown[-1]
        return ImageData(picture, making.params(which).seed, making.denoising(last))

    tasks = [asyncio.create_task(one(i)) for i in range(making.count)]
    try:
        replies += await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _tell(making: Making, events: Events) -> None:
    nth = 0
    async for step, shown in making.steps(0):
        if step.finish is None:
            await events.put(PartialImage(shown, making.created, making.size, nth, step.done, step.steps))
            nth += 1
        else:
            seed, took = making.params(0).seed, making.denoising(step)
            await events.put(CompletedImage(shown, making.created, making.size, seed, took))
