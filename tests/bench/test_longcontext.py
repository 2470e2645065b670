"""The long-context suite: its cases are what they say and the same for a seed, and its marks can tell good from bad."""

from __future__ import annotations

import json
from functools import cache
from random import Random

import numpy as np
import pytest
from typer.testing import CliRunner

from diastole.bench.longcontext import study
from diastole.bench.longcontext.case import Case, Question, judge, observe
from diastole.bench.longcontext.tasks import TASKS
from diastole.bench.longtext import DOMAINS, Corpus
from diastole.bench.rig import Rig
from diastole.cli import main
from diastole.types import UserError
from models.common import embedded, tokenizer

pytestmark = pytest.mark.model


@cache
def corpus() -> Corpus:
    embedded()
    return Corpus.of(tokenizer())


@pytest.mark.parametrize("name", TASKS)
def test_cases_have_their_length_and_depend_on_the_seed_alone(name: str) -> None:
    task = TASKS[name]
    one, again, other = (task.cases(corpus(), 700, 2, seed) for seed in (3, 3, 4))
    assert one == again
    assert one != other
    assert one[0] != one[1]
    for case in one:
        assert len(case.context) == 700
        assert all(q.given and (q.answer or q.steps) for q in case.questions)


@pytest.mark.parametrize("name", ["needle", "pairs", "copying"])
def test_what_is_asked_was_told_at_its_depth(name: str) -> None:
    for case in TASKS[name].cases(corpus(), 900, 3, seed=1):
        for q in case.questions:
            at = [i for i in range(len(case.context)) if case.context[i : i + len(q.answer)] == q.answer]
            assert len(at) == 1  # so nothing but this place can tell
            assert at[0] / 900 == pytest.approx(float(q.label.split()[1].rstrip("%")) / 100, abs=0.12)


def test_every_domain_gives_cuts_and_unknown_ones_are_told() -> None:
    for name in DOMAINS:
        if DOMAINS[name]():
            assert len(Corpus.of(tokenizer(), name).cut(8000, Random(0))) == 8000
    with pytest.raises(UserError, match="documentation"):
        Corpus.of(tokenizer(), "poems")
    with pytest.raises(UserError, match="tokens"):
        corpus().cut(10**9, Random(0))


def test_marks_of_good_and_of_bad_answers() -> None:
    question = Question.of([1], [2, 0, 3])
    dense = np.full((3, 4), -9.0, np.float32)
    dense[[0, 1, 2], [2, 0, 3]] = 9
    good = judge(question, dense, dense)
    assert (good.right, good.exact, good.rank, good.divergence, good.agreed) == (1, True, 0, 0, 3)
    bad = dense.copy()
    bad[1] = [-9, 1, 3, 2]  # the right token comes last
    marks = judge(question, bad, dense)
    assert (marks.right, marks.exact, marks.rank, marks.agreed) == (pytest.approx(2 / 3), False, 3, 1)
    assert marks.divergence > 1
    assert study.mean([good], "perplexity") == pytest.approx(1, abs=1e-6)
    assert study.mean([good, marks], "exact") == 0.5


def test_open_answers_are_what_greedy_decoding_says_and_questions_do_not_mix() -> None:
    ids = corpus().cut(80, Random(0))
    with Rig(context=256, streams=3) as rig:
        questions = (Question((ids[0], ids[1]), (), 12), Question((ids[2],), (), 5))
        settled, seen = observe(rig, Case(tuple(ids), questions))
        for question, logits in zip(settled.questions, seen, strict=True):
            assert logits.shape == (question.steps, rig.vocab)
            with rig.stream([*ids, *question.given, *question.answer]) as s:
                alone = rig.absorb_all(s)[-len(question.answer) - 1 : -1]
            assert (alone == logits).all()
            assert tuple(alone.argmax(-1)) == question.answer
        assert rig.loop.pool.used == 0


def test_names_and_lengths_are_read_and_wrong_ones_told() -> None:
    assert study.lengths("1k, 700") == [1000, 700]
    assert list(study.chosen("needle, pairs")) == ["needle", "pairs"]
    assert study.chosen("") == dict(TASKS)
    for wrong in ("", "k", "12", "-5", "9" * 40, "1.5k"):
        with pytest.raises(UserError, match="lengths"):
            study.lengths(wrong)
    with pytest.raises(UserError, match="needle"):
        study.chosen("sleep")


@pytest.mark.slow
def test_int8_keys_and_values_cost_little_and_the_command_says_so() -> None:
    main.register()
    arguments = [
        "bench",
        "longcontext",
        "--use",
        "int8-kv",
        "--lengths",
        "512",
        "--cases",
        "1",
        "--tasks",
        "perplexity,needle",
        "--json",
    ]
    result = CliRunner().invoke(main.app, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["bytes_per_token"]["own"] < 0.6 * told["bytes_per_token"]["dense"]
    continuation, needle = told["tasks"]
    assert 0 < continuation["marks"]["divergence"]["own"] < 0.02
    assert continuation["marks"]["divergence"]["dense"] == 0
    assert needle["marks"]["exact"]["dense"] >= 0.75
    assert needle["questions"] == 4
