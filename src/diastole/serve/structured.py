"""Structured output: the several names under which clients ask for it, as one ``Grammar``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from diastole.params import Grammar, SamplingParams
from diastole.serve.errors import ApiError, of_user_error
from diastole.serve.openai import unsupported, wrong
from diastole.types import UserError

MAX_CHOICES = 1_000
MAX_GBNF = 64 * 1024  # characters; read in Python, so longer ones would take their time


Reader = Callable[[str, Any], Grammar | None]  # from a field's name and value


class Structured(NamedTuple):
    """A grammar, and the field that asked for it."""

    grammar: Grammar
    field: str


class Wish(Protocol):
    """The fields of a request that may ask for a structure."""

    response_format: dict[str, Any] | None
    structured_outputs: dict[str, Any] | None
    guided_json: Any
    guided_regex: str | None
    guided_choice: list[str] | None
    guided_grammar: str | None
    json_schema: Any
    grammar: str | None


async def shaped(
    request: Wish, params: SamplingParams, names: Mapping[str, str], formats: Mapping[str, Any] | None = None
) -> tuple[SamplingParams, Mapping[str, str]]:
    """Sampling with the structure that a request asks for, and the request's own words with the field that asked.

    Args:
        formats: values of other fields that are written as ``response_format`` is, by name.

    Raises:
        ApiError: as ``structured``; or another parameter contradicts it.
    """
    asked = [(field, getattr(request, field), read) for field, read in _READERS.items()]
    asked += [(field, value, _response_format) for field, value in (formats or {}).items()]
    asked = [a for a in asked if a[1] is not None]
    wanted = await asyncio.to_thread(structured, asked) if asked else None
    if wanted is None:
        return params, names
    names = {**names, "grammar": wanted.field}
    try:
        return replace(params, grammar=wanted.grammar), names
    except UserError as e:
        raise of_user_error(e, names) from None


def structured(asked: Sequence[tuple[str, Any, Reader]]) -> Structured | None:
    """What fields, given with their values and readers, want a text to match; None: nothing. It may take milliseconds.

    Raises:
        ApiError: a field is wrong, or two ask for different things.
    """
    found: Structured | None = None
    for field, value, read in asked:
        try:
            grammar = read(field, value)
        except UserError as e:
            raise of_user_error(e, {"grammar": field}) from None
        if grammar is None:
            continue
        if found is not None:
            raise wrong(field, f"{field} and {found.field} both say what the text must match: give only one.")
        found = Structured(grammar, field)
    return found


def _response_format(field: str, value: Any) -> Grammar | None:
    kind = value.get("type")
    readers: Mapping[str, Callable[[], Grammar | None]] = {
        "text": lambda: None,
        "json_object": lambda: _schema(field, {"type": "object"}),
        "json_schema": lambda: _named_schema(field, value),
        "regex": lambda: _regex(f"{field}.regex", value.get("regex", value.get("pattern"))),
        "grammar": lambda: _grammar(f"{field}.grammar", value.get("grammar")),
    }
    if not isinstance(kind, str) or kind not in readers:
        raise wrong(f"{field}.type", f"{field}.type must be one of {', '.join(readers)}, not {kind!r:.40}.")
    return readers[kind]()


def _named_schema(field: str, value: Mapping[str, Any]) -> Grammar:
    """OpenAI's form: {"json_schema": {"name": …, "schema": …}}; "schema" beside the type is read too."""
    named = value.get("json_schema")
    if named is None and "schema" in value:
        return _schema(f"{field}.schema", value["schema"])
    if not isinstance(named, dict):
        raise _required(f"{field}.json_schema", "an object with name and schema")
    if "schema" not in named:
        raise _required(f"{field}.json_schema.schema", "a JSON schema")
    return _schema(f"{field}.json_schema.schema", named["schema"])


def _structured_outputs(field: str, value: Any) -> Grammar | None:
    """vLLM's form: an object with one of these keys."""
    readers = {"json": _schema, "regex": _regex, "choice": _choice, "grammar": _grammar}
    given = {k: v for k, v in value.items() if v is not None}
    if given == {"json_object": True}:
        return _schema(field, {"type": "object"})
    if len(given) != 1 or next(iter(given)) not in readers:
        raise wrong(field, f"{field} must have one of the keys {', '.join(readers)}, and nothing else.")
    key, wanted = next(iter(given.items()))
    return readers[key](f"{field}.{key}", wanted)


def _schema(field: str, value: Any) -> Grammar:
    """A schema as an object, or as a string that holds one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise wrong(field, f"{field} is a string that is not JSON.", "invalid_schema") from None
    if not isinstance(value, dict | bool):
        raise wrong(field, f"{field} must be a JSON schema: an object.", "invalid_schema")
    return Grammar("json_schema", json.dumps(value, ensure_ascii=False))


def _regex(field: str, value: Any) -> Grammar:
    if not isinstance(value, str) or not value:
        raise _required(field, "a regular expression")
    return Grammar("regex", value)


def _choice(field: str, value: Any) -> Grammar:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
        raise wrong(field, f"{field} must be a list of texts, none of them empty.")
    if len(value) > MAX_CHOICES:
        raise wrong(field, f"{field} may hold at most {MAX_CHOICES} texts, not {len(value)}.")
    return Grammar("lark", "start: " + " | ".join(json.dumps(v, ensure_ascii=False) for v in value))


def _grammar(field: str, value: Any) -> Grammar:
    """llguidance's Lark, or llama.cpp's GBNF, which is rewritten."""
    if not isinstance(value, str) or not value.strip():
        raise _required(field, "a grammar, Lark or GBNF")
    if "::=" not in value:
        return Grammar("lark", value)
    if len(value) > MAX_GBNF:
        raise unsupported(field, f"GBNF may have at most {MAX_GBNF} characters: write Lark instead.")
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return Grammar("lark", any_to_lark(value))
    except Exception as e:  # the converter has an error of its own, and others slip through it
        raise wrong(field, f"{field} is no valid GBNF: {str(e) or type(e).__name__:.200}.", "invalid_grammar") from None


def _required(field: str, what: str) -> ApiError:
    return ApiError(400, f"{field} is required: {what}.", param=field, code="missing_required_parameter")


_READERS: Mapping[str, Reader] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": _schema,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "json_schema": _schema,
    "grammar": lambda field, value: _grammar(field, value) if value else None,
}
