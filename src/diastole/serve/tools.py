"""Tools in OpenAI's words: definitions, the choice among them, earlier calls, and calls in answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from diastole.chat.tools import AUTO, REQUIRED, CallEnd, CallPiece, CallStart, Piece
from diastole.serve.answer import Answer, fresh_id
from diastole.serve.openai import ChatRequest, Message, ToolCall, ToolChoice, required, unsupported, wrong
from diastole.serve.toolbox import NONE, Definition, Toolbox, toolbox

CHOICES = (NONE, AUTO, REQUIRED)


class FunctionReply(msgspec.Struct):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallReply(msgspec.Struct):
    """A call; in a stream one piece of it, with id and name in the first."""

    function: FunctionReply
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    index: int | UnsetType = UNSET


def toolbox_of(request: ChatRequest) -> Toolbox:
    """The tools of a request.

    Raises:
        ApiError: a definition or the choice is wrong.
    """
    definitions = []
    for i, tool in enumerate(request.tools or ()):
        path = f"tools[{i}]"
        if tool.type != "function":
            raise unsupported(f"{path}.type", f"Only tools of type 'function' are, not {tool.type[:40]!r}.")
        given, function = tool.function, f"{path}.function"
        if given is None:
            raise required(function)
        definitions.append(
            Definition(
                f"{function}.name",
                f"{function}.parameters",
                given.name,
                given.description,
                given.parameters,
                bool(given.strict),
            )
        )
    choice = _choice(request.tool_choice, bool(definitions))
    return toolbox(definitions, choice, request.parallel_tool_calls is not False, "tool_choice.function.name")


def _choice(given: str | ToolChoice | None, any_: bool) -> str:
    if given is None:
        return AUTO if any_ else NONE
    if isinstance(given, str):
        if given not in CHOICES:
            message = f"tool_choice must be one of {', '.join(CHOICES)}, or name a function, not {given[:40]!r}."
            raise wrong("tool_choice", message)
        choice = given
    elif given.type != "function":
        raise unsupported("tool_choice.type", f"Only 'function' is, not {given.type[:40]!r}.")
    elif given.function is None:
        raise required("tool_choice.function")
    else:
        choice = given.function.name
    if not any_ and choice != NONE:
        raise wrong("tool_choice", "tool_choice may be given only with tools.")
    return choice


def plain_calls(calls: Sequence[ToolCall], path: str) -> list[dict[str, Any]]:
    """Earlier calls as templates want them: arguments as objects.

    Raises:
        ApiError: a type is not "function", or arguments are no JSON object.
    """
    plain = []
    for i, call in enumerate(calls):
        where = f"{path}[{i}]"
        if call.type != "function":
            raise unsupported(f"{where}.type", f"Only 'function' is, not {call.type[:40]!r}.")
        try:
            arguments = msgspec.json.decode(call.function.arguments or "{}")
        except (msgspec.MsgspecError, ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            field = f"{where}.function.arguments"
            raise wrong(field, f"{field} must be a string that holds a JSON object.")
        function = {"name": call.function.name, "arguments": arguments}
        plain.append({"id": call.id, "type": "function", "function": function})
    return plain


def call_names(messages: Sequence[Message]) -> dict[str, str]:
    """Functions by the ids of their calls."""
    return {call.id: call.function.name for m in messages for call in m.tool_calls or ()}


def whole_calls(answer: Answer) -> list[ToolCallReply] | UnsetType:
    """The calls of an answer; UNSET if there are none."""
    calls = [
        ToolCallReply(FunctionReply(call.name, call.arguments), fresh_id("call_"), "function") for call in answer.calls
    ]
    return calls or UNSET


def streamed_call(piece: Piece) -> ToolCallReply | None:
    """A piece of a call as a stream shows it; None if it shows nothing."""
    match piece:
        case CallStart():
            function = FunctionReply(piece.name, "")
            return ToolCallReply(function, fresh_id("call_"), "function", piece.index)
        case CallPiece():
            return ToolCallReply(FunctionReply(arguments=piece.arguments), index=piece.index)
        case CallEnd() | str():
            return None
