"""What travels between a front end and an engine, in one process or two: tagged msgpack structs, never pickles."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from diastole.engine.trace import View
from diastole.live import LiveParams
from diastole.params import PictureParams, PoolParams, SamplingParams
from diastole.types import SLO, UserError

FRAME_BYTES = 4  # each frame begins with its length, little endian
LARGEST_FRAME = 256 * 2**20


class Add(msgspec.Struct, tag="add"):
    """Take a request in. ``prompt`` is int32 token ids as bytes.

    Between engines of a cluster it also carries what became of it elsewhere: the tokens that were ``said``, the seconds
    that have ``elapsed`` since it came, and whether its state is to be held (``Held``) after its next token.
    """

    id: str
    service: str
    prompt: bytes
    params: SamplingParams
    slo: SLO | None = None
    salt: str = ""
    priority: int = 0
    said: list[int] = []
    elapsed: float = 0.0
    hold: bool = False


class Fetch(msgspec.Struct, tag="fetch"):
    """Take over what another engine holds: fetch its state when there is room, and go on. Answered by ``Took`` or
    ``Lost``."""

    add: Add
    host: str
    port: int
    held: str  # its name there
    units: int


class Release(msgspec.Struct, tag="release"):
    """Give the state of a held request back: it goes on elsewhere."""

    id: str


class Embed(msgspec.Struct, tag="embed"):
    """Read a prompt and send its vector. ``prompt`` is int32 token ids as bytes."""

    id: str
    service: str
    prompt: bytes
    params: PoolParams
    slo: SLO | None = None


class Open(msgspec.Struct, tag="open"):
    """Open a live stream."""

    id: str
    service: str
    params: LiveParams


class Paint(msgspec.Struct, tag="paint"):
    """Make a picture."""

    id: str
    service: str
    params: PictureParams
    slo: SLO | None = None


class Feed(msgspec.Struct, tag="feed"):
    """Live input of a stream: samples of all channels, one after the other, as float32."""

    id: str
    data: bytes
    first: int | None = None  # number of the first sample; None: it follows what came before
    last: bool = False  # nothing more will come


class Abort(msgspec.Struct, tag="abort"):
    """End a request, or one choice of it."""

    id: str
    reason: str = "abort"
    choice: int | None = None


class Measure(msgspec.Struct, tag="measure"):
    """Send the meters' snapshots."""


class Trace(msgspec.Struct, tag="trace"):
    """Send what the engine holds now, and what it did after this step."""

    since: int


class Quit(msgspec.Struct, tag="quit"):
    """Stop once nothing runs any more; with ``now``, at once."""

    now: bool = False


class Ping(msgspec.Struct, tag="ping"):
    """Say that you are there. The engine answers between two steps."""


class Card(msgspec.Struct, tag="text"):
    """What a front end has to know of a service of texts."""

    name: str
    context: int
    vocab: int
    room: int  # tokens that the page pool holds
    width: int = 0  # numbers in a vector of ``Embed``
    priorities: bool = False  # whether they count
    fills: bool = False  # it settles the places of a text in any order
    approximate: bool = False  # and keeps rows that it should compute again


class LiveCard(msgspec.Struct, tag="live"):
    """What a front end has to know of a service of live streams: see ``live.Signal``."""

    name: str
    rate: float
    channels: list[str]
    hop: int
    window: int
    quantity: str
    kinds: list[str]
    options: dict[str, Any]  # of the model, with their defaults
    unit: str = ""


class PictureCard(msgspec.Struct, tag="picture"):
    """What a front end has to know of a service of pictures."""

    name: str
    size: tuple[int, int, int]  # height, width, channels
    classes: int  # that can be asked for
    labels: list[str]  # their names, if they have any
    steps: int  # that a request may have at most
    approximate: bool = False  # pictures are not those that the model would make by itself


AnyCard = Card | LiveCard | PictureCard


class Reload(msgspec.Struct, tag="reload"):
    """Load a service anew, beside the running one, and let it take over.

    ``toml`` is the whole configuration; ``card`` is what the front end knows of the running one.
    """

    service: str
    toml: str
    card: AnyCard


Command = Add | Fetch | Release | Embed | Open | Paint | Feed | Abort | Measure | Trace | Quit | Ping | Reload


def of_texts(card: AnyCard) -> Card:
    """Raises:
    UserError: it is that of a service of live streams, or of pictures.
    """
    if isinstance(card, PictureCard):
        raise UserError(f"{card.name} makes pictures, not texts", param="model", code="picture_model")
    if isinstance(card, LiveCard):
        raise UserError(f"{card.name} answers live input: open a stream", param="model", code="live_model")
    return card


class Ready(msgspec.Struct, tag="ready"):
    """The engine serves."""

    cards: list[AnyCard]
    kernels: str


class Failed(msgspec.Struct, tag="failed"):
    """The engine cannot start, or has died."""

    message: str
    param: str | None = None


class Refused(msgspec.Struct, tag="refused"):
    """A request can never be served."""

    id: str
    message: str
    param: str | None = None
    code: str | None = None


class Over(msgspec.Struct, tag="over"):
    """The engine ended a request with all its choices: see ``types.Ended``."""

    id: str
    finish: Literal["deadline", "error"]


class Spoken(msgspec.Struct, tag="spoken", array_like=True):
    """Tokens of one choice, with [id, logprob] alternatives where asked."""

    id: str
    choice: int
    ids: list[int]
    logprobs: list[tuple[float, list[tuple[int, float]]]] | None
    finish: str | None
    prompt: int
    cached: int
    drafted: int = 0  # tokens of the choice that were guessed so far; 0 also where this step guessed none
    kept: int = 0  # of them were right
    settled: list[tuple[int, int]] = []  # places and tokens of a text that is settled in any order
    steps: int = 0  # of such a text so far
    rows: int = 0  # that these computed


class Heard(msgspec.Struct, tag="heard"):
    """All that one engine step said."""

    spoken: list[Spoken]


class Opened(msgspec.Struct, tag="opened"):
    """A live stream can be fed."""

    id: str


class Beat(msgspec.Struct, tag="beat"):
    """What was found in a chunk of a live stream, or in several together: kind, start, end and values of each
    reading."""

    id: str
    start: float  # seconds of the stream
    end: float
    latency: float  # seconds from when the last sample of the first was there
    chunks: int
    missed: int  # of them, those whose time was over
    readings: list[tuple[str, float, float, dict[str, Any]]]
    lost: int = 0  # samples so far: see ``live.Counts``
    late: int = 0
    overrun: int = 0
    final: bool = False


class Painted(msgspec.Struct, tag="painted"):
    """A picture is so many steps on; ``picture``: what it is thought to become, or is with the last: bytes, line by
    line, all channels of a pixel together; empty: this step shows nothing."""

    id: str
    done: int
    steps: int
    encoded: int  # steps in which a UNet's encoder ran
    picture: bytes
    finish: str | None


class Unfed(msgspec.Struct, tag="unfed"):
    """A piece of live input was refused; the stream lives on."""

    id: str
    message: str
    param: str | None = None
    code: str | None = None


class Held(msgspec.Struct, tag="held"):
    """A request has said something and waits with its state, of so many units, to be taken over."""

    id: str
    units: int


class Took(msgspec.Struct, tag="took"):
    """A request goes on here; its state elsewhere is not needed any more."""

    id: str


class Lost(msgspec.Struct, tag="lost"):
    """The state of a request could not be fetched."""

    id: str
    why: str


class Vector(msgspec.Struct, tag="vector"):
    """The answer to ``Embed``: float32 numbers as bytes."""

    id: str
    data: bytes


class Stats(msgspec.Struct, tag="stats"):
    """Snapshots of the meters by service."""

    services: dict[str, Any]


class Traced(msgspec.Struct, tag="traced"):
    """The answer to one ``Trace``, in the order in which these came."""

    view: View


class Pong(msgspec.Struct, tag="pong"):
    """The engine is there."""


class Reloaded(msgspec.Struct, tag="reloaded"):
    """New requests go to a service that was loaded anew."""

    card: AnyCard


class NotReloaded(msgspec.Struct, tag="not_reloaded"):
    """A service could not be loaded anew; the one that runs goes on."""

    service: str
    message: str
    param: str | None = None
    code: str | None = None


Reply = (
    Ready
    | Failed
    | Refused
    | Over
    | Heard
    | Opened
    | Beat
    | Painted
    | Unfed
    | Held
    | Took
    | Lost
    | Vector
    | Stats
    | Traced
    | Pong
    | Reloaded
    | NotReloaded
)
