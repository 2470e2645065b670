"""Writes pages of the documentation from what they tell of: commands, settings, and which techniques go together.

``python tools/reference.py`` writes them; a test compares them with what would be written.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from diastole.bench.pairs import Workbench, pairs, singles
from diastole.cli.main import app, register
from diastole.config import Bytes, Setting, settings

DOCS = Path(__file__).resolve().parent.parent / "docs"
TABLES = {
    "server": ("Server", "The HTTP server. In TOML: the table `[server]`."),
    "engine": ("Engine", "The engine as a whole. In TOML: the table `[engine]`."),
    "service": ("Model", "One model and how it is served. In TOML: one table `[service.NAME]` for each."),
}
NOTE = "<!-- Written by tools/reference.py: change the code, not this page. -->"


def settings_page() -> str:
    """Every setting: its key, variable, flag, default and meaning."""
    parts = [
        "# Settings",
        NOTE,
        "Every setting has one definition and three spellings. Later ones win: the default, the TOML file, the "
        "environment variable, the flag. Variables and flags of a model hold for all models of the server.",
        "Sizes are written `512MiB`, `2GiB`, `100MB` or as a plain number of bytes. Yes and no are `true` and `false` "
        "in TOML, also `1` and `0`, `on` and `off` in the environment; a flag has a `--no-` twin. Lists are lists in "
        "TOML, are separated by `;` in the environment, and a flag is repeated.",
        "An unknown key, or a value that does not fit, stops the start with one line that names it.",
    ]
    for table, (title, about) in TABLES.items():
        parts += [f"## {title}", about, "\n".join(_settings_table(table))]
    parts += ["## Other variables", "\n".join(_variables())]
    return "\n\n".join(parts) + "\n"


def _settings_table(table: str) -> Iterator[str]:
    yield "| key | variable | flag | default | meaning |"
    yield "|---|---|---|---|---|"
    for s in settings(table):
        flag = "MODEL (argument)" if s.key == "service.model" else f"`{s.flag}`"
        yield f"| `{'.'.join(s.path)}` | `{s.variable}` | {flag} | {_default(s)} | {_meaning(s)} |"


def _default(s: Setting) -> str:
    if s.default in ((), ""):
        return "none"
    if isinstance(s.default, bool):
        return "true" if s.default else "false"
    shown = str(s.default) if isinstance(s.default, Bytes) else f"{s.default:g}" if _number(s.default) else s.default
    return f"{shown} {s.knob.unit}".strip()


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


def _meaning(s: Setting) -> str:
    choices = f" One of {', '.join(f'`{c}`' for c in s.knob.choices)}." if len(s.knob.choices) > 1 else ""
    low, high = s.knob.low, s.knob.high
    bounds = "" if low is None else f" At least {low:g}." if high is None else f" From {low:,g} to {high:,.15g}."
    return _cell(f"{s.knob.help}.{choices}{bounds}")


def _variables() -> Iterator[str]:
    yield "| variable | meaning |"
    yield "|---|---|"
    yield (
        "| `DIASTOLE_CACHE` | Where pulled models and packed weights are kept. Without it `$XDG_CACHE_HOME/diastole`, "
        "without that `~/.cache/diastole`. |"
    )
    yield "| `DIASTOLE_DEBUG` | `1`: a command that fails shows its traceback instead of one line. |"


def cli_page() -> str:
    """Every command with its arguments and options."""
    register()
    group: Any = typer.main.get_command(app)
    parts = [
        "# Command line",
        NOTE,
        "`diastole --help` and `diastole COMMAND --help` say the same. A command exits with 0 when all went well, with "
        "2 when you can mend what is wrong (one line says what), and with 130 when it was interrupted.",
    ]
    for name, command in group.commands.items():
        parts += _command(f"diastole {name}", command)
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"## {name}"
    yield re.sub(r"(?<![`\w-])(--[a-z][a-z-]*)", r"`\1`", _paragraphs(command.help))
    if hasattr(command, "commands") and not getattr(command, "invoke_without_command", False):
        yield from _inner(name, command)
        return
    own = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = " ".join(_argument(p) for p in own if not p.opts[0].startswith("-"))
    yield f"```text\n{' '.join(filter(None, [name, '[OPTIONS]', arguments]))}\n```"
    shared = {title for title, _ in TABLES.values()}
    options = [p for p in own if p.opts[0].startswith("-") and p.rich_help_panel not in shared]
    if options:
        yield "\n".join(["| option | default | meaning |", "|---|---|---|", *(_option(p) for p in options)])
    panels = [t for t, _ in TABLES.values() if any(getattr(p, "rich_help_panel", None) == t for p in own)]
    if panels:
        links = ", ".join(f"[{t}](settings.md#{t.lower()})" for t in panels)
        yield f"It also takes the flags of these settings: {links}."
    if hasattr(command, "commands"):
        yield from _inner(name, command)


def _inner(name: str, group: Any) -> Iterator[str]:
    for sub, command in group.commands.items():
        yield from (part.replace("## ", "### ", 1) for part in _command(f"{name} {sub}", command))


def _argument(p: Any) -> str:
    shown = p.metavar or p.name.upper()
    return shown if p.required else f"[{shown}]"


def _option(p: Any) -> str:
    names = ", ".join(f"`{o}`" for o in [*p.opts, *p.secondary_opts])
    default = "" if p.default is None or p.default is False or p.default == "" else f"`{p.default}`"
    return f"| {names} | {default} | {_cell(_plain(p.help or ''))} |"


def _paragraphs(text: str | None) -> str:
    blocks = inspect.cleandoc(_plain(text or "")).split("\n\n")
    return "\n\n".join(" ".join(block.split()) for block in blocks)


def _plain(text: str) -> str:
    """Help as Markdown: bold as code, and brackets that would be taken for a style as they are."""
    return re.sub(r"\[bold\](.*?)\[/\]", r"`\1`", text).replace("\\[", "[")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def compatibility_page() -> str:
    """Which techniques go together: every pair is built and run."""
    bench = Workbench()
    alone = singles(bench)
    tried = list(pairs(bench, alone))
    together: dict[str, dict[str, list[str]]] = {}
    for trial in tried:
        for one, other in (trial.techniques, trial.techniques[::-1]):
            together.setdefault(one, {}).setdefault(trial.answer, []).append(other)
    works = [t.techniques[0] for t in alone if t.answer == "yes"]
    rows = [(f"`{name}`", *(_names(together.get(name, {}).get(a)) for a in ("yes", "refused"))) for name in works]
    parts = [
        "# Which techniques go together",
        NOTE,
        "`diastole check --pairs` prints this for your installation. Every technique, with its default knobs, is built "
        "into a service of a tiny random language model and run, alone and with every other: prompts in chunks, "
        "several streams, one aborted while it reads and one while it speaks. A pair *works* when a stream says the "
        "same alone and in a crowd, to the bit, everybody ends and nothing leaks. A pair is *refused* at start, with "
        "an error that names both. How good the answers of a lossy technique are is for its "
        "[reproduction](papers.md) to say.",
        _table(("technique", "works with", "is refused with"), rows),
    ]
    refused = [(*(f"`{n}`" for n in t.techniques), t.why) for t in tried if t.answer == "refused"]
    others = [(f"`{t.techniques[0]}`", t.why) for t in alone if t.answer == "refused"]
    failed = [(" + ".join(f"`{n}`" for n in t.techniques), t.why) for t in (*alone, *tried) if t.answer == "FAILED"]
    if failed:
        parts += ["## Defects", _table(("techniques", "what goes wrong"), failed)]
    if refused:
        parts += ["## Why pairs are refused", _table(("one", "other", "why"), refused)]
    if others:
        parts += ["## Not for language models", _table(("technique", "why"), others)]
    return "\n\n".join(parts) + "\n"


def _names(names: list[str] | None) -> str:
    return ", ".join(f"`{n}`" for n in names or ())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PAGES = {
    "reference/cli.md": cli_page,
    "reference/settings.md": settings_page,
    "compatibility.md": compatibility_page,
}


def main() -> None:
    """Write them all."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
