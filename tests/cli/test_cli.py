"""The command line: what it says, what it exits with, and that a user never sees a traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from diastole.assets.pull import shipped
from diastole.cli.check import check
from diastole.cli.flow import Flow
from diastole.cli.talk import Talk
from diastole.params import SamplingParams
from diastole.types import UserError
from models.common import embedded


def run(*args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diastole.cli.main", *args]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200", **env}
    )


def test_help_teaches_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['diastole', '--help']\n"
        "from diastole.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'tokenizers', 'transformers', 'starlette', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for word in ("serve", "chat", "generate", "pull", "list", "top", "check", "bench"):
        assert word in done.stdout


def test_flags_come_from_the_settings() -> None:
    shown = run("serve", "--help").stdout
    for flag in ("--port", "--threads", "--kv", "--use", "--slo-first", "--no-prefix-cache"):
        assert flag in shown
    assert "--max-model-len" not in shown  # understood, not advertised
    assert run("generate", "x", "--max-model-len", "many").stderr.startswith(
        "error: --max-model-len must be a whole number"
    )


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["serve", "nothing-of-the-kind"], "no known asset"),
        (["serve", "nothing.toml"], "no configuration file nothing.toml"),
        (["serve", "--kv", "int9"], "--kv must be one of auto, f32, bf16, int8, rows"),
        (["serve", "--port", "99999"], "--port must be between 0 and 65535"),
        (["generate", "x", "--temperature", "nan"], "temperature must be between"),
        (["generate", "x", "--schema", "nothing.json"], "--schema: nothing.json cannot be read"),
        (["generate", "x", "--schema", "a", "--regex", "a"], "give only one"),
        (["pull", "smollm"], "Did you mean 'smollm2-135m'"),
        (["chat", "--url", "http://127.0.0.1:9"], "no server with OpenAI's API answers"),
    ],
)
def test_errors_are_one_line(args: list[str], what: str) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert what in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_damaged_model_is_refused_with_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    done = run("serve", str(tmp_path / "model.gguf"), "--port", "0")
    assert done.returncode == 2
    assert "GGUF version" in done.stderr
    assert "Traceback" not in done.stderr


def test_variables_are_settings() -> None:
    done = run("serve", "--port", "0", DIASTOLE_SERVICE_KV="int9")
    assert "DIASTOLE_SERVICE_KV must be one of" in done.stderr


@pytest.mark.model
def test_generate_prints_text_and_json() -> None:
    embedded()
    plain = run("generate", "One, two, three,", "--temperature", "0", "--max-tokens", "4", "--kv-cache-dtype", "int8")
    assert plain.returncode == 0
    assert "four" in plain.stdout
    piped = run("generate", "-", "--temperature", "0", "--max-tokens", "4", "--json", stdin="One, two, three,")
    made = json.loads(piped.stdout)
    assert "four" in made["text"]
    assert len(made["ids"]) == made["usage"]["generated"] == 4


@pytest.mark.model
def test_generate_follows_a_form(tmp_path: Path) -> None:
    embedded()
    assert run("generate", "My number is", "--regex", " [0-9]{3}-[0-9]{2}").stdout.strip().replace("-", "").isdigit()
    (tmp_path / "s.json").write_text('{"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3}')
    made = run("generate", "Numbers:", "--schema", str(tmp_path / "s.json"), "--json")
    assert set(json.loads(json.loads(made.stdout)["text"])) <= {1, 2}
    (tmp_path / "s.json").write_text('{"type": "foo"}')
    wrong = run("generate", "Numbers:", "--schema", str(tmp_path / "s.json"))
    assert (wrong.returncode, "Traceback" in wrong.stderr) == (2, False)
    assert "the JSON schema cannot be followed: Invalid type: foo" in wrong.stderr


@pytest.mark.model
def test_chat_answers_lines() -> None:
    embedded()
    done = run("chat", "--temperature", "0", "--max-tokens", "30", stdin="What is 2+2?\n\n")
    assert done.returncode == 0
    assert "4" in done.stdout


@pytest.mark.model
def test_check_and_list() -> None:
    embedded()
    checked = run("check", "--model", "smollm2-135m")
    assert checked.returncode == 0
    assert "llama, 272 tensors" in checked.stdout
    listed = run("list").stdout
    assert "smollm2-135m" in listed
    assert "int8-kv" in listed
    assert all(name in listed for name in shipped())


def test_pairs_are_tried_and_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A few of them here; docs/compatibility.md, which must be fresh, is made from all."""
    few = ("ngram", "zipcache", "lserve", "del")
    monkeypatch.setattr("diastole.bench.pairs.singles", lambda bench: [bench.trial(name) for name in few])
    check(pairs=True)
    said = capsys.readouterr().out
    assert "pair ngram + zipcache: yes" in said
    assert "pair zipcache + del: refused: del looks at" in said
    assert "pairs: 3 work, 3 are refused, 0 fail" in said


# ---- the conversation


class Parrot:
    name = "parrot"

    def __init__(self) -> None:
        self.heard: list[list[dict[str, str]]] = []
        self.closed = False

    def answer(self, messages: list[dict[str, str]], params: SamplingParams) -> Iterator[tuple[str, int]]:
        self.heard.append(messages)
        if messages[-1]["content"] == "interrupt":
            yield "half", 1
            raise KeyboardInterrupt
        yield messages[-1]["content"].upper(), 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def talk() -> Iterator[tuple[Talk, Parrot, io.StringIO]]:
    parrot, out = Parrot(), io.StringIO()
    with Talk(parrot, SamplingParams(temperature=0.5), "Be kind.", Console(file=out, width=200)) as made:
        yield made, parrot, out
    assert parrot.closed


def test_turns_are_remembered(talk: Any) -> None:
    made, parrot, out = talk
    made.turn("hello")
    made.turn("again")
    assert [m["content"] for m in parrot.heard[1]] == ["Be kind.", "hello", "HELLO", "again"]
    assert out.getvalue() == "HELLO\nAGAIN\n"
    made.command("/reset")
    made.turn("new")
    assert [m["content"] for m in parrot.heard[2]] == ["Be kind.", "new"]


def test_an_interrupted_answer_is_kept(talk: Any) -> None:
    made, _, out = talk
    made.turn("interrupt")
    assert made.turns[-1] == {"role": "assistant", "content": "half"}
    assert "[stopped]" in out.getvalue()


def test_commands(talk: Any, tmp_path: Path) -> None:
    made, _, out = talk
    made.command("/set temperature 0.25")
    assert made.params.temperature == 0.25
    made.command("/system Be brief.")
    made.turn("hi")
    made.command(f"/save {tmp_path / 'talk.json'}")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [m["content"] for m in saved] == ["Be brief.", "hi", "HI"]
    made.command("/help")
    assert "/reset" in out.getvalue()
    for wrong in (
        "/nothing",
        "/set colour 3",
        "/set temperature warm",
        "/set top_p 7",
        "/save",
        "/save /nowhere/at/all",
    ):
        with pytest.raises(UserError):
            made.command(wrong)


@pytest.mark.parametrize("width", [5, 10, 17, 80])
def test_flow_breaks_lines_between_words(width: int) -> None:
    text = "One two  three\nfour, 日本語 five-six a verylongwordindeed\n\nend "
    flow, out = Flow(width), ""
    for i in range(0, len(text), 3):
        out += flow.feed(text[i : i + 3])
    out += flow.flush()
    assert out.split() == text.split()  # nothing lost, no word cut by us
    for line in out.split("\n"):
        assert cell_len(line) <= width or any(cell_len(word) > width for word in line.split())
    assert Flow(80).feed("word ") == "word "
