"""The reproduction of hidden transfer: what it counts, what it judges, and that it would see what must not be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole import papers
from diastole.bench.drafts import PLAIN, Cell, Side
from diastole.bench.rig import Rig
from diastole.clock import FakeClock
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.heads.transfer import Transfer
from diastole.recipes.own_text import Texts
from diastole.reproduce import harness
from diastole.reproduce import hidden_transfer as reproduction
from diastole.reproduce import hidden_transfer_maps as maps
from diastole.reproduce import hidden_transfer_rows as rows
from diastole.reproduce.report import as_json
from diastole.reproduce.study import Study
from diastole.techniques.hidden_transfer import NAME
from diastole.types import Array, Batch, Draft, UserError
from diastole.weights.calibration import Calibration, about
from models.common import embedded
from spec.oracle import Oracle
from techniques import owed

LAYERS = (8, 10, 12)


def tensors() -> dict[str, Array]:
    """Random maps for the small model."""
    rng, d = np.random.default_rng(0), owed.facts().decoder.width  # type: ignore[union-attr]
    own = rng.normal(size=(len(LAYERS), d, d)) / d**0.5 / 2
    return {
        "maps": own.astype(np.float16),
        "layers": np.array(LAYERS, np.int32),
        "vocab": np.arange(128, dtype=np.int32),
    }


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig.around(Engine([owed.service(streams=2)], FakeClock(), LeastSlack())) as rig:
        yield rig


def texts(count: int, length: int, prompt: int = 20) -> Texts:
    ids = np.array([owed.prompt(length, i) for i in range(count)], np.int32).reshape(-1)
    return Texts(ids, np.arange(count + 1) * length, np.full(count, prompt), owed.facts().fingerprint)


# ---- with and without pseudo rows


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> owed.Life:
    """Of a service whose drafts are mostly right, and branch."""
    from diastole.techniques.hidden_transfer import HiddenTransfer

    oracle, draft = Oracle(owed.service, 0.9, branches=3), HiddenTransfer.draft

    def guess(self: HiddenTransfer, streams: Any, lengths: Any) -> Any:
        draft(self, streams, lengths)
        return oracle.draft(streams, lengths)

    monkeypatch.setattr(HiddenTransfer, "draft", guess)
    Calibration(tensors(), about(NAME, owed.facts())).write(tmp_path / "maps")
    return owed.Life(owed.service(f"{NAME}:weights={tmp_path / 'maps'},nodes=6", chunk=150, streams=4))


def lived(life: owed.Life) -> rows.Twice:
    twice = rows.Twice(life.service)
    for i in range(4):
        life.ask(f"r{i}", owed.prompt(40 + 130 * i, i), 14)
        life.step()
    life.finish()
    return twice


def test_nothing_real_differs(life: owed.Life) -> None:
    twice = lived(life)
    assert (twice.difference, twice.changed) == (0, 0)
    assert twice.rows > twice.batches > 8
    assert twice.branched > 0
    assert twice.mixed > 0
    plain = owed.service()
    assert life.said["r2"] == owed.alone(plain, owed.prompt(300, 2), 14)


@pytest.mark.parametrize("leak", ["logits", "nan", "pages"])
def test_what_would_leak_is_seen(life: owed.Life, monkeypatch: pytest.MonkeyPatch, leak: str) -> None:
    forward = Transfer.forward

    def leaking(self: Transfer, b: Batch, state: Any, sources: Array) -> Any:
        logits, states = forward(self, b, state, sources)
        if leak == "pages":
            state["kv"].buffers[-1][-1, -1, -1] ^= 1
        elif len(logits):
            logits[-1, 7] = np.nan if leak == "nan" else logits[-1, 7] + 1e-3
        return logits, states

    monkeypatch.setattr(Transfer, "forward", leaking)
    twice = lived(life)
    seen = {"logits": twice.difference > 1e-4, "nan": bool(np.isnan(twice.difference)), "pages": twice.changed > 0}
    assert [name for name, it in seen.items() if it] == [leak]
    study = Study()
    reproduction.lossless(study, {}, {"greedy": 0, "sampled": 0}, twice)
    assert [c.main.what.split()[0] for c in study.checks if not c.holds] == [{"pages": "bytes"}.get(leak, "logits")]


def test_steps_are_timed_with_as_many_rows_as_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    forward = Transfer.forward

    def count(self: Transfer, b: Batch, state: Any, sources: Array) -> Any:
        logits, states = forward(self, b, state, sources)
        assert len(logits) == len(sources)  # every row is one, and is read
        seen.append((len(sources), states.shape[1]))
        return logits, states

    monkeypatch.setattr(Transfer, "forward", count)
    study = Study(quick=True)
    monkeypatch.setattr(rows, "EACH", 1)
    found = rows.costs(study, rig, tensors(), [4])
    assert set(found) == {(4, n) for n in range(4)}
    assert set(seen) == {(4, n) for n in (1, 2, 3)}
    assert all(seconds > 0 for seconds in found.values())
    rows.tell(study, {(1, 0): 0.002, (1, 3): 0.003, (4, 0): 0.004, (4, 3): 0.008})
    assert [row[2:] for row in study.tables[0].rows] == [(1, 2, 1), (4, 3, 1.5), (4, 4, 2), (16, 8, 4)]
    assert [(c.label, c.y) for c in study.curves] == [("0 pseudo rows each", (1, 2)), ("3 pseudo rows each", (1.5, 4))]


# ---- what is learned


def test_what_a_draft_brings() -> None:
    #  0: 7 - 2: 9 - 4: 5;  1: 8 - 3: 9
    draft = Draft([7, 8, 9, 9, 5], [-1, -1, 0, 1, 2])
    for said, want in (
        ([7, 9, 5], [1, 1, 2, 2, 3]),
        ([7, 9, 4], [1, 1, 2, 2, 2]),
        ([8, 9, 5], [0, 1, 1, 2, 2]),
        ([6, 9, 5], [0, 0, 0, 0, 0]),
        ([7, -1, 5], [1, 1, 1, 1, 1]),  # a token that maps cannot tell
    ):
        assert maps.brought(draft, said) == [*want, *[want[-1]] * (maps.NODES - 5)]


def test_conversations_with_a_request_that_was_learned_judge_nobody() -> None:
    found = texts(6, 50)
    found.ids[250:270] = found.ids[0:20]  # the last one asks what the first one does
    lessons, exam = maps.split(found, 3)
    assert np.array_equal(lessons.ids, found.ids[:150])
    assert np.array_equal(exam.ids, found.ids[150:250])
    assert (exam.starts.tolist(), exam.prompts.tolist()) == ([0, 50, 100], [20, 20])


@pytest.mark.parametrize("name", ["transfer", "last", "medusa"])
def test_grades_are_of_what_a_student_says(torch: Any, rig: Rig, name: str) -> None:
    layers = LAYERS if name == "transfer" else (16, 16, 16)
    student = maps.Maps(name, layers, rig.decoder.width)
    torch.manual_seed(0)
    for weight in (student.weight, student.bias):
        torch.nn.init.normal_(weight.data, std=0.1)
    if name != "medusa":
        student.bias.data.zero_()
    student.scale.uniform_(0.5, 2.0)
    vocab = np.arange(0, owed.VOCAB, 2, dtype=np.int32)
    exam = maps.Exam(rig, texts(3, 120), vocab, LAYERS, seed=0)
    assert [len(p.pos) for p in exam.passages] == [64] * 3
    found = maps.revived(name, student.tensors(vocab))
    grade = exam.grade(found)
    assert grade.right.shape == (3, 3, 2)
    right, chains = [], []
    for p in exam.passages:
        with torch.no_grad():
            want, got = student(p, exam.above), found(p, exam.above)
        assert (want - got).abs().max() < 0.02 * want.abs().max()  # maps are kept in half precision
        top = got.argsort(-1, descending=True)[..., :5]
        right.append([(top[..., :1] == p.said[..., None]).any(-1).float().mean(0).tolist()])
        chains += (top[:, 0, 0] == p.said[:, 0]).float().tolist()
        five = (top == p.said[..., None]).any(-1).float().mean(0).numpy()
        np.testing.assert_allclose(grade.right[len(right) - 1, :, 1], five, atol=1e-6)
    np.testing.assert_allclose(grade.right[..., 0], np.array(right)[:, 0], atol=1e-6)
    np.testing.assert_allclose(grade.shares[:, 0], np.array(right)[:, 0].mean(0), atol=1e-6)
    assert grade.kept[0] == pytest.approx(np.mean(chains))  # one node: the likeliest token of the first offset
    assert all(np.diff(grade.kept) >= 0)


def test_places_that_judge_have_all_their_offsets_behind_them(torch: Any, rig: Rig) -> None:
    vocab = np.arange(owed.VOCAB, dtype=np.int32)
    of = texts(3, 30, prompt=20)
    of.prompts[1] = 30  # no answer
    exam = maps.Exam(rig, of, vocab, LAYERS, seed=0)
    assert [p.pos.tolist() for p in exam.passages] == [list(range(19, 26))] * 2
    assert exam.passages[1].said[-1].tolist() == of.ids[60:][27:30].tolist()


@pytest.mark.parametrize("quick", [False, True])
def test_a_small_study_of_learning(torch: Any, rig: Rig, quick: bool) -> None:
    study = Study(quick)
    maps.learn(study, rig, texts(8, 90), LAYERS, maps.Size(4, 3, (2, 8, 10, 15)))
    if quick:
        assert not study.checks
        assert "4 steps teach too little" in study.notes[0]
    else:
        *beside, bottom, top = (c.main.what for c in study.checks)
        assert [what.split(":")[0] for what in beside] == ["offset +2", "offset +3", "all offsets"]
        assert "beside 2, the very bottom" in bottom
        assert "beside 15, the very top" in top
    json.dumps(as_json(study), allow_nan=False)
    foreseen, brought = study.tables
    students = [row[:2] for row in foreseen.rows]
    assert students == [row[:2] for row in brought.rows]
    assert students[:3] == [("hidden transfer", "8+10+12"), ("transfer at the last layer", 16), ("Medusa-1", 16)]
    assert [at for _, at in students[3:]] == [2, 8, 10, 15]
    assert all(len(row) == 2 + 6 for row in foreseen.rows)
    layers = [c for c in study.curves if c.xlabel == "maps after layer"]
    assert [c.x for c in layers] == [(2, 8, 10, 15, 16)] * 3
    assert [c.label for c in study.curves if c.xlabel == "nodes"] == [s for s, _ in students[:3]]


def grade(*shares: float) -> maps.Grade:
    """Of conversations in which so many of the likeliest tokens are right."""
    right = np.tile(np.array(shares)[:, None, None], (1, 3, 2))
    return maps.Grade(right, np.arange(maps.NODES))


@pytest.mark.parametrize(
    ("bottom", "top", "holds"),
    [
        ((0.1, 0.2, 0.3), (0.2, 0.3, 0.4), [True, True]),
        ((0.6, 0.4, 0.5), (0.2, 0.3, 0.4), [False, True]),  # now more, now less
        ((0.2, 0.3, 0.4), (0.6, 0.7, 0.8), [True, False]),
    ],
)
def test_layers_in_between_must_be_ahead_by_more_than_chance(
    monkeypatch: pytest.MonkeyPatch, rig: Rig, bottom: tuple[float, ...], top: tuple[float, ...], holds: list[bool]
) -> None:
    swept = {2: bottom, 8: (0.3, 0.3, 0.3), 10: (0.4, 0.5, 0.6), 15: top}

    def grades(study: Study, rig: Rig, lessons: Any, exam: Any, layers: Any, steps: int, baselines: bool) -> Any:
        if not baselines:
            return {maps.TRANSFER: grade(*swept[layers[0]])}
        return {maps.TRANSFER: grade(0.4, 0.4), maps.LAST: grade(0.3, 0.6), maps.MEDUSA: grade(0.3, 0.4)}

    monkeypatch.setattr(maps, "_grades", grades)
    study = Study()
    maps.learn(study, rig, texts(5, 40), LAYERS, maps.Size(1, 2, [*swept]))
    assert [c.holds for c in study.checks] == [True, True, False, *holds]
    assert study.checks[3].main.what.startswith("maps after layer 10 beside 2")


# ---- what is judged


def side(seconds: list[float], tokens: int = 100, steps: int = 100, drafted: int = 0, kept: int = 0) -> Side:
    return Side(seconds, tokens, steps, drafted, kept)


def cells(**chat: Side) -> Mapping[str, Cell]:
    copying = {name: side([1.0, 1.0, 1.0]) for name in (PLAIN, *(n.replace("_", " ") for n in chat))}
    named = {name.replace("_", " "): s for name, s in chat.items()}
    return {
        "chat": Cell("chat", 1, 100, {PLAIN: side([1.0, 1.0, 1.0]), **named}),
        "copying": Cell("copying", 1, 100, copying),
    }


def test_the_fastest_of_the_first_round_is_judged_in_the_others() -> None:
    lucky = side([0.5, 1.1, 1.1], steps=80, drafted=80, kept=20)
    smart = side([0.8, 0.8, 0.8], steps=70, drafted=90, kept=30)
    study = Study()
    reproduction.speed(study, cells(chain_of_1=lucky, tree_of_6_with_smartspec=smart), {"chain of 1": 1.5})
    best, chat = (c.main for c in study.checks)
    assert best.what.endswith("chat, chain of 1")
    assert float(best.here) == pytest.approx(1 / 1.1)
    assert not best.holds
    assert best.why == "at best, chat with a chain of 1, a step brings 1.25 tokens and costs 1.50 plain ones"
    assert study.headline is best
    assert float(chat.here) == pytest.approx(1.25)
    table = {row[:2]: row for row in study.tables[0].rows}
    assert table["chat", "chain of 1"][3:] == pytest.approx((1.25, 1.5, 1e3 * 2.7 / 80, 2.0, 0.25, 100 / 2.7))
    assert table["chat", "tree of 6 with smartspec"][4] == ""
    assert study.verdict.startswith("does not hold here: 1 of 2")


def test_what_a_side_s_step_costs() -> None:
    found = {(t, n): t * (1 + n / 2) for t in (1, 2, 4, 7) for n in range(4)}
    assert reproduction.priced(found, ["chain of 1", "chain of 3", "tree of 6"], 3) == {
        "chain of 1": 3.0,  # two rows with one pseudo row each
        "chain of 3": 10.0,
        "tree of 6": 17.5,
    }
    assert reproduction.priced(found, ["tree of 6"], 2) == {"tree of 6": 14.0}  # of maps for two tokens


def test_nothing_is_proven_by_no_row() -> None:
    study = Study()
    twice = rows.Twice(owed.service())
    reproduction.lossless(study, {}, {"greedy": 0, "sampled": 0}, twice)
    assert [c.holds for c in study.checks] == [True, True, False, True]
    study = Study()
    reproduction.lossless(study, cells(chain_of_1=Side(different=2)), {"greedy": 1, "sampled": 4}, twice)
    assert [float(c.main.here) for c in study.checks[:2]] == [3, 4]


def test_it_is_found_by_its_name() -> None:
    paper = papers.find("hidden-transfer")
    assert paper.reproducible
    found = harness.load(paper)
    assert paper.id.split()[-1] in found.about
    assert found.run is reproduction.run


@pytest.mark.model
def test_without_maps_it_says_how_to_make_them(tmp_path: Path) -> None:
    embedded()
    study = Study(quick=True)
    with pytest.raises(UserError, match="make one with: diastole train hidden-transfer"):
        reproduction.run(study, str(tmp_path / "none"))
    assert not study.timings
