"""POST /v1/audio/transcriptions: the words of a recording, at once or as they are found."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from diastole.serve.errors import ApiError, of_user_error
from diastole.serve.exchange import Exchange
from diastole.serve.face import Face
from diastole.serve.hello import SOUND, Converter, Hello
from diastole.serve.interface import LiveService
from diastole.serve.livesession import LiveSession
from diastole.serve.sse import Events
from diastole.serve.upload import Form, parse
from diastole.types import Array, UserError

FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
LONGEST = 4 * 3600.0  # seconds of a recording
BLOCK = 1.0  # seconds that are read at a time
PAUSE = 0.6  # seconds between two words, after which a new line of subtitles begins


class Word(msgspec.Struct):
    word: str
    start: float
    end: float


class Transcription(msgspec.Struct, omit_defaults=True):
    """The answer in JSON; all but the text only where it shall be verbose."""

    text: str
    task: str = ""
    duration: float | None = None  # seconds
    words: list[Word] | None = None


class TranscriptDelta(msgspec.Struct, tag_field="type", tag="transcript.text.delta"):
    delta: str


class TranscriptDone(msgspec.Struct, tag_field="type", tag="transcript.text.done"):
    text: str


TranscriptEvent = TranscriptDelta | TranscriptDone


@dataclass(slots=True)
class Transcript:
    """What has been said so far."""

    words: list[Word] = field(default_factory=list)
    duration: float = 0.0
    _shown: str = ""  # the text that was told in deltas

    def take(self, event: dict[str, Any]) -> str:
        """What an event adds to the text that has been told."""
        kind = event["type"]
        if kind == "done":
            self.duration = event["seconds"]
        if kind == "final":
            self.words += [Word(**w) for w in event["words"]]
        if kind not in {"partial", "final"}:
            return ""
        text = self.text if kind == "final" else " ".join(filter(None, [self.text, event["text"]]))
        if not text.startswith(self._shown):  # what was told stays told
            return ""
        delta, self._shown = text[len(self._shown) :], text
        return delta

    @property
    def text(self) -> str:
        return " ".join(w.word for w in self.words)

    def lines(self) -> list[list[Word]]:
        """Words of each subtitle."""
        found: list[list[Word]] = []
        for word in self.words:
            if not found or word.start - found[-1][-1].end > PAUSE or len(found[-1]) >= 10:
                found.append([])
            found[-1].append(word)
        return found


async def transcriptions(face: Face, exchange: Exchange) -> None:
    """The words of a recording.

    Raises:
        ApiError: the request is wrong or cannot be served now.
    """
    face.check_ready()
    body = await exchange.body(face.config.max_upload_bytes)
    form = await asyncio.to_thread(parse, body, exchange.headers.get("content-type", ""))
    service, hello, way, streaming = _wishes(face, form)
    name, data = form.files.get("file", ("", b""))
    if not data:
        raise ApiError(400, "file is required: a recording.", param="file", code="missing_required_parameter")
    rate, blocks = await asyncio.to_thread(_open, name, data)
    hello.rate = rate
    try:
        converter = Converter(hello, service.card)
        params = hello.params()
    except UserError as e:
        raise of_user_error(e) from None
    session = LiveSession(service, params, converter, chunks=False)
    try:
        if streaming:
            async with Events(exchange, (), face.config.ping_seconds) as events:
                await exchange.run(_tell(session, blocks, events))
                await events.done()
            return
        transcript = Transcript()
        await exchange.run(_all(session, blocks, transcript))
    finally:
        await session.close()
    await _reply(exchange, transcript, way)


def _wishes(face: Face, form: Form) -> tuple[LiveService, Hello, str, bool]:
    """The model, its options, the form of the answer, and whether it is streamed.

    Raises:
        ApiError: one of the fields is wrong.
    """
    model = form.one("model")
    if not model:
        raise ApiError(400, "model is required.", param="model", code="missing_required_parameter")
    service = face.live(model)
    if service.card.quantity != SOUND:
        raise ApiError(400, f"{model} takes {service.card.quantity}, not sound.", param="model", code="wrong_model")
    way = form.one("response_format", "json")
    if way not in FORMATS:
        raise ApiError(400, f"response_format must be one of {', '.join(FORMATS)}.", param="response_format")
    streaming = form.one("stream", "false").lower()
    if streaming not in {"true", "false"}:
        raise ApiError(400, "stream must be true or false.", param="stream")
    options: dict[str, Any] = {}
    for option, usual in service.card.options.items():
        if option in form.fields:
            options[option] = _value(option, form.one(option), usual)
    return service, Hello(channels=1, resample=True, options=options), way, streaming == "true"


def _value(name: str, text: str, usual: Any) -> Any:
    """Raises:
    ApiError: 400, the text is no value of the option's type.
    """
    try:
        if isinstance(usual, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(usual)(text)
    except (ValueError, KeyError):
        message = f"{name} must be of type {type(usual).__name__}, not {text[:40]!r}."
        raise ApiError(400, message, param=name, code="invalid_value") from None


def _open(name: str, data: bytes) -> tuple[float, Iterator[Array]]:
    """The rate of a recording, and its samples block by block, all channels mixed into one.

    Raises:
        ApiError: 400, it cannot be read, or is too long.
    """
    try:
        import soundfile
    except ImportError:
        message = "This server lacks soundfile, which reads recordings: pip install 'diastole[signals]'."
        raise ApiError(503, message, code="not_installed") from None
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError:
        raise ApiError(
            400,
            f"The file {name[:100]!r} cannot be read as sound; WAV, FLAC, OGG and MP3 can.",
            param="file",
            code="invalid_file",
        ) from None
    rate = float(file.samplerate)
    if not 1_000 <= rate <= 400_000:
        raise ApiError(400, f"The file says {rate:g} samples a second.", param="file", code="invalid_file")
    if file.frames / rate > LONGEST:
        raise ApiError(400, f"A recording may last {LONGEST / 3600:g} hours at most.", param="file", code="too_long")
    return rate, _blocks(file, int(rate * BLOCK))


def _blocks(file: Any, size: int) -> Iterator[Array]:
    with file:
        left = int(file.samplerate * LONGEST)  # whatever its header says
        while left > 0 and len(block := file.read(size, dtype="float32", always_2d=True)):
            left -= len(block)
            yield np.nan_to_num(block.mean(1, keepdims=True), posinf=1.0, neginf=-1.0)


async def _events(session: LiveSession, blocks: Iterator[Array]) -> AsyncIterator[dict[str, Any]]:
    """What is found while the recording is fed.

    Raises:
        ApiError: the stream failed.
    """
    try:
        await session.opened()
    except UserError as e:
        raise of_user_error(e) from None
    feeding = asyncio.create_task(_feed(session, blocks))
    try:
        async for text in session.follow(0):
            event = msgspec.json.decode(text)
            if event["type"] == "error":
                raise ApiError(400 if not event["fatal"] else 503, event["message"], param="file", code=event["code"])
            yield event
        await feeding
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def _feed(session: LiveSession, blocks: Iterator[Array]) -> None:
    while (block := await asyncio.to_thread(next, blocks, None)) is not None:
        await session.room()
        session.feed(np.ascontiguousarray(block, "<f4").tobytes())
    session.end()


async def _all(session: LiveSession, blocks: Iterator[Array], transcript: Transcript) -> None:
    async for event in _events(session, blocks):
        transcript.take(event)


async def _tell(session: LiveSession, blocks: Iterator[Array], events: Events) -> None:
    transcript = Transcript()
    async for event in _events(session, blocks):
        if delta := transcript.take(event):
            await events.put(TranscriptDelta(delta))
    await events.put(TranscriptDone(transcript.text))


async def _reply(exchange: Exchange, transcript: Transcript, way: str) -> None:
    if way == "json":
        await exchange.reply_json(200, Transcription(transcript.text))
    elif way == "verbose_json":
        found = Transcription(transcript.text, "transcribe", transcript.duration, transcript.words)
        await exchange.reply_json(200, found)
    elif way == "text":
        await exchange.reply(200, (transcript.text + "\n").encode(), "text/plain; charset=utf-8")
    else:
        await exchange.reply(200, subtitles(transcript, way).encode(), "text/plain; charset=utf-8")


def subtitles(transcript: Transcript, way: str) -> str:
    """As SubRip or WebVTT has them."""
    comma = "," if way == "srt" else "."

    def at(seconds: float) -> str:
        ms = round(1000 * seconds)
        return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}{comma}{ms % 1000:03d}"

    parts = [] if way == "srt" else ["WEBVTT\n"]
    for i, words in enumerate(transcript.lines(), 1):
        head = f"{i}\n" if way == "srt" else ""
        text = " ".join(w.word for w in words)
        parts.append(f"{head}{at(words[0].start)} --> {at(words[-1].end)}\n{text}\n")
    return "\n".join(parts)
