"""Flags of sampling, shared by chat and generate."""

from __future__ import annotations

from typing import Annotated

import typer

from diastole.params import SamplingParams

_PANEL = "Sampling"


def _option(help: str, *names: str) -> object:
    return typer.Option(*names, help=help, rich_help_panel=_PANEL)


MaxTokens = Annotated[int, _option("most tokens of an answer", "--max-tokens", "-n")]
Temperature = Annotated[float, _option("0 is greedy; higher is freer")]
TopP = Annotated[float, _option("keep the likeliest tokens that together reach this probability")]
TopK = Annotated[int, _option("keep this many likeliest tokens; 0: all")]
MinP = Annotated[float, _option("keep tokens at least this likely, relative to the likeliest")]
Repetition = Annotated[float, _option("above 1: repeat less", "--repetition-penalty")]
Seed = Annotated[int | None, _option("the same seed gives the same text")]
Stop = Annotated[list[str] | None, _option("end the text before this string (repeatable)")]


def params(
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    repetition_penalty: float,
    seed: int | None,
    stop: list[str] | None,
    n: int = 1,
) -> SamplingParams:
    """Checked parameters from flags."""
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        n=n,
    )
