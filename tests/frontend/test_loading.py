"""The loading bar, and what is kept between starts."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from diastole.config import Config, ServiceConfig
from diastole.frontend import assembly, loading
from diastole.nn import linear
from diastole.types import UserError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_long_load_shows_a_bar_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PATIENCE", -1.0)
    screen = Terminal()
    with loading.LoadingBar("some-model", screen) as bar:
        for done in range(1, 4):
            bar.tell(done, 3)
    assert "some-model" in screen.getvalue()
    assert "3/3" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")  # the line is cleared


@pytest.mark.parametrize(("screen", "patience"), [(io.StringIO(), -1.0), (Terminal(), 1e9)])
def test_nobody_watching_or_a_short_load_show_none(
    monkeypatch: pytest.MonkeyPatch, screen: io.StringIO, patience: float
) -> None:
    monkeypatch.setattr(loading, "PATIENCE", patience)
    with loading.LoadingBar("some-model", screen) as bar:
        bar.tell(1, 3)
    assert screen.getvalue() == ""


def test_the_second_start_converts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(service={"m": ServiceConfig(model=str(assembly.resolve("smollm2-135m")), context=256)})
    monkeypatch.setenv("DIASTOLE_CACHE", str(tmp_path))

    def layers() -> list[bytes]:
        engine, _, _ = assembly.build_engine(config)
        blocks = engine.services[0].model.blocks  # type: ignore[attr-defined]
        return [b.mlp.down.parts[0].data.tobytes() for b in blocks[:3]]

    first = layers()
    assert [p.suffix for p in (tmp_path / "packed").iterdir()] == [".pack"]
    monkeypatch.setattr(linear, "pack", lambda *_: pytest.fail("a matrix was converted again"))
    assert layers() == first


def test_services_share_an_instruction_set() -> None:
    services = {name: ServiceConfig(model="m.gguf", kernels=k) for name, k in (("a", "auto"), ("b", "avx2"))}
    with pytest.raises(UserError, match=r"one instruction set.*a: auto, b: avx2") as e:
        assembly.build_engine(Config(service=services))
    assert e.value.param == "kernels"
