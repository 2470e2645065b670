"""Flags from settings: a command that is decorated takes one option for every setting of some tables."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from diastole.config import Config, Setting, convert, resolve, settings

# Spellings of vLLM that mean the same.
_ALSO = {
    "name": "--served-model-name",
    "context": "--max-model-len",
    "max_streams": "--max-num-seqs",
    "step_tokens": "--max-num-batched-tokens",
    "kv": "--kv-cache-dtype",
    "prefix_cache": "--enable-prefix-caching",
}
_PANELS = {"engine": "Engine", "server": "Server", "service": "Model"}
_POSITIONAL = {"service.model"}  # given as an argument


def takes(*tables: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of these tables; it receives what was set as ``flags``, a tree by table."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        chosen = [s for t in tables for s in settings(t) if s.key not in _POSITIONAL]
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            flags: dict[str, dict[str, Any]] = {}
            for s in chosen:
                for name, flag in _spellings(s).items():
                    value = given.pop(name)
                    if value is not None and value != []:
                        _put(flags.setdefault(s.table, {}), s.path, convert(s, value, flag))
            command(**given, flags=flags)

        run.__signature__ = inspect.Signature([*own, *(p for s in chosen for p in _parameters(s))])  # type: ignore[attr-defined]
        return run

    return decorate


def _spellings(s: Setting) -> dict[str, str]:
    """Parameter names and their flags: the setting's own, then one that others know it by."""
    own = "_".join((s.table, *s.path))
    also = _ALSO.get(".".join(s.path)) if s.table == "service" else None
    return {own: s.flag} | ({f"{own}_also": also} if also else {})


def _parameters(s: Setting) -> Iterator[inspect.Parameter]:
    kind: Any = bool if s.type is bool else list[str] if s.type == tuple[str, ...] else str
    for i, (name, flag) in enumerate(_spellings(s).items()):
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
            help=_help(s),
            show_default=False,
            metavar=None if kind is bool else _metavar(s),
            rich_help_panel=_PANELS[s.table],
            hidden=i > 0,
        )
        annotation = Annotated[kind | None, option]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _help(s: Setting) -> str:
    from rich.markup import escape

    default = "yes" if s.default is True else "no" if s.default is False else "" if s.default == () else str(s.default)
    unit = f" {s.knob.unit}" if s.knob.unit and default else ""
    choices = f" ({', '.join(s.knob.choices)})" if s.knob.choices else ""
    shown = escape(f"  [{default}{unit}]") if default else ""  # a word in brackets is markup to rich
    return f"{s.knob.help}{choices}.{shown}"


def _metavar(s: Setting) -> str:
    names = {"int": "N", "float": "N", "Bytes": "SIZE"}
    return names.get(getattr(s.type, "__name__", ""), "TEXT")


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def configure(target: str | None, flags: dict[str, dict[str, Any]]) -> Config:
    """The configuration that a command means: a TOML file or a model, the environment, and its flags."""
    toml = (
        Path(target).read_text("utf-8") if target is not None and target.endswith(".toml") and _exists(target) else None
    )
    if target is not None and toml is None:
        flags = {**flags, "service": {"model": target, **flags.get("service", {})}}
    return resolve(toml, os.environ, flags)


def _exists(target: str) -> bool:
    from diastole.types import UserError

    if not Path(target).is_file():
        raise UserError(f"there is no configuration file {target}", param="config")
    return True
