"""``diastole serve``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from diastole.cli.flags import configure, takes
from diastole.cli.pull import offer


@takes("server", "engine", "service")
def serve(
    target: Annotated[str | None, typer.Argument(metavar="MODEL | engine.toml", show_default=False)] = None,
    *,
    flags: dict[str, dict[str, Any]],
) -> None:
    """Serve a model (or the services of a TOML file) behind OpenAI's HTTP API.

    MODEL is an asset's name (default smollm2-135m), a GGUF file, a Hugging Face directory or a hub id. Every flag is
    also a TOML key and an environment variable: --port is server.port and DIASTOLE_SERVER_PORT.
    """
    config = configure(target, flags)
    for service in config.service.values():
        offer(service.model)
    from diastole.frontend import build
    from diastole.serve.run import serve as run

    if config.server.log_format == "text":
        print("loading ...", file=sys.stderr, flush=True)
    run(build(config), config.server)
