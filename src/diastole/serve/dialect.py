"""Dialects: how three APIs word what every endpoint must say: errors, events, pings and the end of a stream."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from diastole.serve.errors import ApiError, ErrorReply, clean, kind

MESSAGES = "/v1/messages"  # the path where Anthropic's API begins
RESPONSES = "/v1/responses"


class MessagesErrorBody(msgspec.Struct):
    type: str
    message: str


class MessagesErrorReply(msgspec.Struct, tag_field="type", tag="error"):
    """An error in Anthropic's form."""

    error: MessagesErrorBody


class Dialect(Protocol):
    """What goes out besides answers."""

    @property
    def error_reply(self) -> type[msgspec.Struct]:
        """The form of an error."""
        ...

    @property
    def key_header(self) -> str | None:
        """A header that may carry the API key instead of "Authorization"."""
        ...

    @property
    def ping(self) -> bytes:
        """An event that means nothing."""
        ...

    @property
    def end(self) -> bytes:
        """What an event stream ends with."""
        ...

    def event(self, value: Any) -> bytes:
        """One event."""
        ...

    def error(self, error: ApiError) -> bytes:
        """An error's JSON."""
        ...

    def error_event(self, error: ApiError) -> bytes:
        """An error in an event stream."""
        ...


class OpenAI:
    error_reply: type[msgspec.Struct] = ErrorReply
    key_header = None
    ping = b": ping\n\n"
    end = b"data: [DONE]\n\n"

    def event(self, value: Any) -> bytes:
        return b"data: " + msgspec.json.encode(value) + b"\n\n"

    def error(self, error: ApiError) -> bytes:
        return error.body()

    def error_event(self, error: ApiError) -> bytes:
        return b"data: " + error.body() + b"\n\n"


class Anthropic:
    """Events have names: the tags of their structs."""

    error_reply: type[msgspec.Struct] = MessagesErrorReply
    key_header = "x-api-key"
    ping = b'event: ping\ndata: {"type":"ping"}\n\n'
    end = b""

    def event(self, value: Any) -> bytes:
        name: str = value.__struct_config__.tag
        return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"

    def error(self, error: ApiError) -> bytes:
        body = MessagesErrorBody(kind(error.status, {413: "request_too_large"}), clean(error.message))
        return msgspec.json.encode(MessagesErrorReply(body))

    def error_event(self, error: ApiError) -> bytes:
        return b"event: error\ndata: " + self.error(error) + b"\n\n"


class Responses(OpenAI):
    """Events are JSON objects named by their ``type``, and the last one says that it is the last."""

    end = b""

    def event(self, value: Any) -> bytes:
        name: str = value["type"]
        return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"


def dialect_of(path: str) -> Dialect:
    """What is spoken on a path."""
    if path == MESSAGES or path.startswith(MESSAGES + "/"):
        return Anthropic()
    return Responses() if path == RESPONSES else OpenAI()
