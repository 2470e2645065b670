"""The site builds without a warning, and its pages ask nobody else for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.pages import ROOT

_LOADED = re.compile(
    r'<(?:script|img|iframe|source)[^>]+src="?(https?:|//)|<link[^>]+rel="?(?:stylesheet|preload)[^>]+//'
)


def test_the_site_builds_and_stands_alone(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        assert _LOADED.search(page.read_text("utf-8")) is None, f"{page.name} loads something from elsewhere"
    assert (tmp_path / "notebooks" / "tour.ipynb").exists()
