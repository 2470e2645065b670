"""``diastole bench rows``: what more rows of a step take."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from diastole.cli.rows import numbers
from diastole.types import UserError
from models.common import embedded


def run(*args: str) -> str:
    command = [sys.executable, "-m", "diastole.cli.main", "bench", "rows", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.model
def test_rows_are_timed_beside_the_fewest() -> None:
    embedded()
    found = json.loads(run("--of", "4,1,2", "--times", "2", "--context", "70", "--streams", "2", "--json"))
    assert [*found] == ["1", "2", "4"]
    assert found["1"]["times"] == 1
    assert all(x["times"] == pytest.approx(x["seconds"] / found["1"]["seconds"]) for x in found.values())
    table = run("--of", "1,3", "--times", "1").splitlines()
    assert table[0].split()[:2] == ["rows", "ms"]
    assert [line.split()[0] for line in table[1:]] == ["1", "3"]


@pytest.mark.parametrize("text", ["", "0", "1,x", "513", "1;2"])
def test_wrong_numbers(text: str) -> None:
    with pytest.raises(UserError, match="--of must be numbers from 1 to 512"):
        numbers("of", text, 512)


def test_numbers_ascend() -> None:
    assert numbers("of", "8,1,8,2", 512) == [1, 2, 8]
