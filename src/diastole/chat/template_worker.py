"""The process that renders chat templates: one request in, one answer out, until its input ends.

Semantics are those of Hugging Face's chat templates: trimmed blocks, loop controls, ``raise_exception``, ``tojson``
without HTML escapes, ``strftime_now``, and a ``generation`` block that changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 512 * 2**20  # bytes of address space


class Generation(Extension):
    """``{% generation %} ... {% endgeneration %}`` marks the assistant's words for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def environment(now: float | None) -> ImmutableSandboxedEnvironment:
    """What a template may use."""
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise
    env.globals["strftime_now"] = _strftime(now)
    return env


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime(now: float | None) -> Callable[[str], str]:
    def strftime_now(form: str) -> str:
        if now is None:
            raise jinja2.TemplateError("it asks for the date, and none was given")
        return datetime.fromtimestamp(now, UTC).strftime(form)

    return strftime_now


def answer(wish: dict[str, Any]) -> dict[str, str]:
    """Render one request: {"text"} or {"error"}."""
    try:
        return {"text": environment(wish["now"]).from_string(wish["source"]).render(**wish["names"])}
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as e:
        return {"error": f"{e}"[:500] or type(e).__name__}
    except (RecursionError, MemoryError) as e:
        return {"error": type(e).__name__}


def main() -> None:
    """Serve standard input."""
    with contextlib.suppress(ValueError, OSError):  # a lower limit than ours is already set
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sink.write(b"!")  # ready
    sink.flush()
    while head := source.read(4):
        wish = json.loads(source.read(int.from_bytes(head, "little")))
        body = json.dumps(answer(wish)).encode()
        sink.write(len(body).to_bytes(4, "little") + body)
        sink.flush()


if __name__ == "__main__":
    main()
