"""The routes that tell of the server itself: health, version, models and metrics."""

from __future__ import annotations

from typing import Any

import msgspec

from diastole import __version__
from diastole.serve import metrics
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.gate import shutting_down
from diastole.serve.hello import SOUND
from diastole.serve.interface import LiveService, PictureService, TextService

VECTORS = "mean of the language model's final hidden states, of length 1; not trained to compare sentences"


class StatusReply(msgspec.Struct):
    status: str


class VersionReply(msgspec.Struct):
    version: str


class Vectors(msgspec.Struct):
    """What a model's embeddings are."""

    dimensions: int
    kind: str = VECTORS


class Architecture(msgspec.Struct):
    input_modalities: list[str]
    output_modalities: list[str]


class ModelCard(msgspec.Struct, tag_field="object", tag="model"):
    """One name that requests may use; ``root`` is the service behind it."""

    id: str
    created: int
    root: str
    max_model_len: int
    embeddings: Vectors
    architecture: Architecture
    owned_by: str = "diastole"

    @classmethod
    def of(cls, name: str, service: TextService) -> ModelCard:
        """The card of a service under one of its names."""
        text = Architecture(["text"], ["text"])
        return cls(name, service.created, service.name, service.context, Vectors(service.width), text)


class LiveModelCard(msgspec.Struct, tag_field="object", tag="live_model"):
    """One name that live streams may use; ``root`` is the service behind it."""

    id: str
    created: int
    root: str
    rate: float  # samples a second
    channels: list[str]
    unit_ms: float  # of what it takes in at a time
    quantity: str
    unit: str  # of a sample of one, where that matters
    events: list[str]
    options: dict[str, Any]  # with their defaults
    architecture: Architecture
    owned_by: str = "diastole"

    @classmethod
    def of(cls, name: str, service: LiveService) -> LiveModelCard:
        """The card of a service under one of its names."""
        card = service.card
        modality = "audio" if card.quantity == SOUND else "signal"
        return cls(
            name,
            service.created,
            service.name,
            card.rate,
            card.channels,
            round(1000 * card.hop / card.rate, 3),
            card.quantity,
            card.unit,
            card.kinds,
            card.options,
            Architecture([modality], ["events"]),
        )


class PictureModelCard(msgspec.Struct, tag_field="object", tag="picture_model"):
    """One name that pictures may be asked of; ``root`` is the service behind it."""

    id: str
    created: int
    root: str
    size: str  # width x height
    labels: list[str]  # that a prompt may name
    most_steps: int
    approximate: bool
    architecture: Architecture
    owned_by: str = "diastole"

    @classmethod
    def of(cls, name: str, service: PictureService) -> PictureModelCard:
        """The card of a service under one of its names."""
        card = service.card
        size = f"{card.size[1]}x{card.size[0]}"
        made = Architecture(["text"], ["image"])
        return cls(name, service.created, service.name, size, card.labels, card.steps, card.approximate, made)


AnyModelCard = ModelCard | LiveModelCard | PictureModelCard


class ModelList(msgspec.Struct, tag_field="object", tag="list"):
    data: list[AnyModelCard]


async def health(face: Face, exchange: Exchange) -> None:
    """Whether the process should go on living: false only once its engine has died and cannot be restarted."""
    if face.lost:
        face.check_ready()
    await exchange.reply_json(200, StatusReply("ok"))


async def ready(face: Face, exchange: Exchange) -> None:
    """Whether requests would be served now."""
    if face.gate.draining:
        raise shutting_down()
    face.check_ready()
    await exchange.reply_json(200, StatusReply("ready"))


async def version(face: Face, exchange: Exchange) -> None:
    """The version of the server."""
    await exchange.reply_json(200, VersionReply(__version__))


async def models(face: Face, exchange: Exchange) -> None:
    """Every name that requests may use."""
    face.check_ready()
    cards: list[AnyModelCard] = [ModelCard.of(*item) for item in face.backend.services.items()]
    cards += [LiveModelCard.of(*item) for item in face.backend.live.items()]
    cards += [PictureModelCard.of(*item) for item in face.backend.pictures.items()]
    await exchange.reply_json(200, ModelList(cards))


async def model(face: Face, exchange: Exchange) -> None:
    """One name that requests may use.

    Raises:
        ApiError: 404 model_not_found.
    """
    face.check_ready()
    name = exchange.scope["path_params"]["id"]
    if name in face.backend.live:
        await exchange.reply_json(200, LiveModelCard.of(name, face.live(name)))
        return
    if name in face.backend.pictures:
        await exchange.reply_json(200, PictureModelCard.of(name, face.pictures(name)))
        return
    await exchange.reply_json(200, ModelCard.of(name, face.service(name)))


async def show_metrics(face: Face, exchange: Exchange) -> None:
    """What engine and server count, for Prometheus."""
    text = await metrics.page(face.backend, face.traffic, face.config.vllm_metrics)
    await exchange.reply(200, text, metrics.TYPE)
