"""What a soak says while it runs."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    import soak_progress

    return soak_progress


def test_lines_where_there_is_no_terminal(progress: ModuleType, tmp_path: Path) -> None:
    tally, file, out = progress.Tally(), tmp_path / "health", io.StringIO()
    health = progress.Health(file)

    async def soak() -> None:
        async with progress.showing("3.0/s", 600, tally, health, out, every=0.01):
            while out.getvalue().count("\n") < 2:
                await asyncio.sleep(0.001)
            tally.outcomes["short whole", "finished"] += 40
            tally.outcomes["long prompt", "turned away"] += 2
            file.write_text("0.001\n0.004\n0.00")  # the last one is not written to its end

    asyncio.run(asyncio.wait_for(soak(), 10))
    first, *_, last = out.getvalue().splitlines()
    assert first == "3.0/s: 0/600 s, 0 requests, 0 refused, /health p99 not asked yet"
    assert last.endswith("42 requests, 2 refused, /health p99 4.0 ms")
    with file.open("a") as more:
        more.write("9\n")
    assert health.look() == [0.001, 0.004, 0.009]
    tally.fault("short whole", "lost")
    assert "1 WRONG" in progress.state(1, 2, tally, health.times)


def test_a_bar_in_a_terminal(progress: ModuleType, tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out, tally = Terminal(), progress.Tally()

    async def soak() -> None:
        async with progress.showing("3.0/s", 600, tally, progress.Health(tmp_path / "none"), out):
            tally.outcomes["short whole", "finished"] += 7

    asyncio.run(asyncio.wait_for(soak(), 10))
    assert "7 requests, 0 refused" in out.getvalue()
