"""Toolbox: the functions of one request and whether they must be called, whichever API it came through."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diastole.chat.tools import AUTO, REQUIRED, Format, Listener, Parser, Plain, call_grammar
from diastole.params import Grammar, SamplingParams
from diastole.serve.bounds import MAX_TOOLS
from diastole.serve.errors import ApiError, of_user_error
from diastole.serve.openai import wrong
from diastole.types import UserError

NONE = "none"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Definition:
    """A function as a request gives it. ``path`` and ``schema`` are the fields of its name and parameters."""

    path: str
    schema: str
    name: str
    description: str | None
    parameters: Any
    strict: bool

    def checked(self) -> Definition:
        """With parameters.

        Raises:
            ApiError: the name is odd, or the parameters are no JSON schema of an object.
        """
        if not NAME.fullmatch(self.name):
            message = f"{self.path} must have 1 to 64 letters, digits, '_' or '-', not {self.name[:80]!r}."
            raise wrong(self.path, message)
        if self.parameters is None:
            return replace(self, parameters=dict(NO_PARAMETERS))
        if not _is_schema(self.parameters):
            message = (
                f"{self.schema} must be a JSON schema of an object: type 'object', and properties that are schemas."
            )
            raise wrong(self.schema, message, "invalid_schema")
        return self

    def told(self) -> dict[str, Any]:
        """As templates want it."""
        words = {} if self.description is None else {"description": self.description}
        return {"type": "function", "function": {"name": self.name, **words, "parameters": self.parameters}}


def _is_schema(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("type", "object") != "object":
        return False
    properties, required = value.get("properties", {}), value.get("required", [])
    return (
        isinstance(properties, dict)
        and all(isinstance(p, dict | bool) for p in properties.values())
        and isinstance(required, list)
        and all(isinstance(r, str) for r in required)
    )


@dataclass(frozen=True, slots=True)
class Toolbox:
    """``choice`` is AUTO, REQUIRED, NONE, or the name of the function that must be called."""

    definitions: Sequence[Definition] = ()
    choice: str = NONE
    parallel: bool = True

    @property
    def told(self) -> list[dict[str, Any]] | None:
        """What the model is told of; nothing if it may call nothing."""
        return None if self.choice == NONE else [d.told() for d in self.definitions]

    def listener(self, format: Format) -> Listener:
        """A reader of one answer."""
        if self.choice == NONE:
            return Plain()
        several = self.parallel and self.choice in (AUTO, REQUIRED) and format.between is not None
        return Parser(format, [d.name for d in self.definitions], None if several else 1)

    async def shaped(
        self, format: Format, params: SamplingParams, names: Mapping[str, str]
    ) -> tuple[SamplingParams, Mapping[str, str]]:
        """Sampling in which the choice is enforced, and the request's words for its fields.

        Raises:
            ApiError: another field already says what the text must match.
        """
        bound = self.choice not in (AUTO, NONE) or (self.choice == AUTO and any(d.strict for d in self.definitions))
        if not bound:
            return params, names
        if params.grammar is not None:
            raise wrong("tools", f"{names.get('grammar', 'grammar')} cannot be combined with tools that bind the text.")
        names = {**names, "grammar": "tools"}
        functions = [{"name": d.name, "parameters": d.parameters} for d in self.definitions]
        text = await asyncio.to_thread(call_grammar, format, functions, self.choice, self.parallel)
        try:
            return replace(params, grammar=Grammar("lark", text)), names
        except UserError as e:
            raise of_user_error(e, names) from None


def toolbox(definitions: Sequence[Definition], choice: str, parallel: bool, field: str) -> Toolbox:
    """A request's tools, checked.

    Args:
        field: what names the function that must be called, if one is named.

    Raises:
        ApiError: too many, a wrong definition, a name twice, or the choice names none of them.
    """
    if len(definitions) > MAX_TOOLS:
        raise wrong("tools", f"tools may hold at most {MAX_TOOLS} functions, not {len(definitions)}.")
    names: set[str] = set()
    for definition in definitions:
        if definition.name in names:
            raise wrong(definition.path, f"{definition.path}: there are two functions {definition.name[:80]!r}.")
        names.add(definition.name)
    checked = [d.checked() for d in definitions]
    if choice not in (AUTO, REQUIRED, NONE) and choice not in names:
        raise wrong(field, f"{field}: there is no function {choice[:80]!r} among the tools.")
    return Toolbox(checked, choice if checked else NONE, parallel)


def unknown_result(path: str, id: str) -> ApiError:
    """400, a result that answers no call."""
    return wrong(path, f"{path}: no earlier message of the assistant has a call with the id {id[:80]!r}.")
