"""What a client of ``/v1/realtime`` may wish for its session, in the API's words, and what that means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from diastole.types import UserError

PCM, BETA_PCM = "audio/pcm", "pcm16"
USUAL_RATE = 24_000  # samples per second
SILENCE = "endpoint_ms"  # the option of models that end utterances


class AudioFormat(msgspec.Struct, frozen=True):
    type: str = PCM
    rate: int | None = None


class Transcribing(msgspec.Struct, frozen=True):
    """``options`` are the model's own: ours alone."""

    model: str | None = None
    options: dict[str, Any] = {}


class Turns(msgspec.Struct, frozen=True):
    type: str = "server_vad"
    silence_duration_ms: int | None = None


class AudioInput(msgspec.Struct, frozen=True):
    format: AudioFormat | UnsetType | None = UNSET
    transcription: Transcribing | UnsetType | None = UNSET
    turn_detection: Turns | UnsetType | None = UNSET


class Audio(msgspec.Struct, frozen=True):
    input: AudioInput = AudioInput()


class Session(msgspec.Struct):
    """As it is now, and flat, as it was first."""

    type: str = "transcription"
    audio: Audio = Audio()
    input_audio_format: str | UnsetType = UNSET
    input_audio_transcription: Transcribing | UnsetType | None = UNSET
    turn_detection: Turns | UnsetType | None = UNSET


class Update(msgspec.Struct):
    session: Session


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is in force."""

    model: str = ""
    rate: int = USUAL_RATE
    turns: bool = True  # the model tells where an utterance ends; else the client does
    silence_ms: int | None = None  # that ends one; None: as long as the model would wait
    options: Mapping[str, Any] = field(default_factory=dict)

    def updated(self, data: bytes | str) -> Wishes:
        """With what an update says; what it leaves out stays.

        Raises:
            UserError: it is not to be understood, or wishes for what there is not.
        """
        try:
            session = msgspec.json.decode(data, type=Update).session
        except msgspec.ValidationError as e:
            raise UserError(f"session: {e}", param="session") from None
        if session.type != "transcription":
            raise UserError(f"session.type must be transcription, not {session.type!r:.40}", param="session.type")
        given = session.audio.input
        found = self._formatted(given.format)
        if session.input_audio_format is not UNSET:
            if session.input_audio_format != BETA_PCM:
                message = f"input_audio_format must be {BETA_PCM}, not {session.input_audio_format!r:.40}"
                raise UserError(message, param="session.input_audio_format")
            found = replace(found, rate=USUAL_RATE)
        for wished in (given.transcription, session.input_audio_transcription):
            if wished is not UNSET and wished is not None:
                found = replace(found, model=wished.model or found.model, options=wished.options)
        for turns in (given.turn_detection, session.turn_detection):
            if turns is not UNSET:
                found = found._turning(turns)
        return found

    def _formatted(self, given: AudioFormat | UnsetType | None) -> Wishes:
        if given is UNSET or given is None:
            return self
        if given.type != PCM:
            message = f"the format must be {PCM} (16 bits, little endian), not {given.type!r:.40}"
            raise UserError(message, param="session.audio.input.format.type")
        rate = given.rate or USUAL_RATE
        if not 8_000 <= rate <= 96_000:
            raise UserError(f"rate must be 8000 to 96000, not {rate}", param="session.audio.input.format.rate")
        return replace(self, rate=rate)

    def _turning(self, given: Turns | None) -> Wishes:
        if given is None:
            return replace(self, turns=False, silence_ms=None)
        at = "session.audio.input.turn_detection"
        if given.type != "server_vad":
            raise UserError(f"turn_detection must be null or of type server_vad, not {given.type!r:.40}", param=at)
        silence = given.silence_duration_ms
        if silence is not None and not 1 <= silence <= 60_000:
            raise UserError(f"silence_duration_ms must be 1 to 60000, not {silence}", param=at)
        return replace(self, turns=True, silence_ms=silence)

    def asked(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Options for a model that has these."""
        found = dict(self.options)
        if SILENCE in known and not self.turns:
            found[SILENCE] = 0
        elif SILENCE in known and self.silence_ms is not None:
            found[SILENCE] = self.silence_ms
        return found

    def shown(self, id: str, known: Mapping[str, Any]) -> dict[str, Any]:
        """The session as the API shows it."""
        options = {**known, **self.asked(known)}
        turns = {"type": "server_vad", "silence_duration_ms": options.get(SILENCE)} if self.turns else None
        transcription = {"model": self.model, "options": options} if self.model else None
        given = {"type": PCM, "rate": self.rate}
        audio = {"format": given, "transcription": transcription, "turn_detection": turns, "noise_reduction": None}
        return {
            "id": id,
            "object": "realtime.transcription_session",
            "type": "transcription",
            "audio": {"input": audio},
        }
