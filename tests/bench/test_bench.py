"""The measuring instruments: what they refuse, what they print, and that they leave nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from diastole import sample
from diastole.bench import compare, contest, overhead, quality, report
from diastole.bench.field import COMPACT, SAME_FILE, Entry, suits
from diastole.bench.limits import Machine, Needs
from diastole.bench.task import Task
from diastole.types import UserError

KEPT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "compare-smollm2-135m-amx.json"


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    result = contest.Result(Task("t", 1, 8), {"a": [10, 30, 20], "b": [10, 10, 5]})
    assert result.ratio("a", "b") == (3, 1, 4)
    assert result.median("a") == 20
    assert result.best(["a", "b"]) == "a"
    assert result.best(["c"]) is None


def test_who_was_measured_once_is_not_the_best() -> None:
    result = contest.Result(Task("t", 1, 8), {"a": [10, 30], "b": [99]})
    assert result.best(["a", "b"]) == "a"


def test_limits_take_what_is_longer() -> None:
    machine = Machine(2, bandwidth=1e9, int8=1e12, bf16=1e12, f32=1e11)
    needs = Needs(weights=10**8, kv_token=0, layers={"q4": 10**8}, head=("q8", 0), attention=0, kernels="x")
    assert needs.seconds(Task("decode", 1, 64, steps=1), machine) == pytest.approx(0.1)  # reading 100 MB
    assert needs.seconds(Task("prefill", 1, 10_000), machine) == pytest.approx(1.0)  # multiplying


def test_unknown_names_are_told_with_the_known_ones() -> None:
    assert compare.formats("q4_0, q8_0") == ["q4_0", "q8_0"]
    assert len(compare.formats("")) > 2
    for wrong, param in ((lambda: compare.formats("q3"), "formats"), (lambda: compare.tasks("sleep"), "tasks")):
        with pytest.raises(UserError, match="there are") as e:
            wrong()
        assert e.value.param == param


def test_options_for_long_contexts_stay_out_of_short_ones() -> None:
    int8 = Entry("diastole int8 kv", "diastole", Path("x"))
    bf16 = Entry("diastole bf16 weights", "diastole", Path("x"))
    assert [suits(int8, t) for t in compare.TASKS] == [t.prompt >= 2048 for t in compare.TASKS]
    assert [suits(bf16, t) for t in compare.TASKS] == [t.steps == 0 for t in compare.TASKS]
    for name in (SAME_FILE, COMPACT):
        entry = Entry(name, "diastole", Path("x"))
        assert [suits(entry, t) for t in compare.TASKS] == [t.prompt < 2048 for t in compare.TASKS]


def test_the_table_shows_every_task_whole() -> None:
    found = json.loads(KEPT.read_text())
    console = Console(width=report.WIDTH, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.as_table(found))
    text = console.export_text()
    assert "…" not in text
    for task in found["tasks"]:
        assert task["name"] in text
        assert f"{task['against_llama.cpp']['ratio']:.2f}" in text


def test_watching_the_sampler_ends() -> None:
    plain = sample.sample
    with overhead.native_sampling() as watch:
        assert sample.sample is not plain
        assert watch.time(lambda: 7) == 7
    assert sample.sample is plain


def test_perplexity_of_what_is_sure_and_of_what_is_not() -> None:
    ids = np.array([0, 1, 2, 3], np.int32)
    sure = np.full((4, 5), -100, np.float32)
    sure[np.arange(3), ids[1:]] = 0
    assert quality.perplexity(sure, ids) == pytest.approx(1)
    assert quality.perplexity(np.zeros((4, 5), np.float32), ids) == pytest.approx(5)


def test_there_is_enough_text_for_twenty_thousand_tokens() -> None:
    assert len(quality.standard_text()) > 5 * 20_480
