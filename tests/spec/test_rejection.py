"""Verification by rejection: the law of what is said is the model's, whatever is guessed; and that the check would see
it if it were not.

A toy: V tokens, p(next | last) and q(next | last) fixed tables. Strings of three tokens that come from drafts and a
verifier are counted and compared with their exact probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from diastole.kernels.draw import candidates, draw_key, gumbel, stream_key
from diastole.params import SamplingParams
from diastole.sample import Sampler
from diastole.slots_drafts import Verifier
from diastole.spec import rejection
from diastole.spec.rejection import Rejection, law, pick
from diastole.spec.verify import Coupled, Guess, Verdict
from diastole.techniques.ngram import Lookup
from diastole.types import Array, Draft, Request, Stream, UserError
from spec.oracle import Oracle, answers
from techniques import owed

V, SAID, START, SEED = 16, 3, 0, 11
MANY, SOME, FEW = 300_000, 30_000, 20_000  # strings; in a few all that is wrong is seen
PARAMS = SamplingParams(seed=SEED, temperature=1.0)


def tables() -> tuple[Array, Array, Array]:
    """The target's logits and its law p, and the drafter's q: rows by the last token."""
    rng = np.random.default_rng(3)
    logits = (rng.normal(size=(V, V)) * 1.2).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    q = np.exp(0.6 * logits + rng.normal(size=(V, V)) * 0.8)
    return logits, p / p.sum(1, keepdims=True), (q / q.sum(1, keepdims=True)).astype(np.float32)


LOGITS, P, Q = tables()
EXACT = np.einsum("a,ab,bc->abc", P[START], P, P)
TV = np.abs(P - Q).sum(1) / 2  # by last token
Drafts = Callable[[np.random.Generator, Array, Array, Array], list[Draft]]  # of last tokens, choices and positions


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law of each of the toy's few rows is computed once."""
    known: dict[bytes, Array] = {}

    def look(sampler: Sampler, logits: Array) -> Array:
        key = logits.tobytes()
        if key not in known:
            known[key] = law(sampler, logits)
        return known[key]

    monkeypatch.setattr(rejection, "law", look)


# ---- drafts


def throw(rng: np.random.Generator, rows: Array) -> Array:
    """A token of each row (m, V) of probabilities."""
    mass = rows.astype(np.float64).cumsum(1)
    return (mass <= rng.random((len(rows), 1)) * mass[:, -1:]).sum(1)


def stop(rng: np.random.Generator, tokens: Array) -> Array:
    """How many of the guesses (m, n) each draft has: it may end before any, or because of those before."""
    n = tokens.shape[1]
    go = rng.random(tokens.shape) < np.where(tokens % 3 == 0, 0.3, 0.9)
    going = np.concatenate([rng.random((len(tokens), 1)) < 0.9, go[:, :-1]], 1)
    return np.minimum.accumulate(going, 1).sum(1).clip(0, n)


def chain(rng: np.random.Generator, last: Array, guess: Callable[[int, Array], Array]) -> list[Draft]:
    """Drafts of the k-th guesses after these last tokens."""
    tokens, rows = np.empty((len(last), SAID), int), np.empty((len(last), SAID, V), np.float32)
    for k in range(SAID):
        rows[:, k] = Q[last]
        tokens[:, k] = last = guess(k, last)
    return [Draft(t[:n].tolist(), None, r[:n]) for t, r, n in zip(tokens, rows, stop(rng, tokens), strict=True)]


def dice(rng: np.random.Generator, last: Array, choices: Array, positions: Array) -> list[Draft]:
    return chain(rng, last, lambda k, last: throw(rng, Q[last]))


def shared_noise(rng: np.random.Generator, last: Array, choices: Array, positions: Array) -> list[Draft]:
    """Guesses drawn with the noise that the sampler itself has at these positions."""
    streams = [(stream_key(SEED, c), p) for c, p in zip(choices.tolist(), positions.tolist(), strict=True)]

    def guess(k: int, last: Array) -> Array:
        keys = np.array([draw_key(s, p + k) for s, p in streams], np.uint64)
        return (np.log(Q[last]) + gumbel(keys[:, None], np.arange(V))).argmax(1)  # type: ignore[arg-type]

    return chain(rng, last, guess)


def without_q(*given: Any) -> list[Draft]:
    return [d._replace(q=None) for d in dice(*given)]


def first(draft: Draft, n: int) -> Draft:
    return Draft(draft.tokens[:n], None, None if draft.q is None else draft.q[:n])


def peeking(*given: Any) -> list[Draft]:
    """Against the contract: guesses are dropped because of what they are."""
    drafts = dice(*given)
    keep = [next((i for i, t in enumerate(d.tokens) if t % 2), len(d.tokens)) for d in drafts]
    return [first(d, n) for d, n in zip(drafts, keep, strict=True)]


def trees(put_back: bool) -> Drafts:
    """Two guesses side by side, and two behind each of them unless its token says otherwise."""

    def pair(rng: np.random.Generator, last: Array) -> tuple[Array, Array]:
        one, rows = throw(rng, Q[last]), np.stack([Q[last], Q[last]], 1)
        if not put_back:
            rows[np.arange(len(last)), 1, one] = 0
            rows[:, 1] /= rows[:, 1].sum(1, keepdims=True)
        return np.stack([one, throw(rng, rows[:, 1])], 1), rows

    def draft(rng: np.random.Generator, last: Array, choices: Array, positions: Array) -> list[Draft]:
        top, rows = pair(rng, last)
        left, right = pair(rng, top[:, 0]), pair(rng, top[:, 1])
        tokens = np.concatenate([top, left[0], right[0]], 1)
        q = np.concatenate([rows, left[1], right[1]], 1)
        out = []
        for t, r in zip(tokens.tolist(), q, strict=True):
            kept = [0, 1, *((2, 3) if t[0] % 4 else ()), *((4, 5) if t[1] % 4 else ())]
            parents = [-1, -1] + [0] * (2 in kept) * 2 + [1] * (4 in kept) * 2
            out.append(Draft([t[i] for i in kept], parents, r[kept]))
        return out

    return draft


# ---- strings


def strings(verify: Verifier, drafts: Drafts, n: int) -> Array:
    """(n, 3) tokens, each string another choice of one request."""
    out = [_strings(verify, drafts, range(at, min(at + 20_000, n))) for at in range(0, n, 20_000)]
    return np.concatenate(out)


def _strings(verify: Verifier, drafts: Drafts, choices: range) -> Array:
    rng = np.random.default_rng(choices.start)
    samplers = [Sampler(PARAMS, (), c) for c in choices]
    said = np.full((len(choices), 1 + SAID), START)
    count = np.zeros(len(choices), int)
    while len(left := np.flatnonzero(count < SAID)):
        last = said[left, count[left]]
        made = drafts(rng, last, left + choices.start, count[left])
        guesses = [
            Guess(samplers[i], d, [t, *d.tokens], c, SAID - c, frozenset())
            for i, d, t, c in zip(left.tolist(), made, last.tolist(), count[left].tolist(), strict=True)
        ]
        verdict = verify.accept(guesses, LOGITS)
        assert not verdict.errors
        for i, chosen in zip(left.tolist(), verdict.chosen, strict=True):
            said[i, 1 + count[i] : 1 + count[i] + len(chosen)] = [c.id for c in chosen]
            count[i] += len(chosen)
    return said[:, 1:]


def likely(said: Array, exact: Array) -> float:
    """p of a chi-square test; cells that are expected less than five times are one."""
    place = np.ravel_multi_index(tuple(said.T), exact.shape)
    seen, expected = np.bincount(place, minlength=exact.size), exact.ravel() * len(said)
    rare = expected < 5
    seen, expected = np.append(seen[~rare], seen[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    seen, expected = seen[expected > 0], expected[expected > 0]
    chi = ((seen - expected) ** 2 / expected).sum()
    half = torch.tensor([(len(seen) - 1) / 2, chi / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


@pytest.mark.usefixtures("remembered")
@pytest.mark.parametrize(
    ("verify", "drafts", "n"),
    [
        pytest.param(Rejection(), dice, MANY, id="chain", marks=pytest.mark.slow),
        pytest.param(Rejection(), shared_noise, SOME, id="the-sampler-s-noise"),
        pytest.param(Rejection(), without_q, SOME, id="no-q"),
        pytest.param(Rejection(), trees(put_back=False), SOME, id="tree"),
        pytest.param(Rejection(), trees(put_back=True), SOME, id="tree-put-back"),
        pytest.param(Coupled(), dice, SOME, id="coupled"),
        pytest.param(Coupled(), shared_noise, SOME, id="coupled-the-sampler-s-noise"),
    ],
)
def test_the_law_is_the_model_s(verify: Verifier, drafts: Drafts, n: int) -> None:
    assert likely(strings(verify, drafts, n), EXACT) > 0.01


def always(p: Array, tokens: Sequence[int], rows: Sequence[Array], key: int) -> int:
    return tokens[0]


def again_from_p(p: Array, tokens: Sequence[int], rows: Sequence[Array], key: int) -> int:
    token = pick(p, tokens[:1], rows[:1], key)
    return token if token == tokens[0] else pick(p, (), (), key)


def siblings_alike(p: Array, tokens: Sequence[int], rows: Sequence[Array], key: int) -> int:
    """The second guess is tried as if the first had not been."""
    token = pick(p, tokens[:1], rows[:1], key)
    return token if token == tokens[0] else pick(p, tokens[1:], rows[1:], key + 99)


@pytest.mark.usefixtures("remembered")
@pytest.mark.parametrize(
    ("wrong", "drafts"),
    [(always, dice), (again_from_p, dice), (siblings_alike, trees(put_back=False)), (pick, peeking)],
    ids=["always", "again-from-p", "siblings-alike", "drafts-that-peek"],
)
def test_a_wrong_law_is_seen(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Array, Sequence[int], Sequence[Array], int], int], drafts: Drafts
) -> None:
    monkeypatch.setattr(rejection, "pick", wrong)
    assert likely(strings(Rejection(), drafts, FEW), EXACT) < 1e-6


def kept(verify: Verifier, drafts: Drafts, n: int) -> Array:
    """The share of single guesses that are right, by last token."""
    last, choices = np.repeat(np.arange(V), n), np.arange(V * n)
    made = drafts(np.random.default_rng(0), last, choices, np.zeros_like(last))
    guesses, shares = [], np.zeros((2, V))
    for t, c, d in zip(last.tolist(), choices.tolist(), made, strict=True):
        if d.tokens:
            one = first(d, 1)
            guesses.append(Guess(Sampler(PARAMS, (), c), one, [t, one.tokens[0]], 0, 2, frozenset()))
    for guess, nodes in zip(guesses, verify.accept(guesses, LOGITS).nodes, strict=True):
        shares[:, guess.rows[0]] += len(nodes), 1
    return shares[0] / shares[1]


@pytest.mark.usefixtures("remembered")
def test_as_many_guesses_are_right_as_can_be() -> None:
    n = 1_500
    error = 4 * np.sqrt(0.25 / (0.85 * n))
    rejecting = kept(Rejection(), dice, n)
    assert np.abs(rejecting - (1 - TV)).max() < error
    coupled = kept(Coupled(), shared_noise, n)
    assert (coupled > (1 - TV) / (1 + TV) - error).all()
    assert rejecting.mean() > coupled.mean() > kept(Coupled(), dice, n).mean()


# ---- one guess


def verdict(draft: Draft, sampler: Sampler, room: int = 9, stops: frozenset[int] = frozenset()) -> Verdict:
    return Rejection().accept([Guess(sampler, draft, [START, *draft.tokens], 0, room, stops)], LOGITS)


def guessed(tokens: Sequence[int]) -> Draft:
    """These guesses, as if they had been drawn."""
    return Draft(tokens, None, Q[[START, *tokens[:-1]]])


WISHES = [
    {},
    {"temperature": 0.3},
    {"top_k": 3},
    {"top_p": 0.5, "temperature": 1.7},
    {"min_p": 0.2},
    {"top_k": 9, "top_p": 0.8, "min_p": 0.05, "temperature": 0.6},
    {"logit_bias": {2: 3.0, 5: -100.0}, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_p_is_what_the_sampler_draws_from(wish: dict[str, object]) -> None:
    params = SamplingParams(**{"seed": 1, "temperature": 1.0, **wish})  # type: ignore[arg-type]
    sampler = Sampler(params, [3, 4], 0)
    far = (np.random.default_rng(2).normal(size=(3, 5_000)) * [[0.5], [2.0], [5.0]]).round(2).astype(np.float32)
    for row in [*LOGITS, *far]:
        ids, scores = candidates(sampler.adjust(row), params.temperature, params.top_k, params.top_p, params.min_p)
        weights = np.exp(scores.astype(np.float64))
        want = np.zeros(len(row))
        want[ids] = weights / weights.sum()
        got = law(sampler, row)
        np.testing.assert_allclose(got, want, atol=1e-7)
        np.testing.assert_array_equal(got > 0, want > 0)


def test_p_of_strange_logits_is_all_on_the_likeliest() -> None:
    row = LOGITS[0].copy()
    row[7] = np.inf
    assert law(Sampler(PARAMS, (), 0), row)[7] == 1
    assert law(Sampler(replace(PARAMS, temperature=0.0), (), 0), LOGITS[0]).argmax() == LOGITS[0].argmax()


def test_penalties_count_what_was_guessed_right() -> None:
    """Two tokens under penalties, bias and a nucleus, which the guesses of one round already feel."""
    params = replace(PARAMS, presence_penalty=1.0, frequency_penalty=0.5, logit_bias={3: 1.0}, top_p=0.95)
    exact = np.zeros((V, V))
    for a, share in enumerate(law(Sampler(params, (), 0), LOGITS[START])):
        then = Sampler(params, (), 0)
        then.take(a, LOGITS, 0)
        exact[a] = share * law(then, LOGITS[a])
    n, rng = 15_000, np.random.default_rng(1)
    said = np.empty((n, 2), int)
    drafts = dice(rng, np.full(n, START), np.arange(n), np.zeros(n, int))
    for i, draft in enumerate(drafts):
        sampler, tokens = Sampler(params, (), i), [START]
        while len(tokens) < 3:
            at = len(tokens) - 1
            guess = Guess(sampler, draft, [tokens[-1], *draft.tokens], at, 2 - at, frozenset())
            tokens += [c.id for c in Rejection().accept([guess], LOGITS).chosen[0]]
            draft = Draft(())
        said[i] = tokens[1:]
    assert likely(said, exact) > 0.01


def test_stops_and_room_end_the_walk() -> None:
    for c in range(200):
        draft = guessed([3, 5, 7])
        (full,) = verdict(draft, Sampler(PARAMS, (), c)).chosen
        ids = [t.id for t in full]
        (short,) = verdict(draft, Sampler(PARAMS, (), c), room=1).chosen
        assert [t.id for t in short] == ids[:1]
        (stopped,) = verdict(draft, Sampler(PARAMS, (), c), stops=frozenset({3})).chosen
        assert [t.id for t in stopped] == (ids[:1] if ids[0] == 3 else ids)


class Ascending:
    """A grammar in which tokens ascend and three of them are a text."""

    def __init__(self) -> None:
        self.finish: str | None = None
        self.said: list[int] = []

    def restrict(self, logits: Array) -> Array:
        low = self.said[-1] if self.said else -1
        return np.where(np.arange(V) > low, logits, np.float32(-np.inf))

    def take(self, token: int) -> None:
        self.said.append(token)
        self.finish = "stop" if len(self.said) == 3 else None


def test_a_grammar_is_followed() -> None:
    right = 0
    for c in range(300):
        draft = guessed([[2, 6, 9, 11], [2, 1, 3, 4]][c % 2])
        guide = Ascending()
        said = verdict(draft, Sampler(PARAMS, (), c, guide))  # type: ignore[arg-type]
        ids = [t.id for t in said.chosen[0]]
        assert ids == guide.said == sorted(set(ids))
        assert len(ids) <= 3
        right += len(said.nodes[0])
    assert right > 20


def test_log_probabilities_are_the_model_s() -> None:
    for c in range(50):
        draft, rows = guessed([3, 5]), [START, 3, 5]
        said = verdict(draft, Sampler(replace(PARAMS, logprobs=2), (), c)).chosen[0]
        for row, chosen in zip(rows, said, strict=False):
            assert chosen.logprob == pytest.approx(np.log(P[row, chosen.id]), abs=1e-5)
            assert len(chosen.top) == 2


def test_a_wrong_guess_is_its_own_error() -> None:
    bad = [
        guessed([3])._replace(q=x) for x in (LOGITS[:1], Q[:1, :9], np.eye(1, V, dtype=np.float32), np.empty((0, V)))
    ]
    drafts = [guessed([3]), *bad, Draft(()), guessed([5])]
    guesses = [Guess(Sampler(PARAMS, (), i), d, [START, *d.tokens], 0, 5, frozenset()) for i, d in enumerate(drafts)]
    said = Rejection().accept(guesses, LOGITS)
    assert sorted(said.errors) == [1, 2, 3, 4]
    assert all(isinstance(e, ValueError | IndexError) for e in said.errors.values())
    for i in (0, 5, 6):
        assert said.chosen[i] == Rejection().accept([guesses[i]], LOGITS).chosen[0] != []


def test_q_that_is_p_is_always_right() -> None:
    p = Draft([3, 5, 7], None, P[[START, 3, 5]].astype(np.float32))
    assert all(verdict(p, Sampler(PARAMS, (), c)).nodes == [[0, 1, 2]] for c in range(300))


# ---- in the engine


class Dice:
    """Slot ``draft``: guesses drawn from a table of its own, with numbers that are the request's."""

    def __init__(self) -> None:
        rng = np.random.default_rng(8)
        q = np.exp(rng.normal(size=(owed.VOCAB, owed.VOCAB)))
        self.q = (q / q.sum(1, keepdims=True)).astype(np.float32)

    def draft(self, streams: Sequence[Stream], lengths: Sequence[int]) -> Sequence[Draft]:
        return [self._guess(s, min(n, 4)) for s, n in zip(streams, lengths, strict=True)]

    def _guess(self, s: Stream, n: int) -> Draft:
        rng, rows, tokens = np.random.default_rng([s.req.params.seed or 0, s.index, s.known]), [], [int(s.own.tip)]
        for _ in range(n):
            rows.append(self.q[tokens[-1]])
            tokens.append(int(throw(rng, rows[-1][None])[0]))
        return Draft(tokens[1:], None, np.stack(rows)) if rows else Draft(())


USE = ("ngram:k=12", "rejection")


def wish(seed: int, **more: object) -> Request:
    params = SamplingParams(**{"max_tokens": 60, "seed": seed, "ignore_eos": True, "logprobs": 1, **more})  # type: ignore[arg-type]
    return Request(f"r{seed}", "tiny", tuple(owed.prompt(150, seed)), params)


@pytest.mark.parametrize(("right", "branches"), [(1.0, 1), (0.7, 1), (0.9, 3)])
def test_greedy_is_the_plain_text(monkeypatch: pytest.MonkeyPatch, right: float, branches: int) -> None:
    made = Oracle(owed.service, right, branches)
    monkeypatch.setattr(Lookup, "draft", lambda _, streams, lengths: made.draft(streams, lengths))
    owed.same_as_plain(*USE)
    of = owed.service(*USE)
    assert owed.alone(of, owed.prompt(300), 40) == owed.alone(owed.service(), owed.prompt(300), 40)
    assert of.meter.counters["spec_decode_num_accepted_tokens"] > 10


def test_guesses_without_chance_leave_every_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Oracle(owed.service, 0.8)
    monkeypatch.setattr(Lookup, "draft", lambda _, streams, lengths: made.draft(streams, lengths))
    for request in (wish(1, temperature=0.8), wish(2, temperature=1.2, n=2, top_p=0.9)):
        assert answers(owed.service(*USE), request) == answers(owed.service(), request)


def test_drawn_guesses_alone_and_in_a_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = Dice()
    monkeypatch.setattr(Lookup, "draft", lambda _, streams, lengths: drafter.draft(streams, lengths))
    of = owed.service(*USE)
    alone = {s: answers(of, wish(s, temperature=1.0))[0] for s in range(4)}
    assert of.meter.counters["spec_decode_num_accepted_tokens"] > 10
    assert alone[0] == answers(owed.service(*USE), wish(0, temperature=1.0))[0]
    life = owed.Life(owed.service(*USE))
    for s in range(4):
        life.engine.add(wish(s, temperature=1.0))
        life.ask(f"greedy-{s}", owed.prompt(200, 30 + s))
        life.step()
        life.step()
    life.finish()
    life.check(idle=True)
    assert {s: [t for t, _ in life.said[f"r{s}"]] for s in range(4)} == alone
    same = replace(wish(1, temperature=1.0), inputs=wish(0).inputs)
    assert answers(of, same)[0] != alone[0]  # another seed, another text


def test_rejection_wants_a_drafter() -> None:
    with pytest.raises(UserError, match="rejection needs something that drafts"):
        owed.service("rejection")
