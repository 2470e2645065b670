"""Answers of the OpenAI API, as structs whose fields are exactly the JSON's."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from diastole import __version__
from diastole.frontend.types import Delta, TokenLogprob
from diastole.serve.interface import Tokenizer
from diastole.serve.tools import ToolCallReply

FINGERPRINT = f"diastole-{__version__}"
LEAST_LOGPROB = -9999.0  # JSON has no minus infinity


class Cached(msgspec.Struct):
    cached_tokens: int


class Predicted(msgspec.Struct):
    """Tokens that were guessed ahead of an answer: those that became part of it, and the others."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class UnmaskingReply(msgspec.Struct):
    """What it took to settle the places of the answers."""

    steps: int
    rows: int  # of the model, over all steps
    approximate: bool  # some rows were seen as they had been computed before


class SettledReply(msgspec.Struct):
    """A place of an answer that was settled just now."""

    index: int  # of the place among the answer's tokens
    token: int
    text: str


class UsageReply(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Cached
    completion_tokens_details: Predicted | UnsetType = UNSET  # where something was guessed
    unmasking: UnmaskingReply | UnsetType = UNSET  # of masked language models


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ContentLogprob]
    refusal: None = None


class ChatMessage(msgspec.Struct, tag_field="role", tag="assistant"):
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCallReply] | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatReply(msgspec.Struct, tag_field="object", tag="chat.completion"):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReply
    system_fingerprint: str = FINGERPRINT


class ChatDelta(msgspec.Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallReply] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    settled: list[SettledReply] | UnsetType = UNSET  # of masked language models


class ChatChunk(msgspec.Struct, tag_field="object", tag="chat.completion.chunk"):
    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageReply | UnsetType | None = UNSET  # null in all but the last if asked for, else not there
    system_fingerprint: str = FINGERPRINT


class CompletionLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    settled: list[SettledReply] | UnsetType = UNSET  # of masked language models, in a stream


class CompletionReply(msgspec.Struct, tag_field="object", tag="text_completion"):
    """Also a chunk of a stream, where only the last one has usage."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageReply | UnsetType | None = UNSET
    system_fingerprint: str = FINGERPRINT


def settled_of(delta: Delta) -> list[SettledReply] | UnsetType:
    """What a piece says of places that were settled in any order."""
    return UNSET if delta.settling is None else [SettledReply(*place) for place in delta.settling.places]


def chat_logprobs(tokenizer: Tokenizer, tokens: tuple[TokenLogprob, ...]) -> list[ContentLogprob]:
    """Log probabilities as chat completions show them."""
    content = []
    for token in tokens:
        top = [TopLogprob(*_shown(tokenizer, t.id, t.logprob)) for t in token.top]
        content.append(ContentLogprob(*_shown(tokenizer, token.id, token.logprob), top))
    return content


def _shown(tokenizer: Tokenizer, id: int, logprob: float) -> tuple[str, float, list[int]]:
    raw = tokenizer.token_bytes(id)
    return raw.decode("utf-8", "replace"), finite(logprob), list(raw)


def completion_logprobs(tokenizer: Tokenizer, tokens: tuple[TokenLogprob, ...], offset: int) -> CompletionLogprobs:
    """Log probabilities as plain completions show them. ``offset``: characters of the choice's earlier tokens."""
    reply = CompletionLogprobs([], [], [], [])
    for token in tokens:
        raw = tokenizer.token_bytes(token.id)
        reply.tokens.append(token_name(raw))
        reply.token_logprobs.append(finite(token.logprob))
        reply.top_logprobs.append({token_name(tokenizer.token_bytes(t.id)): finite(t.logprob) for t in token.top})
        reply.text_offset.append(offset)
        offset += started(raw)
    return reply


def token_name(raw: bytes) -> str:
    """A token as a string that no other token has: partial characters as ``bytes:\\xe2\\x82``."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)


def started(raw: bytes) -> int:
    """Characters of UTF-8 that begin in these bytes."""
    return sum(b & 0xC0 != 0x80 for b in raw)


def finite(logprob: float) -> float:
    """A log probability that JSON can say."""
    return max(logprob, LEAST_LOGPROB)
