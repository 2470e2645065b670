"""The soak in small: counts and leaks under overload, but no times, since tests run on machines that are busy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from models.common import embedded

pytestmark = [pytest.mark.model, pytest.mark.slow]


def test_nothing_is_lost_doubled_or_leaked() -> None:
    embedded()
    soak = Path(__file__).parents[2] / "tools" / "soak.py"
    command = [sys.executable, str(soak), "--seconds", "10", "--counts-only"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "requests in and out of the engine" in done.stdout
    assert "BROKEN" not in done.stdout
