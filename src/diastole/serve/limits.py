"""JSON from strangers: bounded, strict, and refused in words that name the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from diastole.serve.errors import ApiError

MAX_DEPTH = 64
MAX_TOKENS = 100_000  # strings, brackets and braces; numbers are not counted, as ids may be many

T = TypeVar("T")

# Possessive, and a string without end matches up to the end: time is linear in the body whatever it holds. What lies
# between is matched in long pieces, so that other threads get in between.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)([ \t\r\n]*+:)?|[{}\[\]]|[^"{}\[\]]{65536}', re.DOTALL)
_MISSING = re.compile(r"missing required field `([^`]+)`")
_WORDS = {"str": "a string", "int": "an integer", "float": "a number", "bool": "a boolean", "null": "null"} | {
    "array": "an array",
    "object": "an object",
}


def check_json_type(headers: Mapping[str, str]) -> None:
    """A body must say that it is JSON. Web pages cannot make a browser say so to a foreign server without asking it.

    Raises:
        ApiError: 415.
    """
    kind, *parameters = headers.get("content-type", "").lower().split(";")
    if kind.strip() != "application/json":
        message = "The body must be JSON: send the header 'Content-Type: application/json'."
        raise ApiError(415, message, code="unsupported_media_type")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip().strip('"') not in ("utf-8", "utf8"):
            raise ApiError(415, "The body's charset must be UTF-8.", code="unsupported_media_type")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Send the body uncompressed.", code="unsupported_media_type")


def decode(body: bytes, type: type[T], *, checked: bool = False) -> T:
    """A request body as a struct. ``checked``: it has passed ``check`` before.

    Raises:
        ApiError: 400; ``invalid_json`` if it is not JSON that everybody reads alike, else ``param`` is the path of
            the field at fault.
    """
    if not checked:
        check(body)
    try:
        return msgspec.json.decode(body, type=type)
    except msgspec.ValidationError as e:
        raise _wrong_type(str(e)) from None
    except (msgspec.DecodeError, RecursionError) as e:
        raise _invalid(str(e)) from None


def decode_field(raw: msgspec.Raw, name: str) -> Any:
    """The value of one field of a body that has passed ``check``.

    Raises:
        ApiError: 400, it holds a number that is out of range.
    """
    try:
        return msgspec.json.decode(raw)
    except msgspec.ValidationError:
        raise ApiError(400, f"{name}: a number is out of range.", param=name, code="invalid_value") from None


def check(body: bytes) -> None:
    """Refuse what parsers disagree on or choke on: depth, sheer number of parts, duplicate keys, other encodings.

    It runs before decoding, in time linear in the body, and trusts the decoder to refuse everything malformed.

    Raises:
        ApiError: 400 invalid_json.
    """
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise _invalid(f"it is not UTF-8 at byte {e.start}") from None
    open_: list[set[str] | None] = []  # the keys of each open object; None for an array
    count = 0
    for token in _TOKEN.finditer(body):
        first = body[token.start()]
        if first not in b'"{}[]':
            continue
        count += 1
        if count > MAX_TOKENS:
            raise _invalid(f"it has more than {MAX_TOKENS} strings and brackets")
        if first == 0x22:  # a string
            if token.group(1) is not None and open_ and (keys := open_[-1]) is not None:
                key = _key(token.group()[: -len(token.group(1))])
                if key in keys:
                    raise _invalid(f"the key {key[:60]!r} occurs twice in one object")
                keys.add(key)
        elif first in b"{[":
            open_.append(set() if first == 0x7B else None)
            if len(open_) > MAX_DEPTH:
                raise _invalid(f"it is nested more than {MAX_DEPTH} levels deep")
        elif open_:
            open_.pop()


def _key(quoted: bytes) -> str:
    """Decoded, since one key can be spelled in many ways with escapes."""
    try:
        return msgspec.json.decode(quoted, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise _invalid(str(e)) from None


def _invalid(why: str) -> ApiError:
    return ApiError(400, f"The body is not valid JSON: {why}.", code="invalid_json")


def _wrong_type(said: str) -> ApiError:
    """msgspec says "Expected `int | null`, got `str` - at `$.n`"."""
    what, _, where = said.partition(" - at ")
    path = where.strip("`").removeprefix("$").removeprefix(".").removesuffix("[...]")
    if missing := _MISSING.search(what):
        field = f"{path}.{missing[1]}" if path else missing[1]
        return ApiError(400, f"{field} is required.", param=field, code="missing_required_parameter")
    if not path and "out of range" in what:
        return ApiError(400, "A number in the body is out of range.", code="invalid_value")
    if not path:
        return ApiError(400, "The body must be a JSON object.", code="invalid_type")
    text = re.sub(r"`([^`]*)`", lambda m: " or ".join(_WORDS.get(w, w) for w in m[1].split(" | ")), what)
    return ApiError(400, f"{path}: {text[0].lower()}{text[1:]}.", param=path, code="invalid_type")
