"""``diastole generate``."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from diastole.cli.flags import configure, takes
from diastole.cli.pull import offer
from diastole.cli.sampling import sampled
from diastole.params import Grammar, SamplingParams
from diastole.types import UserError


@takes("engine", "service")
@sampled()
def generate(
    prompt: Annotated[str, typer.Argument(help="the text to continue; - reads standard input")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="asset, GGUF file, directory or hub id")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="ask it as a chat message, by the model's template")] = False,
    schema: Annotated[
        Path | None, typer.Option(help="file with a JSON schema that the text must match", show_default=False)
    ] = None,
    regex: Annotated[str, typer.Option(help="regular expression that the text must match", show_default=False)] = "",
    json: Annotated[bool, typer.Option("--json", help="print one JSON object instead of the text")] = False,
    *,
    wish: SamplingParams,
    flags: dict[str, dict[str, Any]],
) -> None:
    """Continue a text, printing it as it comes."""
    config = configure(model, flags)
    service = next(iter(config.service.values()))
    offer(service.model)
    from diastole.llm import LLM

    text = sys.stdin.read() if prompt == "-" else prompt
    grammar = _grammar(schema, regex)
    if grammar is not None:
        wish = replace(wish, grammar=grammar)
    with LLM.of(config) as llm:
        asked: Any = [{"role": "user", "content": text}] if chat else text
        if json:
            _print_json(llm, asked, wish)
            return
        began, first, tokens = time.monotonic(), 0.0, 0
        for delta in llm.stream(asked, wish):
            first = first or time.monotonic()
            tokens = delta.usage.generated
            print(delta.text, end="", flush=True)
        print()
        if sys.stderr.isatty() and tokens > 1:
            rate = (tokens - 1) / (time.monotonic() - first)
            typer.secho(f"{tokens} tokens, first after {first - began:.2f} s, then {rate:.0f}/s", dim=True, err=True)


def _grammar(schema: Path | None, regex: str) -> Grammar | None:
    """Raises:
    UserError: both are given, or the file cannot be read.
    """
    if schema is not None and regex:
        raise UserError("--schema and --regex both say what the text must match: give only one", param="regex")
    if schema is not None:
        try:
            return Grammar("json_schema", schema.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"--schema: {schema} cannot be read: {e}", param="schema") from None
    return Grammar("regex", regex) if regex else None


def _print_json(llm: Any, asked: Any, wish: Any) -> None:
    import msgspec

    done = llm.generate([asked], wish)[0][0]
    print(
        msgspec.json.encode(
            {"text": done.text, "ids": done.ids, "finish": done.finish, "usage": done.usage._asdict()}
        ).decode()
    )
