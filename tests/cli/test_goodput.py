"""``diastole bench goodput``: what it prints and keeps, and what it refuses before anything is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from bench.test_load_remote import Ready
from diastole.cli.goodput import goodput
from diastole.types import UserError
from models.common import embedded

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(goodput)
SMALL = ("--requests", "4", "--lengths", "12:20/18:20", "--streams", "4", "--threads", "1")


def run(*args: str) -> Result:
    return CliRunner().invoke(app, [*args], env={"COLUMNS": "200", "OPENAI_API_KEY": "sk-secret"})


def refused(*args: str) -> str:
    found = run(*args)
    assert isinstance(found.exception, UserError), found.output
    return found.exception.message


def test_help_teaches() -> None:
    shown = run("--help").output
    for word in (
        "--trace",
        "--use",
        "--ttft-ms",
        "bisect",
        "A request is good if",
        "diastole bench goodput --requests",
    ):
        assert word in shown


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--trace", "x", "--mixed"], "give --trace or --mixed, not both"),
        (["--url", "http://x", "--use", "ngram"], "give --url or --use, not both"),
        (["--rate", "1", "--clients", "1"], "give --rate or --clients, not both"),
        (["--rate", "0"], "--rate must be above 0"),
        (["--rate", "nan"], "--rate must be above 0"),
    ],
)
def test_what_does_not_go_together(args: list[str], what: str) -> None:
    assert what in refused(*args)


@pytest.mark.parametrize("args", [["--tpot-ms", "nan"], ["--ttft-ms", "inf"], ["--requests", "0"], ["--patience", "0"]])
def test_what_is_out_of_range(args: list[str]) -> None:
    found = run(*args)
    assert found.exit_code == 2
    assert f"Invalid value for '{args[0]}'" in found.output


@pytest.mark.model
def test_wrong_loads_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    embedded()
    assert "must be median:p90/median:p90" in refused(*SMALL[:2], "--lengths", "5")
    assert "no-such.csv cannot be read" in refused("--trace", "no-such.csv", "--data", str(tmp_path))
    assert "recorded needs a --trace" in refused(*SMALL, "--arrivals", "recorded")
    assert "'plain' is given twice" in refused("--use", "plain", "--use", "plain")
    assert "no server with OpenAI's API" in refused("--url", "http://127.0.0.1:9")


@pytest.mark.model
def test_stacks_are_compared_at_a_rate_and_all_is_kept(tmp_path: Path) -> None:
    embedded()
    (tmp_path / "t.jsonl").write_text(
        "".join(
            json.dumps({"timestamp": 250 * i, "input_length": 640, "output_length": 90, "hash_ids": [1, i + 2]}) + "\n"
            for i in range(5)
        )
    )
    args = ("--requests", "4", "--trace", "t.jsonl", "--data", str(tmp_path), "--scale", "0.2", "--threads", "1")
    more = ("--arrivals", "recorded", "--rate", "9", "--use", "plain", "--use", "ngram", "--streams", "4")
    found = run(*args, *more, "--save", str(tmp_path / "out"), "--ttft-ms", "60000", "--tpot-ms", "60000")
    assert found.exit_code == 0, found.exception
    assert "lengths x 0.2" in found.stdout
    assert "TTFT 60,000.0 ms (as given" in found.stdout
    kept: dict[str, Any] = json.loads((tmp_path / "out" / "goodput.json").read_text())
    assert [(p["name"], p["rate"], p["good"], p["requests"]) for p in kept["points"]] == [
        ("plain", 9.0, 4, 4),
        ("ngram", 9.0, 4, 4),
    ]
    assert kept["load"]["lengths"] == [[128, 18]] * 4
    assert kept["points"][0]["cached"] > 0  # the first block is everybody's
    assert kept["settings"]["scale"] == 0.2
    assert {"processor", "cores", "kernels"} <= kept["machine"].keys()
    assert "commit" in kept
    assert "sk-secret" not in json.dumps(kept)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert "matplotlib is not installed" in found.stdout
    else:
        assert (tmp_path / "out" / "goodput.png").stat().st_size > 1000


@pytest.mark.model
def test_a_server_is_bisected_over_http() -> None:
    embedded()
    with Ready() as running:
        args = ("--url", running.url, "--send", "text", "--low", "50", "--high", "100", "--json")
        found = run(*SMALL, *args, "--ttft-ms", "60000", "--tpot-ms", "60000")
        assert found.exit_code == 0, found.exception
        told = json.loads(found.stdout)
        assert told["capacity"]["echo"] == {
            "rate": 100.0,
            "open": True,
            "words": "at least 100 requests/s with 90% in time",
        }
        assert [p["rate"] for p in told["points"]] == [50.0, 100.0]
