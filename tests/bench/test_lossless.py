"""Whether all texts are the plain engine's: what is asked, and how it is counted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import typer
from typer.testing import CliRunner

from diastole.bench.lossless import Plain, combinations, questions
from diastole.cli.lossless import _prompt as prompt_of
from diastole.cli.lossless import lossless
from diastole.params import SamplingParams
from models.common import ASSET, embedded


class Said(NamedTuple):
    ids: list[int]


class Fake:
    """Says its prompt again, and something else for the prompts that it is told."""

    def __init__(self, wrong: Sequence[int] = ()) -> None:
        self.wrong, self.counted = wrong, {"spec_decode_num_draft_tokens": 7}

    def generate_each(self, wishes: Sequence[tuple[Any, SamplingParams]]) -> list[Said]:
        self.counted["spec_decode_num_draft_tokens"] += 10
        return [Said([*prompt, params.seed or 0, len(prompt) in self.wrong]) for prompt, params in wishes]

    def counters(self) -> Mapping[str, int]:
        return self.counted


def test_texts_that_differ_are_named() -> None:
    prompts, heard = [[1], [1, 2], [1, 2, 3]], [0]
    params = [SamplingParams(seed=i) for i in range(3)]

    def tell() -> None:
        heard[0] += 1

    plain = Plain.of(Fake(), prompts, params, tell)
    assert heard == [3]
    told = plain.beside(Fake([2]), "ngram", 8)
    assert (told.texts, told.different, told.tokens, told.drafted) == (3, [1], 12, 10)
    assert plain.beside(Fake(), "ngram", 1).different == []


def test_every_drafter_is_combined_with_every_controller() -> None:
    found = combinations("small.gguf")
    assert len(found) == 6 * 2 + 2
    assert ["del", "smartspec"] in found
    assert ["draft-model:model=small.gguf", "fixed:k=4"] in found
    assert len({tuple(u) for u in found}) == len(found)


def test_questions_come_from_all_categories(tmp_path: Path) -> None:
    rows = [{"category": f"kind {i // 10}", "turns": [f"{i // 10}"]} for i in range(60)]
    (tmp_path / "spec_bench_questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert questions(6, tmp_path) == list("012345")
    assert len(questions(100, tmp_path)) == 60


def test_the_command_compares_and_says_what_is_refused(tmp_path: Path) -> None:
    rows = [{"category": "writing", "turns": [f"Say {i}"]} for i in range(3)]
    (tmp_path / "spec_bench_questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out.json"
    embedded()
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(lossless)
    args = f"--model {ASSET} --use ngram --use draft-model --count 3 --tokens 6 --streams 1,2"
    done = CliRunner().invoke(app, [*args.split(), "--data", str(tmp_path), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "6 of 6 texts of 6 tokens are the plain engine's; 2 combinations are refused" in done.output
    told = json.loads(out.read_text())
    assert [(t["use"], t["streams"], t["texts"], bool(t["refused"])) for t in told] == [
        ("ngram", 1, 3, False),
        ("ngram", 2, 3, False),
        ("draft-model", 1, 0, True),
        ("draft-model", 2, 0, True),
    ]


def test_models_without_a_chat_template_go_on_with_the_ends_of_questions() -> None:
    class Voice:
        template = None

        def prompt(self, text: str) -> list[int]:
            return [ord(c) for c in text]

    llm: Any = SimpleNamespace(
        voice=Voice(), engine=SimpleNamespace(services=[SimpleNamespace(loop=SimpleNamespace(context=40))])
    )
    assert prompt_of(llm, "abc", 10) == [97, 98, 99]
    assert prompt_of(llm, "x" * 50 + "the very end.", 10) == [ord(c) for c in "xthe very end."]
