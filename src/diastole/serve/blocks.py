"""Answers of Anthropic's Messages API: content blocks, whole and as the events of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from diastole.chat.tools import CallEnd, CallPiece, CallStart, Piece
from diastole.serve.answer import Call, fresh_id


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


ContentBlock = TextBlock | ToolUseBlock


class Spent(msgspec.Struct):
    """``input_tokens`` are those that were not found in the prefix cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class MessageReply(msgspec.Struct, tag_field="type", tag="message"):
    id: str
    model: str
    content: list[ContentBlock]
    usage: Spent
    stop_reason: str | None = None
    stop_sequence: str | None = None
    role: str = "assistant"


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    message: MessageReply


class BlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    index: int
    content_block: ContentBlock


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    text: str


class InputDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    partial_json: str


class BlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    index: int
    delta: TextDelta | InputDelta


class BlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    index: int


class MessageEnd(msgspec.Struct):
    stop_reason: str
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    delta: MessageEnd
    usage: Spent


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    pass


class Ping(msgspec.Struct, tag_field="type", tag="ping"):
    """Means nothing. The dialect sends it."""


BlockEvent = BlockStart | BlockDelta | BlockStop
MessagesEvent = MessageStart | BlockEvent | MessageDelta | MessageStop | Ping


def block_of(part: str | Call) -> ContentBlock:
    """A part of a whole answer."""
    if isinstance(part, str):
        return TextBlock(part)
    return ToolUseBlock(fresh_id("toolu_"), part.name, msgspec.json.decode(part.arguments))


class Blocks:
    """The events of an answer's blocks: one block is open at a time."""

    def __init__(self) -> None:
        self._index = -1
        self._texting = False  # a text block is open
        self._open = False

    def events(self, pieces: Iterable[Piece]) -> Iterator[BlockEvent]:
        """What these pieces add."""
        for piece in pieces:
            match piece:
                case str():
                    if not self._texting:
                        yield from self._begin(TextBlock(""))
                        self._texting = True
                    yield BlockDelta(self._index, TextDelta(piece))
                case CallStart():
                    yield from self._begin(ToolUseBlock(fresh_id("toolu_"), piece.name, {}))
                case CallPiece():
                    yield BlockDelta(self._index, InputDelta(piece.arguments))
                case CallEnd():
                    yield from self.close()

    def close(self) -> Iterator[BlockEvent]:
        """End the block that is open, if one is."""
        if self._open:
            yield BlockStop(self._index)
        self._open = self._texting = False

    def _begin(self, block: ContentBlock) -> Iterator[BlockEvent]:
        yield from self.close()
        self._index += 1
        self._open = True
        yield BlockStart(self._index, block)
