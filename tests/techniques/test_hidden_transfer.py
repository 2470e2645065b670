"""Hidden Transfer: what a drafter owes; that pseudo rows touch nothing real; that the recipe trains what is served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.bench.tiny import TinyLlama
from diastole.heads.transfer import Transfer
from diastole.kernels.table import load
from diastole.models import llama
from diastole.nn.linear import Loader
from diastole.slots import Facts
from diastole.spec.crossed import likeliest, tree
from diastole.state.kv import PagedKV
from diastole.state.pages import PAGE
from diastole.techniques import hidden_transfer as technique
from diastole.techniques.hidden_transfer import NAME, Ahead, HiddenTransfer
from diastole.types import Array, Batch, Draft, Stream, Tap, UserError
from diastole.weights.calibration import Calibration, about
from spec.oracle import Oracle
from techniques import owed

LAYERS = (8, 10, 10)
SHAPES = ["nodes=3,shape=chain", "nodes=6,topk=4"]


def tensors(seed: int = 0, layers: Sequence[int] = LAYERS) -> dict[str, Array]:
    """Random maps for the small model."""
    rng, d = np.random.default_rng(seed), owed.facts().decoder.width  # type: ignore[union-attr]
    maps = rng.normal(size=(len(layers), d, d)) / d**0.5 / 2
    return {
        "maps": maps.astype(np.float16),
        "layers": np.array(layers, np.int32),
        "vocab": np.arange(0, owed.VOCAB, 2, dtype=np.int32),
    }


def written(path: Path, found: dict[str, Array]) -> str:
    Calibration(found, about(NAME, owed.facts())).write(path)
    return f"{NAME}:weights={path}"


@pytest.fixture(scope="module")
def use(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("transfer") / "maps", tensors())


@pytest.fixture
def right(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    """Random maps are seldom right: here something else says what is guessed, mostly rightly and in branches."""
    oracle, draft = Oracle(owed.service, 0.9, branches=3), HiddenTransfer.draft

    def guess(self: HiddenTransfer, streams: Sequence[Stream], lengths: Sequence[int]) -> Sequence[Draft]:
        draft(self, streams, lengths)
        return oracle.draft(streams, lengths)

    monkeypatch.setattr(HiddenTransfer, "draft", guess)
    return oracle


# ---- what is owed


@pytest.mark.parametrize("shape", SHAPES)
def test_the_text_is_the_same(use: str, shape: str) -> None:
    owed.same_as_plain(f"{use},{shape}")


@pytest.mark.parametrize("kv", ["f32", "int8", "rows"])
def test_with_other_forms_of_rows(use: str, kv: str) -> None:
    owed.same_as_plain(use, kv=kv)


@pytest.mark.parametrize("shape", SHAPES)
def test_company_and_chunks_change_nothing(use: str, shape: str) -> None:
    owed.indifferent_to_company(f"{use},{shape}")


def test_preemption_changes_nothing(use: str) -> None:
    owed.survives_preemption(use, length=450)  # of 500 the first pages go before anything is in them


def test_abort_leaks_nothing(use: str) -> None:
    owed.abort_leaks_nothing(use)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("pace", ["smartspec", "fixed:k=2"])
def test_random_life(use: str, pace: str, seed: int) -> None:
    owed.random_life(f"{use},nodes=6", pace, seed=seed)


def test_all_of_it_when_guesses_are_right(use: str, right: Oracle) -> None:
    use = f"{use},nodes=12"
    owed.same_as_plain(use)
    owed.indifferent_to_company(use)
    owed.survives_preemption(use)
    owed.abort_leaks_nothing(use)
    owed.random_life(use, "smartspec", seed=3)


def test_beside_what_acts_within_the_layers(use: str) -> None:
    beside = "double-sparsity:budget=64,channels=8,dense_below=100"
    with_it, plain = owed.service(use, beside), owed.service(beside)
    for seed in range(2):
        tokens = owed.prompt(500 + 97 * seed, seed)
        assert owed.alone(with_it, tokens, 30) == owed.alone(plain, tokens, 30)
    assert with_it.meter.counters["spec_decode_num_draft_tokens"] > 20


# ---- nothing real depends on pseudo rows


def test_real_logits_and_pages_are_the_same_bits(use: str) -> None:
    """Each batch with pseudo rows of a crowd's life is run without them too, from the same pages."""
    life = owed.Life(owed.service(f"{use},nodes=6", chunk=150, streams=4))
    forward, pages = life.service.model.forward, life.service.state["kv"].buffers
    seen: list[Batch] = []

    def twice(b: Batch, state: Any) -> Array:
        if b.relay is None:
            return forward(b, state)
        before = [x.copy() for x in pages]
        plain = forward(replace(b, relay=None), state).copy()
        after = [x.copy() for x in pages]
        for now, was in zip(pages, before, strict=True):
            now[:] = was
        with_them = forward(b, state)
        assert np.array_equal(plain, with_them)
        assert all(map(np.array_equal, after, pages))
        seen.append(b)
        return with_them

    life.service.model.forward = twice  # type: ignore[method-assign]
    for i in range(4):
        life.ask(f"r{i}", owed.prompt(40 + 130 * i, i), 14)
        life.step()
    life.finish()
    assert len(seen) > 12
    assert any(len(b.starts) > len(b) + 1 for b in seen)  # with branches
    assert any(sown is None for b in seen for sown in b.sown)  # beside prompts


def test_only_who_is_asked_makes_pseudo_rows(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    forward = Transfer.forward

    def count(self: Transfer, b: Batch, state: Any, sources: Array) -> Any:
        rows.append(len(sources))
        return forward(self, b, state, sources)

    monkeypatch.setattr(Transfer, "forward", count)
    owed.alone(owed.service(use, "fixed:k=0", chunk=64), owed.prompt(200))
    assert rows == [1]  # the prompt's last token
    rows.clear()
    of = owed.service(f"{use},nodes=3", chunk=64)
    owed.alone(of, owed.prompt(200))
    drafted = of.meter.counters["spec_decode_num_draft_tokens"]
    assert sum(rows) <= of.meter.counters["steps"] + drafted
    assert sum(rows) > drafted > 0


def test_nothing_is_foreseen_where_the_text_ends(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> Any:
        raise AssertionError("no guess could be of use")

    monkeypatch.setattr(Transfer, "forward", none)
    assert len(owed.alone(owed.service(use), owed.prompt(100), 2)) == 2


# ---- what is foreseen


def running(life: owed.Life, tokens: list[int]) -> Stream:
    life.ask("r", tokens, 30)
    while not life.service.ledger.running or life.service.ledger.running[0].left > 1:
        life.step()
    return life.service.ledger.running[0]


def test_after_guesses_that_were_right_it_foresees_what_it_would_without(
    use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States kept are those of the last right node, seen from its own branch."""
    draft = HiddenTransfer.draft
    oracle = Oracle(owed.service, 1.0, branches=2)
    answers = {True: oracle.draft, False: lambda streams, _: [Draft(()) for _ in streams]}
    states: dict[bool, dict[int, Array]] = {True: {}, False: {}}
    for guessing in (True, False):

        def guess(self: HiddenTransfer, streams: Any, lengths: Any, guessing: bool = guessing) -> Any:
            draft(self, streams, lengths)
            return answers[guessing](streams, lengths)

        monkeypatch.setattr(HiddenTransfer, "draft", guess)
        life = owed.Life(owed.service(f"{use},nodes=9"))
        stream = running(life, owed.prompt(190))
        while not stream.finished:
            seen: Ahead = stream.scratch[NAME]
            if seen.at + 2 == stream.known:
                assert seen.states.shape[:2] == (1, 3)
                states[guessing][stream.known] = seen.states[0]
            life.step()
    both = sorted(set(states[True]) & set(states[False]))
    assert 5 < len(both) < len(states[False]) - 5  # many steps were saved
    for known in both:
        np.testing.assert_allclose(states[True][known], states[False][known], atol=1e-5)


def test_the_draft_is_of_the_kept_states_and_only_of_fresh_ones(use: str) -> None:
    life = owed.Life(owed.service(f"{use},nodes=5,topk=3"))
    stream, drafter = running(life, owed.prompt(90)), life.service.loop.drafter
    logits = drafter.transfer.logits(stream.scratch[NAME].states[0])
    ids, odds = likeliest(logits, 3)
    (found,) = drafter.draft([stream], [9])
    assert found == tree(drafter.transfer.vocab[ids], odds, 5)
    assert [len(drafter.draft([stream], [n])[0].tokens) for n in (0, 1, 4)] == [0, 1, 4]
    stream.scratch[NAME].at -= 1
    assert drafter.draft([stream], [5]) == [Draft(())]


def test_choices_go_on_from_what_was_foreseen_once(use: str) -> None:
    life = owed.Life(owed.service(use))
    life.ask("r", owed.prompt(90), 20, n=3)
    life.finish()
    life.check(idle=True)
    assert life.said["r"] == life.said["r/1"] == life.said["r/2"] == owed.alone(owed.service(), owed.prompt(90), 20)


def test_trees_by_hand() -> None:
    ids, odds = np.array([[7, 8], [9, 7], [1, 2]]), np.array([[0.5, 0.4], [0.8, 0.1], [0.9, 0.05]])
    # 7: .5, 8: .4, 7 9: .4 (later), 7 9 1: .36, 8 9: .32, 8 9 1: .288, 7 7: .05, ...
    found = tree(ids, odds, 6)
    paths = [path(found, i) for i in range(6)]
    assert sorted(paths) == [[7], [7, 9], [7, 9, 1], [8], [8, 9], [8, 9, 1]]
    assert found.odds == [{7: 0.5, 8: 0.4, 9: 0.8, 1: 0.9}[t] for t in found.tokens]
    assert tree(ids, odds, 3).tokens[0] == 7
    assert len(tree(ids, odds, 99).tokens) == 2 + 4 + 8
    chain = tree(ids[:, :1], odds[:, :1], 9)
    assert (chain.tokens, chain.parents) == ([7, 9, 1], [-1, 0, 1])


def path(draft: Draft, node: int) -> list[int]:
    assert draft.parents is not None
    up = [] if draft.parents[node] < 0 else path(draft, draft.parents[node])
    return [*up, draft.tokens[node]]


@pytest.mark.parametrize("seed", range(20))
def test_a_tree_has_the_likeliest_paths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k, most = int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(1, 12))
    odds = np.sort(rng.random((n, k)), 1)[:, ::-1] / k
    found = tree(np.arange(n * k).reshape(n, k), odds, most)
    parents = found.parents or ()
    assert all(p < i for i, p in enumerate(parents))
    gains: list[float] = []
    for parent, own in zip(parents, found.odds or (), strict=True):
        gains.append(own * (gains[parent] if parent >= 0 else 1.0))
    assert gains == sorted(gains, reverse=True)
    best = sorted((float(np.prod(p)) for d in range(1, n + 1) for p in product(*odds[:d])), reverse=True)
    np.testing.assert_allclose(gains, best[: len(gains)])
    assert len(gains) == min(most, len(best))


def test_likeliest() -> None:
    logits = np.array([[0.0, 3.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]], np.float32)
    best, odds = likeliest(logits, 2)
    assert best[0].tolist() == [1, 3]
    whole = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(odds, np.take_along_axis(whole, best, 1), rtol=1e-6)
    assert likeliest(logits, 9)[0].tolist() == [[1, 3, 2, 0], [0, 1, 2, 3]]


# ---- what is refused


@pytest.mark.parametrize(
    ("knobs", "why"), [("nodes=0", "nodes"), ("nodes=65", "nodes"), ("topk=0", "topk"), ("shape=comb", "shape")]
)
def test_wrong_knobs(use: str, knobs: str, why: str) -> None:
    with pytest.raises(UserError, match=f"hidden-transfer: {why} must be"):
        owed.service(f"{use},{knobs}")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"maps": np.zeros((3, 8, 8), np.float16)}, "maps must be 128 x 128"),
        ({"maps": np.zeros((2, 128, 128), np.float16)}, "one for each of 3 layers"),
        ({"maps": np.full((3, 128, 128), np.nan, np.float16)}, "finite"),
        ({"layers": np.array([10, 8, 12], np.int32)}, "layers must rise"),
        ({"layers": np.array([8, 10, 17], np.int32)}, "to 16 at most"),
        ({"layers": np.array([0, 8, 9], np.int32)}, "layers must rise from 1"),
        ({"layers": np.array([1.5, 8, 9])}, "layers must be whole numbers"),
        ({"vocab": np.array([0, 256], np.int32)}, "vocab must hold ids"),
        ({"vocab": np.empty(0, np.int32)}, "vocab must hold ids"),
        ({"maps": None}, "weights do not fit this model"),
    ],
)
def test_wrong_files(tmp_path: Path, change: dict[str, Array | None], why: str) -> None:
    found = {name: x for name, x in (tensors() | change).items() if x is not None}
    with pytest.raises(UserError, match=why) as wrong:
        owed.service(written(tmp_path / "maps", found))
    assert "hidden-transfer: weights" in str(wrong.value)


def test_maps_of_another_model_are_refused(tmp_path: Path) -> None:
    Calibration(tensors(), about(NAME, replace(owed.facts(), fingerprint="other"))).write(tmp_path / "maps")
    with pytest.raises(UserError, match="fingerprint 'other'"):
        owed.service(f"{NAME}:weights={tmp_path / 'maps'}")


def test_windows_and_pages_in_other_forms_are_refused(use: str) -> None:
    with pytest.raises(UserError, match=r"hidden-transfer needs .* see a window"):
        HiddenTransfer(technique.Params(), replace(owed.facts(), windowed=True))
    with pytest.raises(UserError, match=r"hidden-transfer .*shadow"):
        owed.service(use, "shadowkv")


# ---- the recipe


class FakeRig:
    """As much of a rig as recipes need."""

    def __init__(self) -> None:
        facts: Facts = owed.facts()
        assert facts.decoder is not None
        self.decoder = facts.decoder


def texts(count: int, length: int) -> Any:
    from diastole.recipes.own_text import Texts

    ids = np.array([owed.prompt(length, i) for i in range(count)], np.int32).reshape(-1)
    return Texts(ids, np.arange(count + 1) * length, np.full(count, 20), owed.facts().fingerprint)


def exact() -> FakeRig:
    """Of the small model, with matrices that round nothing."""
    tiny, rig = TinyLlama(), FakeRig()
    rig.decoder = llama.build(Loader(load(1), tiny, "f32"), tiny.config, owed.CONTEXT)  # type: ignore[arg-type]
    return rig


def one_text(length: int, want: Array) -> Batch:
    """One text as one batch, on the first pages."""
    at, tables = np.arange(length, dtype=np.int32), np.arange(-(-length // PAGE), dtype=np.int32)[None]
    ids, starts = np.array(owed.prompt(length), np.int32), np.array([0, length], np.int32)
    return Batch(
        (), (), ids, at, starts, at.astype(np.int64), tables, np.zeros(length, np.int32), at + 1, want.astype(np.int32)
    )


@pytest.mark.parametrize("layers", [(8, 10, 10), (16, 16, 16), (12, 16)])
def test_the_recipe_computes_what_is_served(torch: Any, layers: tuple[int, ...]) -> None:
    from diastole.recipes.hidden_transfer import TRANSFER, Layers, Maps, Reader

    rig, found, places = exact(), tensors(1, layers), np.array([3, 60, 64, 140])
    batch = one_text(150, places)
    reader = Reader(rig, found["vocab"], layers)  # type: ignore[arg-type]
    above = Layers(rig.decoder, layers[0], found["vocab"], torch.float32)
    student = Maps(TRANSFER, layers, rig.decoder.width)
    student.weight.data.copy_(torch.from_numpy(found["maps"]).float())
    student.scale.fill_(3.0)
    student.scale[:, ::2] = 0.5
    p = reader.passage(batch.inputs, places)
    top = np.argmax(reader.told(reader.states(batch.inputs)[16][places + 1]), 1)
    assert np.array_equal(p.top[:, 0, 0].numpy(), top)  # what the model says of the next but one
    served, kv = Transfer(rig.decoder, student.tensors(found["vocab"]), 3), {"kv": reader.store}
    taps = [Tap(np.arange(9, dtype=np.int32), np.zeros((9, rig.decoder.width), np.float32)) for _ in range(2)]
    logits, states = served.forward(replace(batch, tap=taps[0]), kv, places)
    logits = logits.copy()
    assert np.array_equal(logits, rig.decoder.forward(replace(batch, tap=taps[1]), kv))
    assert np.array_equal(taps[0].hidden, taps[1].hidden)
    got = served.logits(states.reshape(-1, rig.decoder.width)).reshape(len(places), len(layers), -1)
    want = student(p, above).detach().numpy()
    assert np.abs(got - want).max() < 0.03 * np.abs(want).max()


def test_pseudo_rows_see_earlier_ones_of_their_source_alone(torch: Any) -> None:
    decoder, found, places = exact().decoder, tensors(), np.array([5, 70, 71])
    kv, batch = PagedKV("f32"), one_text(100, places)
    kv.alloc(decoder.state_specs()["kv"], 2, decoder.ops)

    def states(rows: Array = places, offsets: int = 3, **change: Array) -> Array:
        return Transfer(decoder, found | change, offsets).forward(batch, {"kv": kv}, rows)[1]

    whole = states()
    np.testing.assert_allclose(states(offsets=2), whole[:, :2], atol=1e-5)
    np.testing.assert_allclose(states(rows=places[1:2]), whole[1:2], atol=1e-5)
    other = found["maps"].copy()
    other[1] = 0
    changed = np.abs(states(maps=other) - whole).max((0, 2))
    assert changed[0] < 1e-5
    assert changed[1] > 0.1
    assert changed[2] > 1e-3  # it saw the second


def test_a_few_steps_lower_every_student_s_loss_and_a_training_goes_on(torch: Any, tmp_path: Path) -> None:
    from diastole.recipes.hidden_transfer import LAST, MEDUSA, TRANSFER, Plan, Progress, train

    seen: list[Progress] = []
    plan = Plan((10, 12, 14), steps=20, rate=3e-3)
    own = texts(4, 120)
    found, figures = train(FakeRig(), own, plan, seen.append)  # type: ignore[arg-type]
    assert [*found] == [TRANSFER, LAST, MEDUSA]
    for student in found:
        losses = [p.loss[student] for p in seen]
        assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3]), student
        assert len(figures["right"][student][5]) == 3
    kept = tmp_path / "kept"

    def interrupt(p: Progress) -> None:
        if p.step == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(FakeRig(), own, plan, interrupt, kept, save_every=5)  # type: ignore[arg-type]
    again: list[Progress] = []
    resumed, _ = train(FakeRig(), own, plan, again.append, kept)  # type: ignore[arg-type]
    assert again[0].step == 11
    for name, x in found[TRANSFER].items():
        np.testing.assert_allclose(resumed[TRANSFER][name], x, atol=1e-4)
    with pytest.raises(UserError, match="another plan"):
        train(FakeRig(), own, replace(plan, seed=1), kept=kept)  # type: ignore[arg-type]
    kept.write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        train(FakeRig(), own, plan, kept=kept)  # type: ignore[arg-type]
    owed.same_as_plain(written(tmp_path / "maps", found[TRANSFER]))
    owed.same_as_plain(written(tmp_path / "last", found[LAST]))  # served as well


def test_trained_on_what_is_said_it_saves_steps(torch: Any, tmp_path: Path) -> None:
    from diastole.recipes.hidden_transfer import TRANSFER, Plan, train
    from diastole.recipes.own_text import Texts

    asked = [owed.prompt(40, i) for i in range(4)]
    plain = owed.service()
    said = [[*tokens, *(token for token, _ in owed.alone(plain, tokens, 60))] for tokens in asked]
    own = Texts(np.array(said, np.int32).reshape(-1), np.arange(5) * 100, np.full(4, 40), "")
    found, _ = train(FakeRig(), own, Plan((6, 8, 10), steps=40, rate=1e-2, baselines=False))  # type: ignore[arg-type]
    assert [*found] == [TRANSFER]
    counters = owed.service(f"{written(tmp_path / 'maps', found[TRANSFER])},nodes=6"), owed.service()
    for of in counters:
        for tokens in asked[:3]:
            owed.alone(of, tokens, 60)
    fast, slow = (of.meter.counters for of in counters)
    assert fast["steps"] + fast["spec_decode_num_accepted_tokens"] == slow["steps"]
    assert fast["steps"] < 0.8 * slow["steps"]


def test_the_recipe_s_errors(torch: Any) -> None:
    from diastole.cli.train_transfer import numbers, usual
    from diastole.recipes.hidden_transfer import Plan, train

    for layers in ((), (9, 8), (0, 3), (3, 17)):
        with pytest.raises(UserError, match="--layers must rise"):
            train(FakeRig(), texts(3, 60), Plan(layers))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="too few answers"):
        train(FakeRig(), texts(3, 22), Plan((8, 9, 10)))  # type: ignore[arg-type]
    assert numbers("20+22+24") == usual(30) == (20, 22, 24)
    with pytest.raises(UserError, match="--layers"):
        numbers("20,22")
