"""The shapes of the Responses API's answers and events, which ``response_events`` makes as plain objects."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputMessage(TypedDict):
    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class CachedInput(TypedDict):
    cached_tokens: int


class ReasonedOutput(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: CachedInput
    output_tokens: int
    output_tokens_details: ReasonedOutput
    total_tokens: int


class Reason(TypedDict):
    reason: str


class Failure(TypedDict):
    code: str
    message: str


class Reasoning(TypedDict):
    effort: None
    summary: None


class TextForm(TypedDict):
    format: dict[str, Any]


class ResponseReply(TypedDict):
    """A response, whole or as far as it is."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Status
    model: str
    output: list[OutputMessage]
    error: Failure | None
    incomplete_details: Reason | None
    usage: ResponseUsage | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    temperature: float
    top_p: float
    text: TextForm
    tools: list[Any]
    tool_choice: str
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: Reasoning
    background: bool
    store: bool
    truncation: str
    user: str | None


class Numbered(TypedDict):
    type: str
    sequence_number: int


class ResponsesEvent(Numbered, total=False):
    """An event. Which of these it has depends on its type."""

    response: ResponseReply
    output_index: int
    content_index: int
    item_id: str
    item: OutputMessage
    part: OutputText
    delta: str
    text: str
    logprobs: list[Any]
