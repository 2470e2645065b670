"""Names in the documentation and in what operators install exist in the code, and the other way round."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from diastole import registry
from diastole.cli.main import app, register
from diastole.config import settings
from diastole.serve.openai import NEUTRAL, TEMPLATES, ChatRequest, CompletionRequest
from diastole.serve.routes import ROUTES
from diastole.serve.tokenization import DetokenizeRequest, TokenizeRequest
from docs.pages import DOCS, ROOT, pages

sys.path.insert(0, str(ROOT / "tools"))
import reference

OPERATED = [ROOT / "Dockerfile", *sorted(p for p in (ROOT / "ops").rglob("*") if p.is_file())]
NO_SETTINGS = {"DIASTOLE_CACHE", "DIASTOLE_DEBUG"}  # read where there is no configuration yet


def test_the_reference_is_fresh() -> None:
    for name, page in reference.PAGES.items():
        assert (DOCS / name).read_text("utf-8") == page(), f"run tools/reference.py: {name} is stale"


def test_variables_exist() -> None:
    known = {s.variable for s in settings()} | NO_SETTINGS
    seen = 0
    for page in [*pages(), *OPERATED]:
        for variable in re.findall(r"\bDIASTOLE_[A-Z_]+", page.read_text("utf-8")):
            assert variable in known, f"{page.name} names {variable}"
            seen += 1
    assert seen > len(known)


def test_variables_that_are_no_settings_are_read() -> None:
    sources = "".join(p.read_text("utf-8") for p in (ROOT / "src").rglob("*.py"))
    assert {v for v in NO_SETTINGS if f'environ.get("{v}")' in sources} == NO_SETTINGS


def model_flags() -> set[str]:
    """Options of models of live input, as flags."""
    modules = [registry.architecture(info.name) for info in registry.models()]
    options = [module.Options for module in modules if hasattr(module, "live") and hasattr(module, "Options")]
    return {"--" + f.name.replace("_", "-") for o in options for f in fields(o)}


def commands() -> dict[str, set[str]]:
    """Every command with its options."""
    register()
    group: Any = typer.main.get_command(app)
    found: dict[str, set[str]] = {}
    todo = list(group.commands.items())
    for name, command in todo:
        found[name] = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        if (command.context_settings or {}).get("ignore_unknown_options"):
            found[name] |= model_flags()
        todo += [(f"{name} {sub}", inner) for sub, inner in getattr(command, "commands", {}).items()]
    return found


def test_commands_and_their_flags_exist() -> None:
    known = commands()
    seen = set()
    for page in [*pages(), *OPERATED]:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for line in re.findall(r"(?<![\w/.-])(?:\S*/bin/)?diastole ((?:bench )?[a-z]+[^`\n|#]*)", text):
            words = line.split()
            name = next((n for n in (" ".join(words[:2]), words[0]) if n in known), None)
            if name is None:
                continue  # the word in a sentence
            seen.add(name)
            for flag in re.findall(r"(?<!\S)--[a-z][a-z-]*", line):
                assert flag in known[name], f"{page.name}: diastole {name} has no {flag}"
    assert seen == set(known)


def test_every_route_and_field_is_documented() -> None:
    page = (DOCS / "reference" / "http.md").read_text("utf-8")
    for route in ROUTES:
        assert f"{route.method} {route.label}" in page
    for request in (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest):
        for field in request.__struct_fields__:
            assert f"`{field}`" in page, f"docs/reference/http.md does not tell of {field}"


def test_refused_fields_are_those_that_are_refused() -> None:
    page = (DOCS / "reference" / "http.md").read_text("utf-8")
    section = page.split("## Refused fields")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == {*NEUTRAL, *TEMPLATES, "echo"}


def codes(path: Path) -> Iterator[str]:
    """Error codes that a file gives: ``code="..."``, and what ``wrong`` takes in third place."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", "")
            given = [k.value for k in node.keywords if k.arg == "code"]
            given += node.args[2:3] if name in {"wrong", "_last_words"} else []
            yield from (n.value for n in given if isinstance(n, ast.Constant) and isinstance(n.value, str))


@pytest.mark.parametrize("way", ["code to page", "page to code"])
def test_error_codes_are_those_of_the_code(way: str) -> None:
    page = (DOCS / "troubleshooting.md").read_text("utf-8")
    told = set(re.findall(r"^\| \d{3} `(\w+)` \|", page, re.M))
    source = ROOT / "src" / "diastole"
    if way == "code to page":
        given = {c for p in (source / "serve").rglob("*.py") for c in codes(p)}
        assert given <= told, f"docs/troubleshooting.md has no row for {given - told}"
    else:
        text = "".join(p.read_text("utf-8") for p in source.rglob("*.py"))
        assert {c for c in told if f'"{c}"' not in text} == set()
