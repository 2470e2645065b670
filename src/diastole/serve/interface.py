"""What the server needs of an engine's text face. ``diastole.frontend`` provides it; tests bring their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Protocol

from diastole.chat.tools import Format
from diastole.engine.trace import View
from diastole.frontend import wire
from diastole.frontend.client import Line, Step
from diastole.frontend.types import Delta
from diastole.live import LiveParams
from diastole.params import PictureParams, PoolParams, SamplingParams
from diastole.types import SLO, Array


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_ids(self) -> Collection[int]: ...

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of a text; with ``special``, the names of special tokens in it stand for these tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def token_bytes(self, id: int) -> bytes:
        """What one token stands for: often only a part of a character."""
        ...


class TextService(Protocol):
    """One language model."""

    @property
    def name(self) -> str: ...

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together, at most."""
        ...

    @property
    def created(self) -> int:
        """Seconds since the epoch."""
        ...

    @property
    def vocab(self) -> int: ...

    @property
    def width(self) -> int:
        """Numbers in a vector of ``embed``."""
        ...

    @property
    def priorities(self) -> bool:
        """Whether priorities of requests count; else there is only priority 0."""
        ...

    @property
    def approximate(self) -> bool:
        """Whether texts may be others than the model would write by itself, since it keeps what it should compute
        again."""
        ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def tool_format(self) -> Format:
        """How the model writes calls of tools."""
        ...

    async def chat_ids(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: dict[str, Any]
    ) -> list[int]:
        """A conversation as prompt ids, by the model's template; off the event loop. Arguments of tool calls are
        objects in it.

        Raises:
            UserError: the template refuses the messages, or there is none.
        """
        ...

    async def encode(self, text: str) -> list[int]:
        """A plain prompt as ids, with the beginning-of-text token where the model wants it."""
        ...

    def check(self, prompt: Sequence[int], params: SamplingParams | PoolParams) -> None:
        """Refuse what the engine would refuse.

        Raises:
            UserError: the prompt is empty or too long, or an id is outside the vocabulary.
        """
        ...

    def room_after(self, prompt: int) -> int:
        """Tokens that an answer to a prompt of so many tokens may have at most."""
        ...

    def stream(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        slo: SLO | None = None,
        salt: str = "",
        priority: int = 0,
    ) -> AsyncIterator[Delta]:
        """Run a request; ends after one final delta per choice. Closing or cancelling the iterator aborts it.

        Raises:
            UserError: the engine refuses it.
            RequestEnded: the engine failed on it.
            EngineLost: the engine ended.
        """
        ...

    async def embed(
        self, prompt: Sequence[int], params: PoolParams, *, request_id: str, slo: SLO | None = None
    ) -> Array:
        """The vector of a prompt: (width,) float32, of length 1. Cancelling this aborts it.

        Raises:
            RequestEnded: the engine ended it, by its deadline or because it failed on it.
        """
        ...


class LiveService(Protocol):
    """One model of live input."""

    @property
    def name(self) -> str: ...

    @property
    def card(self) -> wire.LiveCard: ...

    @property
    def created(self) -> int:
        """Seconds since the epoch."""
        ...

    def readings(self, id: str, params: LiveParams) -> AsyncIterator[Line]:
        """Open a stream: that it is open, what is found in it until its input has ended, and which pieces were refused.
        Closing or cancelling the iterator ends it.

        Raises:
            UserError: the engine refuses it.
            RequestEnded: the engine failed on it.
            EngineLost: the engine ended.
        """
        ...

    def feed(self, id: str, data: bytes, first: int | None = None, last: bool = False) -> None:
        """Samples of a stream that is open, all channels of one after the other as float32."""
        ...


class PictureService(Protocol):
    """One model of pictures."""

    @property
    def name(self) -> str: ...

    @property
    def card(self) -> wire.PictureCard: ...

    @property
    def created(self) -> int:
        """Seconds since the epoch."""
        ...

    def painted(self, id: str, params: PictureParams, slo: SLO | None = None) -> AsyncIterator[Step]:
        """Have a picture made: each step of it, until it is done. Closing or cancelling the iterator aborts it.

        Raises:
            UserError: the engine refuses it.
            RequestEnded: the engine failed on it.
            EngineLost: the engine ended.
        """
        ...


class Backend(Protocol):
    """An engine with its services."""

    @property
    def services(self) -> Mapping[str, TextService]:
        """Of texts, by name and by alias; empty until started."""
        ...

    @property
    def live(self) -> Mapping[str, LiveService]:
        """Of live input, likewise."""
        ...

    @property
    def pictures(self) -> Mapping[str, PictureService]:
        """Of pictures, likewise."""
        ...

    async def start(self) -> None:
        """Load everything.

        Raises:
            UserError: a setting or a model file is wrong.
        """
        ...

    async def stop(self, drain_seconds: float) -> None:
        """Wait so long for running requests, abort the rest, and end."""
        ...

    def alive(self) -> bool:
        """Whether there is an engine, or will be again: an engine that ends is restarted while there is hope."""
        ...

    def ready(self) -> bool:
        """Whether an engine serves now."""
        ...

    @property
    def processes(self) -> Sequence[int]:
        """Ids of processes that work for this one."""
        ...

    @property
    def restarts(self) -> int:
        """Engines that were started because the one before had ended."""
        ...

    async def reload(self, name: str, changes: Mapping[str, Any]) -> None:
        """Load a service anew, with these settings changed, while it and all others go on.

        Raises:
            UserError: it cannot be loaded so; the one that runs goes on.
            EngineLost: the engine ended.
        """
        ...

    async def stats(self) -> Mapping[str, Mapping[str, Any]]:
        """By service, what ``diastole.metrics.Meter.snapshot`` returns."""
        ...

    async def trace(self, since: int) -> View:
        """What the engine holds now, and what it did after step ``since``."""
        ...
