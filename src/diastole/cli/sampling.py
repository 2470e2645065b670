"""Flags of sampling, shared by chat and generate: a command that is decorated receives checked ``SamplingParams``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import typer

from diastole.params import SamplingParams, Unmasking


class Flag(NamedTuple):
    """One sampling flag."""

    kind: Any
    default: Any
    help: str
    short: tuple[str, ...] = ()


UNMASKING = ("steps", "block_length", "remasking")
_FLAGS = {
    "max_tokens": Flag(int, 128, "most tokens of an answer", ("-n",)),
    "temperature": Flag(float, 0.7, "0 is greedy; higher is freer"),
    "top_p": Flag(float, 0.95, "keep the likeliest tokens that together reach this probability"),
    "top_k": Flag(int, 0, "keep this many likeliest tokens; 0: all"),
    "min_p": Flag(float, 0.0, "keep tokens at least this likely, relative to the likeliest"),
    "repetition_penalty": Flag(float, 1.0, "above 1: repeat less"),
    "seed": Flag(int | None, None, "the same seed gives the same text"),
    "stop": Flag(list[str] | None, None, "end the text before this string (repeatable)"),
    "steps": Flag(int | None, None, "masked models: steps that settle the answer; none: one for each token"),
    "block_length": Flag(int | None, None, "masked models: tokens of a block, settled one after the other"),
    "remasking": Flag(str | None, None, "masked models: what a step settles: low_confidence, entropy or random"),
}


def sampled(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of sampling, with some defaults of its own; it receives ``wish``."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {name: given.pop(name) for name in _FLAGS}
            values["stop"] = tuple(values["stop"] or ())
            unmasking = {name: v for name in UNMASKING if (v := values.pop(name)) is not None}
            command(**given, wish=SamplingParams(**values, unmasking=Unmasking(**unmasking) if unmasking else None))

        flags = [_parameter(name, flag, defaults.get(name, flag.default)) for name, flag in _FLAGS.items()]
        kept = [p for p in own.values() if p.name != "wish"]
        first = [p for p in kept if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        run.__signature__ = inspect.Signature([*first, *flags, *kept[len(first) :]])  # type: ignore[attr-defined]
        return run

    return decorate


def _parameter(name: str, flag: Flag, default: Any) -> inspect.Parameter:
    option = typer.Option(f"--{name.replace('_', '-')}", *flag.short, help=flag.help, rich_help_panel="Sampling")
    kind: Any = flag.kind
    annotation = Annotated[kind, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
