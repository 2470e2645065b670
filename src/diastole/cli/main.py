"""``diastole``: the commands, and the one place where errors become one line."""

from __future__ import annotations

import os
import sys
import warnings

import typer

from diastole.types import UserError

app = typer.Typer(
    name="diastole",
    help="An inference engine and server for models that decode in time.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with [bold]diastole pull smollm2-135m[/], then [bold]diastole chat[/] or [bold]diastole serve[/].",
)


def register() -> None:
    """Give ``app`` its commands."""
    from diastole.cli import (
        bench,
        calibrate,
        chat,
        check,
        cluster,
        generate,
        key,
        listing,
        paint,
        papers,
        plan,
        plan_cost,
        pull,
        reproduce,
        serve,
        stream,
        top,
        train,
        version,
    )

    examples = {
        "serve": "[bold]diastole serve[/]  ·  diastole serve model.gguf --port 9000  ·  diastole serve engine.toml",
        "calibrate": "[bold]diastole calibrate double-sparsity model.gguf[/] --texts notes.txt",
        "pull": "[bold]diastole pull smollm2-135m[/]",
        "chat": "[bold]diastole chat[/]  ·  diastole chat --url http://localhost:8000",
        "generate": '[bold]diastole generate "The heart"[/] --max-tokens 40 --temperature 0',
        "stream": "[bold]diastole stream phasenet day.mseed[/]  ·  diastole stream cache-aware-conformer talk.wav",
        "paint": "[bold]diastole paint sneaker[/] -n 9 --out sneakers.png",
        "top": "[bold]diastole top[/]  ·  diastole top --url http://localhost:9000  ·  diastole top --once",
        "check": "[bold]diastole check[/]  ·  diastole check --model model.gguf  ·  diastole check --pairs",
        "papers": "[bold]diastole papers[/]  ·  diastole papers --kind technique --built",
        "reproduce": "[bold]diastole reproduce zipcache --quick[/]  ·  diastole reproduce all --save --plot",
    }
    for name, command in (
        ("serve", serve.serve),
        ("chat", chat.chat),
        ("generate", generate.generate),
        ("calibrate", calibrate.calibrate),
        ("paint", paint.paint),
        ("stream", stream.stream),
        ("pull", pull.pull),
        ("list", listing.list_),
        ("top", top.top),
        ("check", check.check),
        ("papers", papers.papers),
        ("reproduce", reproduce.reproduce),
        ("version", version.version),
    ):
        epilog = f"Examples:  {examples[name]}" if name in examples else None
        settings = stream.EXTRA if name == "stream" else None
        app.command(name, epilog=epilog, context_settings=settings)(command)
    app.add_typer(bench.app, name="bench")
    app.add_typer(cluster.app, name="cluster", epilog="Example:  [bold]diastole cluster up --prefill 1 --decode 1[/]")
    app.add_typer(key.app, name="key")
    plan.app.command("cost", epilog="Examples:  [bold]diastole plan cost --model step-3[/] --context 32768")(
        plan_cost.cost
    )
    app.add_typer(plan.app, name="plan")
    app.add_typer(train.app, name="train")


def main() -> None:
    """Entry point: 0 when all went well, 2 when the user can mend it, 130 when interrupted."""
    debug = os.environ.get("DIASTOLE_DEBUG") == "1"
    if not debug:
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    from diastole.frontend import malloc

    malloc.settle()  # many commands run an engine in this process
    register()
    try:
        app()
    except UserError as e:
        if debug:
            raise
        typer.secho(f"error: {e.message}", fg="red", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing is wrong
        sys.exit(0)


if __name__ == "__main__":
    main()
