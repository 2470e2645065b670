"""Telling a model of its tools: by its own template where that knows a format of ours, else in a system message."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from diastole.text.formats import HERMES, LLAMA, MISTRAL, Format

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None

SHORT_ID = 9  # characters: Mistral's templates refuse ids of any other length
_READS_TOOLS = re.compile(r"\{[{%][^}%]*\btools\b")


class Telling(Protocol):
    """How one model is told."""

    @property
    def format(self) -> Format:
        """How it writes its calls."""
        ...

    def prepare(self, messages: Messages, tools: Tools) -> tuple[Messages, Tools]:
        """What its template gets. Arguments of earlier calls are given as objects."""
        ...


def telling_of(template: str | None) -> Telling:
    """How a model with this chat template is told of tools."""
    if template is None or not _READS_TOOLS.search(template):
        return Described()
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return Native(MISTRAL, _with_short_ids)
    if "<tool_call>" in template and "<function=" not in template:
        return Native(HERMES)
    if "<|python_tag|>" in template or '"parameters": ' in template:
        return Native(LLAMA)
    return Described()  # it has tools in a way that we cannot read: then it is told of ours


class Native:
    """The template writes tools, calls and results itself."""

    def __init__(self, format: Format, adapt: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda m: m) -> None:
        self.format, self._adapt = format, adapt

    def prepare(self, messages: Messages, tools: Tools) -> tuple[Messages, Tools]:
        return [self._adapt(m) for m in messages], tools


class Described:
    """The template knows nothing of tools: they are described to the model, and it is shown calls and results as text.

    Results become messages of the user, one for all that follow each other and for what the user adds to them, since
    many templates want user and assistant to alternate.
    """

    format = HERMES

    def prepare(self, messages: Messages, tools: Tools) -> tuple[Messages, Tools]:
        told: list[dict[str, Any]] = [dict(_as_text(m)) for m in messages]
        said: list[dict[str, Any]] = []
        open_ = False  # the last of ``said`` holds results of tools
        for given, message in zip(messages, told, strict=True):
            if open_ and message["role"] == "user":
                said[-1]["content"] += "\n" + message["content"]
            else:
                said.append(message)
            open_ = message["role"] == "user" and (open_ or given["role"] == "tool")
        if tools:
            description = _description(tools)
            if said and said[0]["role"] == "system":
                said[0]["content"] += "\n\n" + description
            else:
                said.insert(0, {"role": "system", "content": description})
        return said, None


def _as_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if not message.get("tool_calls"):
        return message
    calls = [_call(c["function"]) for c in message["tool_calls"]]
    content = "\n".join(filter(None, (message["content"], HERMES.written(calls))))
    return {**{k: v for k, v in message.items() if k != "tool_calls"}, "content": content}


def _call(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    return HERMES.call(function["name"], arguments if isinstance(arguments, str) else _json(arguments))


def _description(tools: Sequence[Mapping[str, Any]]) -> str:
    listed = "\n".join(_json(t) for t in tools)
    example = HERMES.written(['{"name": NAME, "arguments": ARGUMENTS}'])
    return (
        "You can call functions. These are there, each as a JSON object with a JSON schema of its arguments:\n"
        f"<tools>\n{listed}\n</tools>\n"
        "To call a function, answer with its name and its arguments as JSON between tags, and nothing else:\n"
        f"{example}\n"
        "The result then comes between <tool_response> tags."
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _with_short_ids(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Ids as Mistral's templates want them; the same id always becomes the same."""
    changed = dict(message)
    if "tool_call_id" in changed:
        changed["tool_call_id"] = _short(changed["tool_call_id"])
    if "tool_calls" in changed:
        changed["tool_calls"] = [{**call, "id": _short(call["id"])} for call in changed["tool_calls"]]
    return changed


def _short(id: str) -> str:
    if len(id) == SHORT_ID and id.isascii() and id.isalnum():
        return id
    return hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:SHORT_ID]
