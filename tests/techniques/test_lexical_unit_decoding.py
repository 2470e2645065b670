"""Lexical unit decoding: what a drafter owes, the paper's way of saying candidates at once, and the recipe's model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.bench.tiny import Remembered, TinyLlama
from diastole.engine.trace import DECODE
from diastole.loops.ar import AutoRegressive
from diastole.params import PoolParams, SamplingParams
from diastole.sample import Sampler
from diastole.spec.verify import Guess
from diastole.state.kv import PagedKV
from diastole.state.lease import Lease
from diastole.state.pages import PAGE, PagePool
from diastole.techniques import lexical_unit_decoding as technique
from diastole.techniques.lexical_unit_decoding import AtOnce, Params, Placeholders, Trust, extended, likeliest
from diastole.types import Array, Batch, Draft, Grant, Request, Sown, Stream, UserError
from spec.oracle import Oracle, answers
from techniques import owed

LAST = owed.VOCAB - 1
USE = f"lexical-unit-decoding:placeholder={LAST}"
LOW = 0.03  # random models are never sure of anything
PAPER = f"{USE},verify=false,confidence={LOW}"
NEXT = 7  # what ``sure`` always says


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    """What placeholders say is right, for the most part: those of a random model seldom are."""
    made = Oracle(owed.service, 0.8)

    def note(self: Placeholders, stream: Stream, end: int, rows: Array) -> None:
        past = end + 1 - len(stream.req.inputs)
        future = made._answer(stream)[past : past + len(rows)]
        tokens = [t if made.rng.random() < made.right else int(made.rng.integers(owed.VOCAB)) for t in future]
        made.drafted += len(tokens)
        stream.scratch[technique.NAME] = technique.Candidates(end + 1, tokens, [1.0] * len(tokens))

    monkeypatch.setattr(Placeholders, "_note", note)
    return made


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model says the same token for ever, and so do placeholders."""
    tiny, remembered = TinyLlama(), Remembered()
    for name, w in tiny._tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            w[:] = 0
    tiny._tensors["model.embed_tokens.weight"][:] = 1
    tiny._tensors["lm_head.weight"][:] = 0
    tiny._tensors["lm_head.weight"][NEXT] = 0.25
    monkeypatch.setattr(owed, "_tiny", lambda: (tiny, remembered))


@pytest.fixture
def laid(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many placeholders stood behind each text of each pass."""
    found: list[int] = []
    count = Placeholders._count

    def watch(self: Placeholders, *args: Any) -> int:
        found.append(count(self, *args))
        return found[-1]

    monkeypatch.setattr(Placeholders, "_count", watch)
    return found


# ---- candidates as a draft


def test_the_text_is_the_same_and_comes_in_fewer_steps(oracle: Oracle) -> None:
    owed.same_as_plain(USE)
    of, plain = owed.service(USE), owed.service()
    assert owed.alone(of, owed.prompt(300), 60) == owed.alone(plain, owed.prompt(300), 60)
    kept = of.meter.counters["spec_decode_num_accepted_tokens"]
    assert kept > 15
    assert of.meter.counters["steps"] == plain.meter.counters["steps"] - kept


@pytest.mark.parametrize(
    "knobs", ["confidence=0.01", "confidence=0.01,cumulative=true", "confidence=1", "lookahead=16"]
)
def test_the_text_is_the_same_without_an_oracle(knobs: str) -> None:
    owed.same_as_plain(f"{USE},{knobs}")


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8", "rows", "rows8"])
def test_with_every_form_of_rows(oracle: Oracle, kv: str) -> None:
    owed.same_as_plain(USE, kv=kv)


def test_company_and_chunks_change_nothing(oracle: Oracle) -> None:
    owed.indifferent_to_company(USE)


def test_preemption_changes_nothing(oracle: Oracle) -> None:
    owed.survives_preemption(USE)


def test_abort_leaks_nothing(oracle: Oracle) -> None:
    owed.abort_leaks_nothing(USE)


@pytest.mark.parametrize("pace", ["smartspec", "fixed:k=2"])
@pytest.mark.parametrize("seed", range(2))
def test_random_life(oracle: Oracle, pace: str, seed: int) -> None:
    owed.random_life(f"{USE},lookahead=6", pace, seed=seed)


@pytest.mark.parametrize(
    "beside", ["double-sparsity:budget=64,channels=8,dense_below=100", "sink-window:budget=64,dense_below=100"]
)
def test_beside_what_acts_within_the_layers(monkeypatch: pytest.MonkeyPatch, beside: str) -> None:
    plain, of = owed.service(beside), owed.service(f"{USE},confidence=0.01", beside)
    for seed in range(2):
        tokens = owed.prompt(500 + 97 * seed, seed)
        assert owed.alone(of, tokens, 30) == owed.alone(plain, tokens, 30)
    assert of.meter.counters["spec_decode_num_draft_tokens"] > 20


@pytest.mark.parametrize(
    "wish",
    [
        {"temperature": 1.0},
        {"temperature": 1.3, "top_k": 20, "n": 3},
        {"temperature": 0.9, "repetition_penalty": 1.2, "logit_bias": {5: 3.0, 9: -100.0}},
        {"temperature": 1.0, "stop_token_ids": tuple(range(0, 256, 16))},
    ],
    ids=str,
)
def test_with_all_that_a_request_may_ask_for(oracle: Oracle, wish: dict[str, Any]) -> None:
    for seed in range(4):
        params = SamplingParams(**{"max_tokens": 40, "seed": seed, "logprobs": 2, **wish})
        request = Request("r", "tiny", tuple(owed.prompt(150, seed)), params)
        assert answers(owed.service(USE), request) == answers(owed.service(), request)
    assert oracle.drafted > 0


def test_each_pass_that_is_right_brings_a_whole_unit(sure: None, laid: list[int]) -> None:
    """Also across the end of a page, for which another is taken; and no placeholder stands where no text can come."""
    of = owed.service(USE)
    assert [t for t, _ in owed.alone(of, owed.prompt(60), 40)] == [NEXT] * 40
    assert of.meter.counters["steps"] == 9  # the prompt's with one token, seven with five, one with four
    assert of.meter.counters["spec_decode_num_draft_tokens"] == sum(laid) == 31


def test_nothing_is_guessed_behind_a_guess_that_was_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    drafts: list[int] = []
    guess = Placeholders._guess

    def watch(self: Placeholders, stream: Stream, n: int) -> Draft:
        found = guess(self, stream, n)
        drafts.append(len(found.tokens))
        return found

    monkeypatch.setattr(Placeholders, "_guess", watch)
    monkeypatch.setattr(
        Placeholders,
        "_note",
        lambda _, stream, end, rows: stream.scratch.update(
            {technique.NAME: technique.Candidates(end + 1, [LAST] * len(rows), [1.0] * len(rows))}
        ),
    )
    owed.alone(owed.service(USE), owed.prompt(100), 20)
    assert drafts[:4] == [4, 0, 4, 0]  # every draft is wrong, so every other pass has none


def test_a_stream_without_room_goes_on_without(oracle: Oracle) -> None:
    """Where the pool is full, placeholders take no page and nobody starves."""
    pages = 3
    life = owed.Life(owed.service(f"{USE},lookahead=16", pages=pages, prefix=False))
    life.ask("full", owed.prompt(pages * PAGE - 40), 40)
    life.finish()
    life.check(idle=True)
    assert life.service.meter.counters["preemptions"] == 0


def test_who_paces_decides_about_placeholders_too(sure: None, laid: list[int]) -> None:
    owed.alone(owed.service(USE, "fixed:k=0"), owed.prompt(60), 20)
    assert sum(laid) == 4  # behind the prompt, before anybody could tell
    laid.clear()
    owed.alone(owed.service(USE, "fixed:k=2"), owed.prompt(60, 1), 20)
    assert max(laid[1:]) == 2


def test_placeholders_stand_behind_a_prompt_s_last_chunk_only(laid: list[int]) -> None:
    owed.alone(owed.service(USE, chunk=64), owed.prompt(300), 10)
    assert laid[:5] == [0, 0, 0, 0, 4]
    laid.clear()
    life = owed.Life(owed.service(USE))
    life.ask("r", owed.prompt(50), 10, n=2)
    life.step()
    assert laid == [0]  # what each choice begins with is still to be drawn
    life.finish()
    life.check(idle=True)


def test_who_only_reads_beside_it_reads_the_same(oracle: Oracle) -> None:
    """Hidden states are read off the right rows, wherever placeholders lie."""

    def vector(company: bool) -> Array:
        life = owed.Life(owed.service(USE))
        if company:
            life.ask("a", owed.prompt(50), 30)
            life.step()
            life.step()
        life.engine.add(Request("v", "tiny", tuple(owed.prompt(90, 3)), PoolParams("mean")))
        if company:
            life.ask("b", owed.prompt(40, 5), 30)
        events = []
        while life.engine.busy:
            events += life.engine.step() or []
        life.check(idle=True)
        (found,) = [e.data.vector for e in events if e.id == "v"]
        return np.array(found)

    assert (vector(True) == vector(False)).all()


# ---- placeholders and pages


@pytest.mark.parametrize("use", [USE, PAPER])
def test_placeholders_are_never_published_nor_held(use: str, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    offered: list[int] = []
    offer = AutoRegressive._offer

    def watch(self: AutoRegressive, stream: Stream, done: int) -> None:
        assert done == stream.done
        offered.append(done)
        offer(self, stream, done)

    monkeypatch.setattr(AutoRegressive, "_offer", watch)
    of = owed.service(f"{use},lookahead=16")
    life, tokens = owed.Life(of), owed.prompt(300)
    life.ask("r", tokens, 150)
    while life.engine.busy:
        life.step()
        for stream in of.ledger.running:
            lease = stream.leases["kv"]
            assert lease.units == stream.done
            assert len(lease.places) == -(-stream.done // PAGE)
    life.check(idle=True)
    assert offered
    # What was said is in the cache: who reads it finds the rows that a plain service computes.
    more = [*tokens, *(t for t, _ in life.said["r"])]
    before = of.meter.counters["prefix_cache_hits"]
    got = owed.alone(of, more, 1)
    assert of.meter.counters["prefix_cache_hits"] - before >= 300
    assert got == owed.alone(owed.service(), more, 1)


def test_the_extended_batch_by_hand() -> None:
    """Two streams: one that decodes with a draft of one token, one at the end of its prompt; the first has two
    placeholders, in a page of its own, the second one."""
    store = PagedKV("bf16")
    pool = PagePool(4, store)
    leases = [Lease(pool, [2, 0], PAGE), Lease(pool, [3], 5)]
    request = Request("r", "tiny", (), None)
    one = Stream(request, 0, known=63, done=62, leases={"kv": leases[0]})
    two = Stream(request, 1, known=5, done=3, leases={"kv": leases[1]})
    i32 = lambda *x: np.array(x, np.int32)  # noqa: E731
    batch = Batch(
        grants=(Grant(one, 2), Grant(two, 2)),
        leases=(one.leases, two.leases),
        inputs=i32(11, 12, 21, 22),
        pos=i32(62, 63, 3, 4),
        starts=i32(0, 2, 4),
        rows=np.array([2 * PAGE + 62, 2 * PAGE + 63, 3 * PAGE + 3, 3 * PAGE + 4]),
        tables=i32(2, 3).reshape(2, 1),
        lo=i32(0, 0, 0, 0),
        hi=i32(63, 64, 4, 5),
        want=i32(0, 1, 3),
        sown=(Sown(Draft([12]), [0, 1]), None),
        relay=lambda *_: np.empty(0),
    )
    wide = extended(batch, [2, 1], LAST)
    assert wide.inputs.tolist() == [11, 12, LAST, LAST, 21, 22, LAST]
    assert wide.pos.tolist() == [62, 63, 64, 65, 3, 4, 5]
    assert wide.hi.tolist() == [63, 64, 65, 66, 4, 5, 6]  # no real row sees a placeholder
    assert wide.lo.tolist() == [0] * 7
    assert wide.starts.tolist() == [0, 4, 7]
    assert wide.tables.tolist() == [[2, 0], [3, 0]]
    assert wide.rows.tolist() == [190, 191, 0, 1, 195, 196, 197]
    assert wide.want.tolist() == [0, 1, 5, 2, 3, 6]
    assert wide.sown[0] is not None
    assert list(wide.sown[0].rows) == [0, 1]
    assert [n for _, n in wide.grants] == [4, 3]
    assert wide.relay is None
    assert {wide.inputs.dtype, wide.pos.dtype, wide.want.dtype, wide.starts.dtype} == {np.dtype(np.int32)}
    assert wide.rows.dtype == np.int64


# ---- what is believed


def test_candidates_are_believed_while_all_before_them_are() -> None:
    def first(odds: Sequence[float], tokens: Sequence[int] = (1, 2, 3, 4), before: int = 0, **knobs: Any) -> int:
        return Trust(Params(**knobs)).first(tokens[: len(odds)], odds, before)

    assert first([0.95, 0.95, 0.89, 0.99]) == 2
    assert first([0.9]) == 1
    assert first([0.95, 0.95, 0.95, 0.95], cumulative=True) == 2  # 0.95 cubed is below 0.9
    assert first([0.95, 0.95], tokens=(1, 1)) == 1
    assert first([0.95, 0.95], tokens=(5, 1), before=5) == 0
    assert first([0.95, 0.991], tokens=(1, 1)) == 2
    assert first([0.95, 0.95], tokens=(1, 1), repeat_guard=False) == 2
    assert first([float("nan")]) == 0


def test_likeliest_is_a_softmax() -> None:
    row = np.random.default_rng(0).normal(size=50).astype(np.float32)
    p = np.exp(row.astype(np.float64)) / np.exp(row.astype(np.float64)).sum()
    assert likeliest(row) == (int(p.argmax()), pytest.approx(p.max()))


# ---- candidates at once


def by_hand(prompt: Sequence[int], most: int, p: Params) -> tuple[list[int], list[float], int]:
    """What the paper's rule says, every pass computed anew from the whole text: tokens, log probabilities, passes."""
    decoder = owed.facts().decoder
    assert decoder is not None
    text, logs, passes = [*prompt], [], 0
    while len(text) < len(prompt) + most:
        passes += 1
        n = len(text)
        count = min(p.lookahead, -n % PAGE)
        ids = np.array([*text, *[LAST] * count], np.int32)
        store, at = PagedKV("bf16"), np.arange(len(ids))
        store.alloc(decoder.state_specs()["kv"], -(-len(ids) // PAGE), decoder.ops)
        tables = np.arange(-(-len(ids) // PAGE), dtype=np.int32)[None]
        starts, pos = np.array([0, len(ids)], np.int32), at.astype(np.int32)
        want = np.arange(n - 1, len(ids), dtype=np.int32)
        batch = Batch((), (), ids, pos, starts, at, tables, np.zeros_like(pos), pos + 1, want)
        logits = decoder.forward(batch, {"kv": store}).astype(np.float64)
        logits[1:, LAST] = -np.inf
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        for j, row in enumerate(logits):
            best = int(row.argmax())
            sure = np.exp(row[best]) >= p.confidence and (best != text[-1] or np.exp(row[best]) > 0.99)
            if len(text) == len(prompt) + most or (j and not sure):
                break
            text.append(best)
            logs.append(float(row[best]))
    return text[len(prompt) :], logs, passes


@pytest.mark.parametrize("lookahead", [1, 5])
def test_the_paper_s_rule_by_hand(lookahead: int) -> None:
    units = 0
    for seed in range(3):
        tokens, p = owed.prompt(45 + seed, seed), Params(lookahead, LOW)
        of = owed.service(f"{PAPER},lookahead={lookahead}")
        said = owed.alone(of, tokens, 40)
        want, logs, passes = by_hand(tokens, 40, p)
        assert [t for t, _ in said] == want
        assert [log for _, log in said] == pytest.approx(logs, abs=1e-5)
        assert of.meter.counters["steps"] == passes
        units += 40 - passes
    assert units > 10


def test_at_confidence_1_nothing_changes(laid: list[int]) -> None:
    owed.same_as_plain(f"{USE},verify=false,confidence=1")
    assert laid
    assert not any(laid)


def test_confidence_acts() -> None:
    owed.acts(PAPER, length=300)
    steps = []
    for confidence in (0.02, 0.04, 0.06, 0.2):
        of = owed.service(f"{USE},verify=false,confidence={confidence}")
        owed.alone(of, owed.prompt(300), 60)
        steps.append(of.meter.counters["steps"])
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]


def test_units_come_whole_and_watchers_see_them_decode(sure: None) -> None:
    life = owed.Life(owed.service(f"{USE},verify=false"))
    life.ask("r", owed.prompt(5), 41)
    events = []
    while life.engine.busy:
        events += life.engine.step() or []
    assert [e.units for e in events] == [5] * 8 + [1]
    works = [step.streams[0] for step in life.engine.view().steps]
    assert [kind for _, _, kind, _, _ in works[1:]] == [DECODE] * 8
    assert [n for *_, n, _ in works[1:]] == [5] * 8  # what was said before is absorbed in one step
    life.check(idle=True)


def test_company_and_chunks_change_nothing_at_once() -> None:
    owed.indifferent_to_company(PAPER, chunks=(64, 200))
    owed.indifferent_to_company(PAPER, "smartspec", chunks=(64,))


def test_preemption_changes_nothing_at_once() -> None:
    owed.survives_preemption(PAPER)


def test_abort_leaks_nothing_at_once() -> None:
    owed.abort_leaks_nothing(PAPER)


@pytest.mark.parametrize("seed", range(2))
def test_random_life_at_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One choice each: where there are several, the first token comes alone, and passes lie differently from there."""
    ask = owed.Life.ask

    def one(self: owed.Life, id: str, tokens: Sequence[int], most: int = 0, salt: str = "", n: int = 1) -> None:
        ask(self, id, tokens, most, salt)

    monkeypatch.setattr(owed.Life, "ask", one)
    owed.random_life(PAPER, seed=seed)


def test_choices_leak_nothing() -> None:
    life = owed.Life(owed.service(PAPER, pages=12))
    for i in range(4):
        life.ask(f"r{i}", owed.prompt(60 + 30 * i, i), 40, n=3)
    life.finish()
    life.check(idle=True)
    assert all(len(text) == 40 for text in life.said.values())
    assert len(life.said) == 12


def chunks_of(use: str, params: SamplingParams, length: int = 45) -> list[list[int]]:
    """What each event of one request holds."""
    life = owed.Life(owed.service(use))
    life.engine.add(Request("r", "tiny", tuple(owed.prompt(length)), params))
    found = []
    while life.engine.busy:
        found += [[c.id for c in e.data.chosen] for e in life.engine.step() or ()]
    life.check(idle=True)
    return found


def test_an_end_within_a_unit_ends_it() -> None:
    whole = chunks_of(PAPER, SamplingParams(max_tokens=60, temperature=0, seed=0))
    i = next(
        i for i, unit in enumerate(whole) if len(unit) > 2 and all(unit[1] not in u for u in [*whole[:i], unit[:1]])
    )
    before = whole[:i]
    stopped = SamplingParams(max_tokens=60, temperature=0, seed=0, stop_token_ids=(whole[i][1],))
    assert chunks_of(PAPER, stopped) == [*before, whole[i][:2]]
    short = SamplingParams(max_tokens=sum(map(len, before)) + 2, temperature=0, seed=0)
    assert chunks_of(PAPER, short) == [*before, whole[i][:2]]


def test_bias_holds_for_candidates() -> None:
    free = chunks_of(PAPER, SamplingParams(max_tokens=60, temperature=0, seed=0))
    ahead = {t for unit in free for t in unit[1:]}
    assert ahead
    for token in ahead:
        biased = SamplingParams(max_tokens=60, temperature=0, seed=0, logit_bias={token: -100.0})
        assert all(token not in unit for unit in chunks_of(PAPER, biased))


class OddsOnly:
    """A grammar of odd tokens, four of them."""

    finish: str | None = None

    def __init__(self) -> None:
        self.taken: list[int] = []

    def restrict(self, logits: Array) -> Array:
        return np.where(np.arange(len(logits)) % 2 == 1, logits, np.float32(-np.inf))

    def take(self, token: int) -> None:
        self.taken.append(token)
        self.finish = "stop" if len(self.taken) == 4 else None


class DeadEnd(OddsOnly):
    """One after whose first token none may come."""

    def restrict(self, logits: Array) -> Array:
        self.finish = "error" if self.taken else None
        return logits


def accepted(
    rows: Array, guide: Any = None, room: int = 100, stops: frozenset[int] = frozenset(), **wish: Any
) -> list[int]:
    """What is said where the model chooses token 1 and placeholders give these logits (n, V)."""
    placeholders = Placeholders(Params(verify=False, confidence=0.5), rows.shape[1] - 1)
    sampler = Sampler(SamplingParams(temperature=0, **wish), (), 0, guide)
    placeholders.said[sampler] = rows
    first = np.zeros((1, rows.shape[1]), np.float32)
    first[0, 1] = 20
    verdict = AtOnce(placeholders).accept([Guess(sampler, Draft(()), [0], 10, room, stops)], first)
    assert not verdict.errors
    assert verdict.nodes == [[]]
    assert not placeholders.said
    return [c.id for c in verdict.chosen[0]]


def sharp(*tokens: int, vocab: int = 16) -> Array:
    rows = np.zeros((len(tokens), vocab), np.float32)
    rows[np.arange(len(tokens)), tokens] = 20
    return rows


def test_a_grammar_holds_for_every_token() -> None:
    assert accepted(sharp(3, 5, 7)) == [1, 3, 5, 7]
    assert accepted(sharp(3, 4, 7), OddsOnly()) == [1, 3]  # 4 is forbidden, and of the others none is sure
    guide = OddsOnly()
    assert accepted(sharp(3, 5, 7, 9, 11), guide) == [1, 3, 5, 7]  # it is complete
    assert guide.taken == [1, 3, 5, 7]
    assert accepted(sharp(3, 5), DeadEnd()) == [1]


def test_penalties_hold_for_every_token() -> None:
    rows = np.zeros((2, 16), np.float32)
    rows[:, 3], rows[:, 5] = 10, 9.5
    assert accepted(rows) == [1, 3]  # not twice in a row
    assert accepted(rows, presence_penalty=2.0) == [1, 3, 5]


def test_stops_and_room_hold_for_every_token() -> None:
    assert accepted(sharp(3, 5, 7), stops=frozenset({5})) == [1, 3, 5]
    assert accepted(sharp(3, 5, 7), stops=frozenset({1})) == [1]
    assert accepted(sharp(3, 5, 7), room=2) == [1, 3]


# ---- knobs


@pytest.mark.parametrize(
    ("knobs", "why"),
    [
        ("lookahead=0", "lookahead"),
        ("lookahead=17", "lookahead"),
        ("confidence=0", "confidence"),
        ("confidence=1.1", "confidence"),
        ("confidence=nan", "confidence"),
        ("placeholder=256", "placeholder"),
        ("placeholder=-2", "placeholder"),
    ],
)
def test_wrong_knobs(knobs: str, why: str) -> None:
    own = USE.partition(":")[0] if why == "placeholder" else USE
    with pytest.raises(UserError, match=f"lexical-unit-decoding: {why}"):
        owed.service(f"{own}{',' if ':' in own else ':'}{knobs}")


def test_a_model_without_a_placeholder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train lexical-units"):
        owed.service("lexical-unit-decoding")
    file = tmp_path / "model.gguf"
    for said, want in (("{}", None), ("[1]", None), ("{", None), (json.dumps({technique.KEY: 9}), 9)):
        (tmp_path / "model.lexical-unit-decoding.json").write_text(said)
        assert technique._named(file) == want
    (tmp_path / "config.json").write_text(json.dumps({technique.KEY: "x"}))
    with pytest.raises(UserError, match="placeholder must be a token id"):
        technique._token(Params(), tmp_path, 100)


def test_another_verifier_beside_the_paper_s_is_refused() -> None:
    with pytest.raises(UserError, match="both fill the slot 'verify'"):
        owed.service(PAPER, "rejection")
