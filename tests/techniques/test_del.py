"""DEL: what a drafter owes, what its relay saves, and that its statistics are those of the paper."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.engine.service import Service
from diastole.heads import rounds as spec
from diastole.heads.exits import Heads
from diastole.heads.glide import quantized
from diastole.loops.ar import AutoRegressive
from diastole.params import SamplingParams
from diastole.recipes.own_text import Texts
from diastole.sample import Chosen
from diastole.spec.pace import Unpaced
from diastole.state.pages import PAGE
from diastole.types import Array, Draft, Grant, Request, Stream, UserError
from diastole.weights.calibration import Calibration, about
from spec.oracle import answers
from techniques import owed

technique: Any = import_module("diastole.techniques.del")  # whose name is a word of the language
LAYERS, EASY = 16, 6  # of the small model; after which it hardly changes its mind where it is an easy one
COUNTED = "adapters=none,cost=layers,rest=0"
USES = (
    f"del:{COUNTED}",
    "del:adapters=none,rest=0",  # measured costs
    f"del:{COUNTED},exits=4+8+15",
    f"del:{COUNTED},controller=dele,exits=1+14,shadow_every=3",
    f"del:{COUNTED},controller=static,exits=7,length=6",
    f"del:{COUNTED},exits=3+13,vocab=100,max_draft=5",
)


@pytest.fixture
def easy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose first layers know nearly all: as if it had been trained for early exits."""
    owed.first_layers_know(monkeypatch, EASY)


def drafter(of: Service) -> Any:
    return of.loop.drafter  # type: ignore[attr-defined]


# ---- what is owed


@pytest.mark.parametrize("use", USES)
def test_the_text_is_the_same(use: str) -> None:
    owed.same_as_plain(use)


@pytest.mark.parametrize("kv", ["f32", "int8", "rows", "rows8"])
def test_with_every_form_of_rows(easy: None, kv: str) -> None:
    owed.same_as_plain(USES[2], kv=kv)


def test_an_easy_text_comes_in_fewer_steps(easy: None) -> None:
    for use, least in zip(USES, (10, 1, 10, 5, 20, 1), strict=True):
        of, plain = owed.service(use), owed.service()
        assert owed.alone(of, owed.prompt(300), 60) == owed.alone(plain, owed.prompt(300), 60)
        kept = of.meter.counters["spec_decode_num_accepted_tokens"]
        assert kept >= least, use
        assert of.meter.counters["steps"] + kept == plain.meter.counters["steps"]


@pytest.mark.parametrize("use", USES[2:5])
def test_company_and_chunks_change_nothing(easy: None, use: str) -> None:
    owed.indifferent_to_company(use)


def test_preemption_changes_nothing(easy: None) -> None:
    owed.survives_preemption(USES[2])


def test_abort_leaks_nothing(easy: None) -> None:
    owed.abort_leaks_nothing(USES[2])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("beside", [(), ("smartspec",), ("fixed:k=3",)], ids=str)
def test_random_life(easy: None, beside: tuple[str, ...], seed: int) -> None:
    owed.random_life("del:adapters=none,cost=layers,rest=5,exits=4+9", *beside, seed=seed)


@pytest.mark.parametrize(
    "wish",
    [
        {"temperature": 1.0},
        {"temperature": 1.3, "top_k": 20, "n": 3},
        {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
        {"temperature": 0.5, "stop_token_ids": tuple(range(0, 256, 16))},
    ],
    ids=str,
)
def test_with_what_a_request_may_ask_for(easy: None, wish: dict[str, Any]) -> None:
    for seed in range(3):
        params = SamplingParams(**{"max_tokens": 40, "seed": seed, "logprobs": 2, **wish})
        request = Request("r", "tiny", tuple(owed.prompt(150, seed)), params)
        assert answers(owed.service(USES[2]), request) == answers(owed.service(), request)


def test_a_guess_starves_nobody(easy: None) -> None:
    """Where the pool is full, a stream goes on without a draft."""
    pages = 3
    life = owed.Life(owed.service(USES[2], pages=pages, prefix=False))
    life.ask("full", owed.prompt(pages * PAGE - 20), 20)
    life.finish()
    life.check(idle=True)
    assert life.service.meter.counters["preemptions"] == 0


@pytest.mark.parametrize("beside", ["int8-kv", "sink-window:budget=64,dense_below=100", "lean-attention"])
def test_beside_what_acts_within_the_layers(easy: None, beside: str) -> None:
    plain, of = owed.service(beside), owed.service(USES[2], beside)
    for seed in range(2):
        tokens = owed.prompt(500 + 97 * seed, seed)
        assert owed.alone(of, tokens, 30) == owed.alone(plain, tokens, 30)
    work = drafter(of).work
    assert (work.verified < work.again) == (beside == "int8-kv")  # else the rows of drafting are not taken


def test_texts_that_are_only_read(easy: None) -> None:
    """Hidden states that others want are the same beside a relay."""
    from diastole.params import PoolParams

    def pooled(use: tuple[str, ...]) -> Any:
        life = owed.Life(owed.service(*use, chunk=64))
        life.ask("talks", owed.prompt(40), 60)
        for _ in range(4):
            life.step()
        life.engine.add(Request("reads", "tiny", tuple(owed.prompt(150, 3)), PoolParams()))
        while life.engine.busy:
            for event in life.engine.step() or ():
                if event.id == "reads":
                    return event.data
        raise AssertionError("nothing was read")

    got, want = pooled((USES[4],)), pooled(())
    np.testing.assert_array_equal(got.vector, want.vector)


# ---- what the relay saves


def test_rows_that_were_drafted_begin_at_the_exit(easy: None) -> None:
    """A round of d guesses: d rows go through the first E layers in drafting, one in verification, d + 1 through the
    rest."""
    exit, length = 7, 6
    of = owed.service(f"del:{COUNTED},controller=static,exits={exit},length={length}")
    rounds: list[int] = []
    seen = drafter(of).verified

    def watch(stream: Stream, draft: Draft, nodes: list[int], chosen: list[Chosen]) -> None:
        rounds.append(len(draft.tokens))
        seen(stream, draft, nodes, chosen)

    drafter(of).verified = watch
    owed.alone(of, owed.prompt(200), 60)
    work = drafter(of).work
    assert len(rounds) > 5
    assert work.drafted == exit * sum(rounds)
    assert work.verified == sum(exit + (LAYERS - exit) * (d + 1) for d in rounds)
    assert work.again == sum(LAYERS * (d + 1) for d in rounds)
    assert work.again - work.verified == work.drafted  # nothing is computed twice


def test_trimmed_and_dropped_drafts(easy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)

    def trim(_: Unpaced, grants: Any, drafts: Any, cost: Any) -> Any:
        return {s: range(rng.integers(len(d.tokens) + 1)) for s, d in drafts.items()}

    monkeypatch.setattr(Unpaced, "trim", trim)
    owed.same_as_plain(USES[4])
    life = owed.Life(owed.service(USES[4], chunk=100))
    want = {f"r{i}": owed.alone(owed.service(), owed.prompt(90 + 150 * i, i), 50) for i in range(4)}
    for i in range(4):
        life.ask(f"r{i}", owed.prompt(90 + 150 * i, i), 50)
        life.step()
    life.finish()
    life.check(idle=True)
    assert life.said == want
    work = drafter(life.service).work
    assert 0 < work.again - work.verified < work.drafted


def decoding(use: str, n: int, pages: int = 0) -> tuple[Any, Stream]:
    """A loop whose one stream has absorbed all but its last known token."""
    life = owed.Life(owed.service(use, "fixed:k=0", pages=pages))
    life.ask("r", owed.prompt(n), 100)
    while not life.service.ledger.running or life.service.ledger.running[0].left > 1:
        life.step()
    (stream,) = life.service.ledger.running
    return life.service.loop, stream


def test_no_room_is_kept_for_what_was_dropped(easy: None) -> None:
    loop, stream = decoding(USES[4], PAGE - 3)
    lease = stream.leases["kv"]
    (draft,) = loop.drafter.draft([stream], [6])
    assert len(draft.tokens) == 6
    assert (lease.units, len(lease.places)) == (stream.done + 6, 2)
    batch = loop.drafter.ready(AutoRegressive.prepare(loop, [Grant(stream, 1)]))
    assert batch.relay is not None  # the one row that is left has been through the first layers
    assert list(batch.relay.kept) == [0]
    assert (lease.units, len(lease.places)) == (stream.done + 1, 1)


def test_pages_are_left_to_those_who_must_go_on(easy: None) -> None:
    loop, stream = decoding(USES[4], PAGE - 3, pages=technique.LEFT + 1)
    (draft,) = loop.drafter.draft([stream], [6])
    assert len(draft.tokens) == PAGE - stream.done  # what its last page has room for
    assert len(stream.leases["kv"].places) == 1


def test_rows_of_a_state_that_is_gone_are_not_taken(easy: None) -> None:
    loop, stream = decoding(USES[4], 100)
    loop.drafter.draft([stream], [6])
    stream.leases = {"kv": loop.pool.fork(stream.leases["kv"])}  # as after a swap
    batch = loop.drafter.ready(AutoRegressive.prepare(loop, [Grant(stream, 1)]))
    assert batch.relay is None


def test_what_is_kept_is_what_all_layers_give(easy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, in batches of any mixture."""
    call = technique.Relay.__call__
    looked: list[tuple[int, int]] = []
    same: list[bool] = []

    def watch(self: Any, decoder: Any, b: Any, state: Any) -> Array:
        logits = call(self, decoder, b, state)
        x, first = decoder.embedded(b.inputs, np.empty((len(b.inputs), decoder.width), np.float32)), 0
        for exit in self.exits:
            decoder.part(b, state, x, first, exit)
            same.append(np.array_equal(self.seen[exit], x[self.rows]))  # the engine would take an error for a fault
            first = exit
        looked.append((len(self.rows), len(x)))
        return logits  # type: ignore[no-any-return]

    monkeypatch.setattr(technique.Relay, "__call__", watch)
    life = owed.Life(owed.service(f"del:{COUNTED},exits=2+7+11,shadow_every=2", chunk=150))
    for i in range(5):
        life.ask(f"r{i}", owed.prompt(60 + 170 * i, i), 40)
        for _ in range(3):
            life.step()
    life.finish()
    assert any(0 < rows < all for rows, all in looked)
    assert len(looked) > 20
    assert all(same)


def test_another_s_rows_are_not_taken(easy: None) -> None:
    """What was drafted for a step that failed is used by no later one that does not fit."""
    of = owed.service(USES[4])
    life = owed.Life(of)
    life.ask("r", owed.prompt(90), 40)
    want = owed.alone(owed.service(), owed.prompt(90), 40)
    made, fails = of.model.forward, iter(range(1000))

    def sometimes(*args: Any) -> Array:
        if next(fails) % 4 == 3:
            raise RuntimeError("a fault")
        return made(*args)  # type: ignore[no-any-return]

    of.model.forward = sometimes  # type: ignore[method-assign]
    life.finish()
    life.check(idle=True)
    assert life.said["r"] == want


# ---- what is learned


def test_the_objective_by_hand() -> None:
    costs = spec.counted(12, 3)
    table = np.stack([costs.rounds(exit, streams) for exit, streams in ((3, 1), (6, 5))])
    np.testing.assert_array_equal(table, [[12, 15, 18, 21], [12, 18, 24, 30]])  # L + gamma l
    worth = spec.tokens_per_cost(np.array([0.5, 0.9]), table)
    np.testing.assert_allclose(worth[0], [1 / 12, 1.5 / 15, 1.75 / 18, 1.875 / 21])
    np.testing.assert_allclose(worth[1], [1 / 12, 1.9 / 18, 2.71 / 24, 3.439 / 30])
    assert costs.plain(7) == 12
    assert costs.rounds(6, 60)[-1] == 30  # rows that come together are free


def test_statistics_by_hand() -> None:
    notes = spec.Notes(np.zeros((4, 2)))
    notes.learn(np.array([[True, True, False], [False, True, True]]), np.array([[0.9, 0.7, 0.4], [0.1, 0.5, 0.6]]), 0.5)
    np.testing.assert_allclose(notes.stats, [[2, 2], [1, 1], [1.6, 1.1], [0.4, 0.1]])
    notes.learn(np.array([[False], [True]]), np.array([[0.2], [0.8]]), 0.5)
    np.testing.assert_allclose(notes.stats, [[1, 2], [1.5, 0.5], [0.8, 1.35], [0.4, 0.05]])
    np.testing.assert_allclose(spec.right(notes.stats), [1.5 / 3.5, 2.5 / 3.5])
    sure, unsure = (0.8 + 0.375) / 1.5, (0.4 + 0.125) / 2
    assert spec.thresholds(notes.stats)[0] == pytest.approx((sure + unsure) / 2)


def test_thresholds_are_numbers_whatever_was_seen() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        notes = spec.Notes(np.zeros((4, 3)))
        assert (spec.thresholds(notes.stats) == 0.5).all()
        bias = rng.choice([0.0, 0.5, 1.0])  # never right, sometimes, always
        for _ in range(int(rng.integers(1, 30))):
            shape = 3, int(rng.integers(1, 19))
            notes.learn(rng.random(shape) < bias, rng.random(shape), float(rng.choice([0.01, 0.95, 1.0])))
        for found in (spec.thresholds(notes.stats), spec.right(notes.stats)):
            assert np.isfinite(found).all()
            assert (found > 0).all()
            assert (found < 1).all()


def test_positions_count_up_to_the_first_mistake(easy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit's shadow tokens are what it guessed, and nothing behind a wrong guess is looked at."""
    of = owed.service(f"del:{COUNTED},exits=2+8")
    d = drafter(of)
    learned: list[tuple[int, Array]] = []
    wrong: list[Any] = []  # the engine would take an error for a fault
    learn, verified = spec.Notes.learn, d.verified

    def note(self: Any, matched: Array, odds: Array, omega: float) -> None:
        learned.append((d.exit, matched))
        if not ((odds > 0) & (odds <= 1)).all():
            wrong.append(odds)
        learn(self, matched, odds, omega)

    def watch(stream: Stream, draft: Draft, nodes: list[int], chosen: list[Chosen]) -> None:
        before = len(learned)
        verified(stream, draft, nodes, chosen)
        if len(learned) == before:
            return
        exit, matched = learned[-1]
        own = matched[d.exits.index(exit)]
        if len(own) != len(nodes) + 1 or len(chosen) != len(own):
            wrong.append((own, nodes, chosen))
        if own[: len(draft.tokens)].tolist() != [True] * len(nodes) + [False] * (len(nodes) < len(draft.tokens)):
            wrong.append((own, nodes, draft))

    monkeypatch.setattr(spec.Notes, "learn", note)
    d.verified = watch
    owed.alone(of, owed.prompt(200), 100)
    assert not wrong
    assert len(learned) > 10
    assert {len(matched[0]) for _, matched in learned} >= {1, 2, 3}


def test_it_finds_the_exit_that_pays(easy: None) -> None:
    """Layers 1 and 15 do not: one guesses wrong, the other costs as much as not to guess."""
    of = owed.service(f"del:{COUNTED},exits=1+{EASY}+15")
    owed.alone(of, owed.prompt(200), 120)
    assert drafter(of).exit == EASY
    assert of.meter.counters["spec_decode_num_accepted_tokens"] > 40


def test_the_first_round_guesses_one_token_and_doubt_ends_a_round(easy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    of = owed.service(f"del:{COUNTED},exits=2+8")
    d, rounds = drafter(of), []
    ready = d.ready

    def watch(batch: Any) -> Any:
        rounds.extend(d._rounds.values())
        return ready(batch)

    d.ready = watch
    owed.alone(of, owed.prompt(200), 120)
    assert len(rounds[0].odds) == 1
    assert rounds[0].kept[0].keys() == {2}  # after the first exit
    doubted = 0
    for r in rounds:
        assert all(sure >= r.least for sure in r.odds[:-1])
        assert r.odds[-1] < r.least or len(r.odds) == r.most
        doubted += r.odds[-1] < r.least
    assert doubted > 3
    assert max(len(r.odds) for r in rounds) > 1


def resting() -> tuple[Service, list[bool]]:
    """A service of a model that guesses badly; whether its latest stream guessed, by step."""
    of = owed.service("del:adapters=none,cost=layers,exits=1,rest=7")
    d, rounds = drafter(of), []
    draft = d.draft

    def watch(streams: list[Stream], lengths: list[int]) -> Any:
        found = draft(streams, lengths)
        rounds.append(len(found[0].tokens) > 0)
        return found

    d.draft = watch
    return of, rounds


def test_who_guesses_badly_rests_and_tries_again() -> None:
    of, rounds = resting()
    owed.alone(of, owed.prompt(200), 60)
    assert rounds[:10] == [True] * 3 + [False] * 7
    assert rounds[10:25] == [True] + [False] * 14  # one look is enough now, and the rest is longer
    assert rounds[25:54] == [True] + [False] * 28


def test_a_new_stream_goes_on_from_what_the_last_one_saw() -> None:
    of, rounds = resting()
    owed.alone(of, owed.prompt(200), 12)
    rounds.clear()
    owed.alone(of, owed.prompt(100), 30)
    assert rounds[:15] == [True] + [False] * 14


def test_rests_grow_and_good_rounds_shorten_them() -> None:
    notes, rested = spec.Notes(np.zeros((4, 2))), []
    for _ in range(spec.POOR - 1 + spec.LONGER + 3):
        notes.judge(1, 2.0, 1.0, 0.9, 8)
        rested.append(notes.resting)
        notes.resting = 0
    grown = [8 << n for n in range(spec.LONGER + 1)]
    assert rested == [0] * (spec.POOR - 1) + grown + [grown[-1]] * 2
    for _ in range(spec.LONGER + 3):
        notes.judge(3, 2.0, 1.0, 0.9, 8)
    assert notes.rests == 0
    assert notes.poor == 0
    before = 0
    while not notes.resting:
        notes.judge(1, 5.0, 1.0, 0.9, 8)
        before += 1
    assert before >= spec.POOR  # a stream whose guesses paid is not given up for one poor round
    assert notes.resting == 8


def test_notes_are_a_stream_s_own() -> None:
    """Choices of a request go on from the same notes, and then apart."""
    from copy import deepcopy

    notes = spec.Notes(np.ones((4, 2)), rounds=3)
    twin = deepcopy(notes)
    twin.learn(np.ones((2, 1), bool), np.ones((2, 1)), 0.5)
    assert (notes.stats == 1).all()


def test_costs_are_measured_where_nobody_reads(easy: None) -> None:
    of = owed.service("del:adapters=none,rest=0")
    costs = drafter(of).costs
    assert costs.plain(1) > 0
    for streams in (1, 3, 100):
        rounds = costs.rounds(8, streams)
        assert np.isfinite(rounds).all()
        assert (rounds > 0).all()
        assert rounds[-1] > rounds[0]
    assert of.pages()[0] == 0


def test_a_static_round_is_as_long_as_told(easy: None) -> None:
    of = owed.service(f"del:{COUNTED},controller=static,exits=8,length=3")
    lengths: list[int] = []
    draft = drafter(of).draft

    def watch(streams: list[Stream], n: list[int]) -> Any:
        found = draft(streams, n)
        lengths.extend(len(x.tokens) for x in found)
        return found

    drafter(of).draft = watch
    owed.alone(of, owed.prompt(100), 40)
    assert set(lengths[:5]) == {3}
    assert drafter(of).exit == 8


# ---- knobs


@pytest.mark.parametrize(
    "knobs",
    [
        "exits=0", "exits=16", "exits=4+20", "exits=a", "omega=0", "omega=1.5", "omega=nan", "max_draft=0",
        "max_draft=19", "controller=x", "cost=x", "controller=static", "controller=static,exits=4+8",
        "controller=static,exits=4,length=0", "controller=static,exits=4,length=19", "vocab=-1", "rest=-1",
        "shadow_every=0",
    ],
)  # fmt: skip
def test_wrong_knobs(knobs: str) -> None:
    word = "exits" if knobs == "controller=static" else knobs.split(",")[-1].split("=")[0]
    with pytest.raises(UserError, match=f"del: {word} must"):
        owed.service(f"del:{knobs}")


# ---- adapters


def adapters(make: Callable[[int], Array], exits: tuple[int, ...] = (3, 9)) -> dict[str, Array]:
    found: dict[str, Array] = {"vocab": np.arange(0, owed.VOCAB, 2, dtype=np.int32)[::-1].copy()}
    for exit in exits:
        q, d = quantized(make(exit))
        found |= {f"adapter.{exit}.q": q, f"adapter.{exit}.d": d.astype(np.float16)}
    return found


def width() -> int:
    decoder = owed.facts().decoder
    assert decoder is not None
    return decoder.width


def test_adapters_are_used_and_change_nothing(tmp_path: Path) -> None:
    rng, d = np.random.default_rng(0), width()
    place = tmp_path / "exits"
    Calibration(adapters(lambda _: rng.normal(size=(d, d)).astype(np.float32) / 10), about("del", owed.facts())).write(
        place
    )
    use = f"del:adapters={place},cost=layers,rest=0"
    owed.same_as_plain(use)
    of = owed.service(use)
    assert drafter(of).exits == [3, 9]
    owed.alone(of, owed.prompt(100), 30)
    x = rng.normal(size=(20, d)).astype(np.float32) * 5
    (heads, bare) = drafter(of).heads, drafter(owed.service(f"del:{COUNTED},exits=3+9")).heads
    ids, odds = heads.say([(3, x)])
    assert (ids % 2 == 0).all()  # of its vocabulary
    assert (ids != bare.say([(3, x)])[0]).any()
    both, sure = heads.say([(3, x), (9, x[:5])])
    np.testing.assert_array_equal(both[:20], ids)
    np.testing.assert_array_equal(sure[:20], odds)


def test_adapters_of_another_shape_are_refused(tmp_path: Path) -> None:
    wrong = adapters(lambda _: np.zeros((width(), width()), np.float32))
    for name, change in {
        "rows": {"adapter.3.q": wrong["adapter.3.q"][:-1]},
        "ids": {"vocab": np.array([owed.VOCAB], np.int32)},
        "inf": {"adapter.3.d": np.full_like(wrong["adapter.3.d"], np.inf)},
    }.items():
        Calibration({**wrong, **change}, about("del", owed.facts())).write(tmp_path / name)
        with pytest.raises(UserError, match="del: adapters does not fit this model"):
            owed.service(f"del:adapters={tmp_path / name}")
    torn = {name: x for name, x in wrong.items() if name != "adapter.3.d"}
    Calibration(torn, about("del", owed.facts())).write(tmp_path / "torn")
    with pytest.raises(UserError, match="del: adapters does not fit this model"):
        owed.service(f"del:adapters={tmp_path / 'torn'}")


def test_the_recipe_of_adapters(easy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty steps lower the loss, and what it made is served as it was trained."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from diastole.recipes import del_exits as recipe
    from diastole.recipes.target import Target

    class FakeRig:
        decoder, vocab = owed.facts().decoder, owed.VOCAB

    monkeypatch.setattr(recipe, "LENGTH", 128)
    ids = np.array(owed.prompt(2_000), np.int32)
    texts = Texts(ids, np.array([0, 2_000]), np.array([10]), "")
    rig: Any = FakeRig()
    losses: list[float] = []
    plan = recipe.Plan(steps=20, rate=3e-3, exits=(2, 4), vocab=200)
    tensors, figures = recipe.train(rig, texts, plan, lambda p: losses.append(p.loss))
    assert len(losses) == figures["steps"] == 20
    assert np.mean(losses[-4:]) < 0.97 * np.mean(losses[:2])
    assert len(tensors["vocab"]) == 200
    again, _ = recipe.train(rig, texts, plan)
    assert all((again[name] == tensors[name]).all() for name in tensors)
    heads = Heads(FakeRig.decoder, tensors, 0)
    target = Target(rig, 128)
    early, _, _ = recipe.states(target, ids[:100], (2, 4))
    w = tensors["adapter.2.q"].astype(np.float32) * np.repeat(tensors["adapter.2.d"].astype(np.float32), 32, 1)
    norm = target.decoder.norm
    trained = recipe.Adapters(1, norm.weight, norm.eps)
    trained.maps.data[0] = torch.from_numpy(w)
    with torch.no_grad():
        (read,) = trained([torch.from_numpy(early)])
    want = tensors["vocab"][(read.numpy() @ target.head(tensors["vocab"]).T).argmax(1)]
    assert (heads.say([(2, early)])[0] == want).mean() > 0.9
    place = tmp_path / "exits"
    Calibration(tensors, about("del", owed.facts())).write(place)
    owed.same_as_plain(f"del:adapters={place},cost=layers,rest=0")


def test_the_recipe_s_states_are_those_that_serve() -> None:
    from diastole.recipes import del_exits as recipe
    from diastole.recipes.target import Target

    class FakeRig:
        decoder, vocab = owed.facts().decoder, owed.VOCAB

    rig: Any = FakeRig()
    target, ids = Target(rig, 100), np.array(owed.prompt(100), np.int32)
    (whole,) = recipe.states(target, ids, ())
    *_, last = recipe.states(target, ids, (1, 5, 15))
    np.testing.assert_array_equal(whole, last)
    assert recipe.standard(30) == (8, 12, 16, 20, 24)
    for wrong in ((0,), (16,), (8, 4)):
        with pytest.raises(UserError, match="exits"):
            recipe.train(rig, Texts(ids, np.array([0]), np.array([1]), ""), recipe.Plan(exits=wrong))
    with pytest.raises(UserError, match="tokens"):
        next(recipe.windows(ids, 0))
