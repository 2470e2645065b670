"""``diastole plan``: what it prints says that it is simulated, and wrong options are refused by name."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from diastole.cli.plan import app
from diastole.types import UserError

QUICK = ["--gpus", "3", "--requests", "40", "--tolerance", "1", "--ceiling", "4", "--lengths", "500:40:0.3"]
PROMISES = ["--slo-ttft", "0.2", "--slo-tpot", "0.1"]


def run(*args: str) -> str:
    result = CliRunner().invoke(app, [*QUICK, *args], catch_exceptions=True)
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_it_says_that_it_is_simulated_and_where_times_come_from() -> None:
    out = run(*PROMISES)
    assert out.startswith("simulated, nothing was run: opt-13b on NVIDIA A100")
    assert "LLMServe/DistServe" in out
    assert "best (simulated)" in out
    assert "colocated" in out


@pytest.mark.parametrize("affinity", ["high", "low"])
def test_json(affinity: str) -> None:
    found = json.loads(run(*PROMISES, "--affinity", affinity, "--json", "--rate", "2"))
    assert found["simulated"] is True
    assert found["gpus"] <= 3
    assert found["attained"] >= 0.9
    assert {o["placement"].split(" ")[0] for o in found["colocated"]} == {"colocated"}


def test_a_roofline_says_what_is_assumed() -> None:
    out = run(*PROMISES, "--model", "llama-3.1-8b", "--hardware", "h100-80g")
    assert "roofline of published peaks; assumed: 60% of FLOP/s" in out.replace("\n", " ")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ([], "--slo-ttft"),
        (["--slo-ttft", "0.2"], "--slo-tpot"),
        (["--slo-ttft", "nan", "--slo-tpot", "0.1"], "--slo-ttft"),
        ([*PROMISES, "--attainment", "1.5"], "--attainment"),
        ([*PROMISES, "--affinity", "middle"], "--affinity"),
        ([*PROMISES, "--rate", "-1"], "--rate"),
        ([*PROMISES, "--tolerance", "0"], "--tolerance"),
        ([*PROMISES, "--lengths", "1:2:3:4"], "--lengths"),
        ([*PROMISES, "--lengths", "0:5"], "lengths: prompt"),
        ([*PROMISES, "--lengths", "nothing.csv"], "nothing.csv cannot be read"),
        ([*PROMISES, "--model", "gpt-9"], "gpt-9"),
        ([*PROMISES, "--hardware", "abacus"], "abacus"),
        (["--slo-ttft", "0.01", "--slo-tpot", "0.1"], r"infeasible: --slo-ttft 0.01 s .* \d+ ms"),
    ],
)
def test_wrong_options_are_refused_by_name(args: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        run(*args)
