"""What the documentation tells users to type is typed, against a real server."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.pages import DOCS, Snippet, pages, to_run
from frontend.test_serving import Running
from models.common import embedded

pytestmark = [pytest.mark.model, pytest.mark.slow]

WRITTEN = "http://127.0.0.1:8000"  # the server's address in the documentation
WITH_SNIPPETS = [page for page in pages() if to_run(page)]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    embedded()
    running = Running()
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `diastole` and a `python` that are those of this test."""
    folder = tmp_path_factory.mktemp("programs")
    for name, words in (("diastole", " -m diastole.cli.main"), ("python", "")):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


def run(snippet: Snippet, url: str, programs: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = snippet.code.replace(WRITTEN, url)
    command = [sys.executable, "-c", code] if snippet.kind == "python" else ["bash", "-euo", "pipefail", "-c", code]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=lambda p: str(p.relative_to(DOCS.parent)))
def test_snippets_do_what_the_page_says(page: Path, server: Running, programs: Path, tmp_path: Path) -> None:
    for snippet in to_run(page):
        if "curl " in snippet.code and shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        done = run(snippet, server.url, programs, tmp_path)
        assert done.returncode == 0, f"{snippet.code}\n{done.stdout}\n{done.stderr}"
        assert snippet.word is not None
        assert snippet.word in done.stdout, f"{snippet.code}\n{done.stdout}\n{done.stderr}"


def test_the_pages_that_teach_are_tested() -> None:
    names = {str(p.relative_to(DOCS.parent)) for p in WITH_SNIPPETS}
    assert {"docs/quickstart.md", "docs/guides/http.md", "docs/guides/python.md"} <= names
