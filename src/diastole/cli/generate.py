"""``diastole generate``."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from diastole.cli.flags import configure, takes
from diastole.cli.pull import offer
from diastole.cli.sampling import sampled
from diastole.params import SamplingParams


@takes("engine", "service")
@sampled()
def generate(
    prompt: Annotated[str, typer.Argument(help="the text to continue; - reads standard input")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="asset, GGUF file, directory or hub id")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="ask it as a chat message, by the model's template")] = False,
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


def _print_json(llm: Any, asked: Any, wish: Any) -> None:
    import msgspec

    done = llm.generate([asked], wish)[0][0]
    print(
        msgspec.json.encode(
            {"text": done.text, "ids": done.ids, "finish": done.finish, "usage": done.usage._asdict()}
        ).decode()
    )
