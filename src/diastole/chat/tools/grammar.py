"""Grammars of calls: what a model may write so that it calls a tool, in llguidance's Lark.

The arguments of each function are a rule of their own, since references in a JSON schema begin at its root.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from diastole.text.formats import Format

REQUIRED = "required"  # at least one call, and nothing else
AUTO = "auto"  # text, and calls where the model likes
MOST = 16  # calls in an answer, so that it ends
# One space after commas and colons and no other white space, which could go on for ever.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def call_grammar(format: Format, tools: Sequence[Mapping[str, Any]], choice: str, parallel: bool) -> str:
    """A grammar of answers that call these tools.

    Args:
        tools: objects with ``name`` and ``parameters``, a JSON schema.
        choice: REQUIRED, AUTO, or the name of the one function that must be called, once.
        parallel: several calls in one answer are allowed, where the format has them.
    """
    callable_ = tools if choice in (REQUIRED, AUTO) else [t for t in tools if t["name"] == choice]
    more = MOST - 1 if parallel and choice in (REQUIRED, AUTO) else 0
    rules = [
        _auto(format, more) if choice == AUTO else f"start: {_calls(format, more)}",
        "call: " + " | ".join(f"call_{i}" for i in range(len(callable_))),
    ]
    for i, tool in enumerate(callable_):
        rules.append(f'call_{i}: {_quoted(format.head(tool["name"]))} arguments_{i} "}}"')
        rules.append(f"arguments_{i}: %json {_schema(tool['parameters'])}")
    return "\n".join(rules) + "\n"


def _calls(format: Format, more: int) -> str:
    """Between one call and ``1 + more`` of them."""
    rest = "" if format.between is None or not more else f" ({_quoted(format.between)} call){{0,{more}}}"
    return " ".join(filter(None, (_quoted(format.first), f"call{rest}", _quoted(format.last))))


def _auto(format: Format, more: int) -> str:
    if format.bare:  # an answer is calls or text, and its first character tells which
        other = f"/\\s*([^\\{format.bare}\\s](.|\\n)*)?/"
        without = f"~/(.|\\n)*{re.escape(format.opener)}(.|\\n)*/"
        return f"start: {_calls(format, more)} | TEXT\nTEXT: {other} & {without}"
    one = " ".join(("opening", _quoted(format.first.removeprefix(format.opener)), "call", _quoted(format.last)))
    opening = f"opening[lazy]: TEXT {_quoted(format.opener)}"
    return f"start: ({one}){{0,{more + 1}}} TEXT\n{opening}\nTEXT: /(.|\\n)*/"


def _schema(parameters: Mapping[str, Any]) -> str:
    return json.dumps({"type": "object", **parameters, "x-guidance": _STYLE}, ensure_ascii=True)


def _quoted(text: str) -> str:
    return json.dumps(text) if text else ""
