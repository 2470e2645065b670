"""Choosing operators."""

import subprocess
import sys

import pytest

from diastole.kernels import table
from diastole.types import UserError
from kernels.cases import ISAS, native


def test_importing_costs_no_torch() -> None:
    script = "import sys, diastole.kernels.table as t; assert 'torch' not in sys.modules; t.load(1, 'native')"
    native()
    done = subprocess.run(
        [sys.executable, "-c", script + "; assert 'torch' not in sys.modules"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_names() -> None:
    assert native().name == f"native-{ISAS[0]}"
    assert table.load(None, "auto").name == f"native-{ISAS[0]}"
    assert table.load(1, "torch").name == "torch"
    assert "scalar" in ISAS
    for isa in reversed(ISAS):
        assert native(isa).name == f"native-{isa}"


def test_unknown_kernels() -> None:
    native()
    with pytest.raises(UserError, match="mmx") as raised:
        table.load(1, "mmx")
    assert raised.value.param == "kernels"


def test_without_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "compiled", lambda: None)
    with pytest.warns(UserWarning, match="slow"):
        assert table.load().name == "torch"
    for wanted in ("native", "avx2"):
        with pytest.raises(UserError, match="not built"):
            table.load(None, wanted)


def test_an_instruction_set_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def isas(self) -> list[str]:
            return ["scalar"]

    monkeypatch.setattr(table, "compiled", Old)
    with pytest.raises(UserError, match="runs scalar"):
        table.load(None, "avx2")
