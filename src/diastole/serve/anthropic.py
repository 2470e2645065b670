"""Requests of Anthropic's Messages API, and what they are in the words of templates and ``SamplingParams``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from diastole.chat.tools import AUTO, REQUIRED
from diastole.params import SamplingParams
from diastole.serve import bounds
from diastole.serve.bounds import documented
from diastole.serve.limits import decode, decode_field
from diastole.serve.openai import checked_params, required, unsupported, wrong
from diastole.serve.toolbox import NONE, Definition, Toolbox, toolbox, unknown_result

# What a request calls the fields of ``SamplingParams``, and the prompt.
NAMES: Mapping[str, str] = {"stop": "stop_sequences", "prompt": "messages"}
# Fields that are not served, with the values that change nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "thinking": ({"type": "disabled"},),
    "service_tier": ("auto", "standard_only"),
    "mcp_servers": ([],),
    "speed": ("standard",),
}


class Block(msgspec.Struct):
    """A piece of content; which fields it has depends on its type."""

    type: str
    text: str | None = None
    # tool_use
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    # tool_result
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None


class Turn(msgspec.Struct):
    role: Annotated[str, documented(enum=("user", "assistant"))]
    content: str | Annotated[list[Block], documented(minItems=1)]


class ToolDefinition(msgspec.Struct):
    """A function. ``type`` is looked at first: tools of other types have other fields."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: Any = None
    strict: bool | None = None
    input_examples: list[Any] | None = None
    defer_loading: bool | None = None


class Choice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Metadata(msgspec.Struct):
    user_id: str | None = None


class CountRequest(msgspec.Struct, kw_only=True):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: Annotated[list[Turn], documented(minItems=1)]
    system: str | list[Block] | None = None
    tools: Annotated[list[ToolDefinition], documented(maxItems=bounds.MAX_TOOLS)] | None = None
    tool_choice: Choice | None = None
    cache_control: dict[str, Any] | None = None  # a hint that is not needed: every prefix is cached


class MessagesRequest(CountRequest, kw_only=True):
    """POST /v1/messages."""

    max_tokens: bounds.Tokens
    temperature: bounds.Temperature | None = None
    top_p: bounds.TopP | None = None
    top_k: bounds.PlainTopK | None = None
    stop_sequences: bounds.Stops | None = None
    stream: bool | None = None
    metadata: Metadata | None = None


R = TypeVar("R", bound=CountRequest)


def read(body: bytes, type: type[R]) -> R:
    """A request from its body. Fields that are not known are refused, as the API itself does.

    Raises:
        ApiError: it is no JSON, a field has the wrong type, or one is not served.
    """
    known = {f.encode_name for f in msgspec.structs.fields(type)}
    for name, raw in decode(body, dict[str, msgspec.Raw]).items():
        if name not in known:
            value = decode_field(raw, name[:100])
            if value is not None and value not in NEUTRAL.get(name, ()):
                raise unsupported(name[:100], "Leave it out.")
    return decode(body, type, checked=True)


def params_of(request: MessagesRequest) -> SamplingParams:
    """Sampling of a request.

    Raises:
        ApiError: a value is out of range.
    """
    given: dict[str, Any] = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop": None if request.stop_sequences is None else tuple(request.stop_sequences),
    }
    return checked_params(given, NAMES)


def toolbox_of(request: CountRequest) -> Toolbox:
    """The tools of a request.

    Raises:
        ApiError: a definition or the choice is wrong.
    """
    definitions = []
    for i, tool in enumerate(request.tools or ()):
        path = f"tools[{i}]"
        if tool.type not in (None, "custom"):
            raise unsupported(f"{path}.type", f"Only tools of type 'custom' are, not {str(tool.type)[:40]!r}.")
        for field in ("input_examples", "defer_loading"):
            if getattr(tool, field):
                raise unsupported(f"{path}.{field}", "Leave it out.")
        if tool.input_schema is None:
            raise required(f"{path}.input_schema")
        definition = Definition(
            f"{path}.name", f"{path}.input_schema", tool.name, tool.description, tool.input_schema, bool(tool.strict)
        )
        definitions.append(definition)
    given = request.tool_choice or Choice("auto" if definitions else "none")
    if not definitions and given.type != "none":
        raise wrong("tool_choice", "tool_choice may be given only with tools.")
    return toolbox(definitions, _choice(given), not given.disable_parallel_tool_use, "tool_choice.name")


def _choice(given: Choice) -> str:
    choices = {"auto": AUTO, "any": REQUIRED, "none": NONE}
    if given.type == "tool":
        if given.name is None:
            raise required("tool_choice.name")
        return given.name
    if given.type not in choices:
        message = f"tool_choice.type must be one of {', '.join((*choices, 'tool'))}, not {given.type[:40]!r}."
        raise wrong("tool_choice.type", message)
    return choices[given.type]


def plain_messages(request: CountRequest) -> list[dict[str, Any]]:
    """Messages for a template.

    Raises:
        ApiError: none are given, a role or a block is not served, or a result answers no call.
    """
    if not request.messages:
        raise wrong("messages", "messages must hold at least one message.", "empty_array")
    last = f"messages[{len(request.messages) - 1}]"
    if request.messages[-1].role == "assistant":
        raise unsupported(f"{last}.role", "An answer cannot be continued: let the last message be the user's.")
    plain: list[dict[str, Any]] = []
    if request.system:
        plain.append({"role": "system", "content": _text(request.system, "system")})
    names: dict[str, str] = {}
    for i, turn in enumerate(request.messages):
        path = f"messages[{i}]"
        if turn.role == "user":
            plain += _user(turn, path, names)
        elif turn.role == "assistant":
            plain.append(_assistant(turn, path, names))
        else:
            raise wrong(f"{path}.role", f"{path}.role must be one of user, assistant, not {turn.role[:40]!r}.")
    return plain


def _user(turn: Turn, path: str, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """A user's turn: results of tools are messages of their own."""
    said: list[dict[str, Any]] = []
    texts: list[str] = []
    for where, block in _blocks(turn.content, f"{path}.content"):
        if block.type != "tool_result":
            texts.append(_block_text(block, where))
            continue
        if texts:
            said.append({"role": "user", "content": "\n".join(texts)})
            texts = []
        id = block.tool_use_id
        if id is None:
            raise required(f"{where}.tool_use_id")
        if id not in names:
            raise unknown_result(f"{where}.tool_use_id", id)
        result = "" if block.content is None else _text(block.content, f"{where}.content")
        content = f"Error: {result}" if block.is_error else result
        said.append({"role": "tool", "tool_call_id": id, "name": names[id], "content": content})
    return [*said, {"role": "user", "content": "\n".join(texts)}] if texts else said


def _assistant(turn: Turn, path: str, names: dict[str, str]) -> dict[str, Any]:
    """An assistant's turn. The functions that it calls are added to ``names``."""
    texts, calls = [], []
    for where, block in _blocks(turn.content, f"{path}.content"):
        if block.type != "tool_use":
            texts.append(_block_text(block, where))
            continue
        for field in ("id", "name", "input"):
            if getattr(block, field) is None:
                raise required(f"{where}.{field}")
        names[block.id or ""] = block.name or ""
        function = {"name": block.name, "arguments": block.input}
        calls.append({"id": block.id, "type": "function", "function": function})
    return {"role": "assistant", "content": "\n".join(texts), **({"tool_calls": calls} if calls else {})}


def _blocks(content: str | list[Block], path: str) -> list[tuple[str, Block]]:
    if isinstance(content, str):
        return [(path, Block("text", content))]
    if not content:
        raise wrong(path, f"{path} must hold at least one block.", "empty_array")
    return [(f"{path}[{i}]", block) for i, block in enumerate(content)]


def _text(content: str | list[Block], path: str) -> str:
    return content if isinstance(content, str) else "\n".join(_block_text(b, w) for w, b in _blocks(content, path))


def _block_text(block: Block, path: str) -> str:
    if block.type != "text":
        error = unsupported(f"{path}.type", f"This model reads text only here, not {json.dumps(block.type[:40])}.")
        error.code = "unsupported_content"
        raise error
    if block.text is None:
        raise required(f"{path}.text")
    return block.text
