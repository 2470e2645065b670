"""``diastole key``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diastole.types import UserError

app = typer.Typer(help="Keys that clients of a server show.", no_args_is_help=True)


@app.callback()
def _key() -> None:
    """Keys that clients of a server show."""


@app.command("new", epilog="Example:  diastole key new alice --rpm 60 --tpm 20000 --file keys")
def new(
    name: Annotated[str, typer.Argument(help="what logs and limits call it")],
    rpm: Annotated[int | None, typer.Option(min=0, help="requests per minute; 0: no limit")] = None,
    tpm: Annotated[int | None, typer.Option(min=0, help="tokens per minute; 0: no limit")] = None,
    concurrent: Annotated[int | None, typer.Option(min=0, help="requests at once; 0: no limit")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="may use the paths for administrators")] = False,
    file: Annotated[Path | None, typer.Option("--file", help="the server's key file, to add it to")] = None,
) -> None:
    """Make a key and print it, once: it is kept nowhere.

    The server's key file (server.api_key_file) holds only its hash. Without --file the line for it is printed, too, on
    standard error. Limits that are not given are as the server's settings say.
    """
    import secrets

    from diastole.serve.keys import NAME, NAMES, append, digest

    if not NAME.fullmatch(name):
        raise UserError(f"NAME must be {NAMES}, not {name!r:.80}", param="name")
    key = "dia-" + secrets.token_urlsafe(32)
    limits = {"rpm": rpm, "tpm": tpm, "concurrent": concurrent}
    options = [f"{word}={limit}" for word, limit in limits.items() if limit is not None] + ["admin"] * admin
    line = ":".join([name, "sha256", digest(key).hex(), *([",".join(options)] if options else [])])
    if file is None:
        typer.echo(line, err=True)
    else:
        append(line, file)
    typer.echo(key)
