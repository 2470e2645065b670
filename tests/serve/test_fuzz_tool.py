"""``make fuzz`` in small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "fuzz.py"


def test_malformed_requests_break_nothing() -> None:
    command = [sys.executable, str(TOOL), "--requests", "400", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a normal request after     ok" in done.stdout
    assert "/v1/chat/completions" in done.stdout
