"""``diastole chat``: a conversation in the terminal."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from diastole.cli.flags import configure, takes
from diastole.cli.pull import offer
from diastole.cli.sampling import sampled
from diastole.params import SamplingParams


@takes("engine", "service")
@sampled(max_tokens=512)
def chat(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", show_default=False)] = None,
    url: Annotated[
        str | None, typer.Option(help="talk to a running server instead, e.g. http://localhost:8000")
    ] = None,
    system: Annotated[str | None, typer.Option(help="instructions that stand before the conversation")] = None,
    *,
    wish: SamplingParams,
    flags: dict[str, dict[str, Any]],
) -> None:
    """Chat in the terminal, with a model in this process or on a server (--url).

    Ctrl-C stops the answer, Ctrl-D leaves; Alt-Enter begins a new line; /help lists the commands. Without a terminal it
    answers one prompt per line of standard input.
    """
    from diastole.cli.talk import Local, Remote, Talk

    if url is not None:
        talk = Talk(Remote(url, model), wish, system)
    else:
        config = configure(model, flags)
        offer(next(iter(config.service.values())).model)
        talk = Talk(Local(config), wish, system)
    with talk:
        if sys.stdin.isatty():
            talk.converse()
        else:
            talk.answer_lines(sys.stdin)
