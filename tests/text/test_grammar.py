"""Grammars on a vocabulary of bytes, so that every mask can be read by eye."""

from __future__ import annotations

import json
import random
import re
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diastole.params import MAX_GRAMMAR, Grammar, SamplingParams
from diastole.text.grammar import KEPT, GrammarError, Grammars, Guide
from diastole.types import UserError

BOS, EOS, VOCAB = 256, 257, 300  # ids above EOS stand for nothing, as in models whose matrices are padded


def bytes_tokenizer() -> Any:
    return SimpleNamespace(
        eos_ids=frozenset({EOS}),
        special_ids=frozenset({BOS, EOS}),
        bos_id=BOS,
        vocab_size=EOS + 1,
        token_bytes=lambda i: bytes([i]) if i < 256 else {BOS: b"<s>", EOS: b"</s>"}.get(i, b""),
        encode=lambda text, special: list(text.encode()),
    )


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(bytes_tokenizer, VOCAB)


def allowed(guide: Guide) -> set[int]:
    return set(np.flatnonzero(np.isfinite(guide.restrict(np.zeros(VOCAB, np.float32)))).tolist())


def feed(guide: Guide, text: str) -> Guide:
    for byte in text.encode():
        assert byte in allowed(guide), f"{chr(byte)!r} may not come in {text!r}"
        guide.take(byte)
    return guide


def walk(guide: Guide, seed: int) -> bytes:
    """A random text that the grammar allows."""
    rng, text = random.Random(seed), b""
    while guide.finish is None:
        token = rng.choice(sorted(allowed(guide)))
        guide.take(token)
        text += bytes([token]) if token < 256 else b""
    assert guide.finish == "stop"
    return text


def test_only_what_matches_may_come(grammars: Grammars) -> None:
    guide = grammars.guide(Grammar("regex", "(yes|no)!?"))
    assert allowed(guide) == set(b"yn")
    feed(guide, "no")
    assert allowed(guide) == {ord("!"), EOS}, "it may end here, and only by the end token; never by another special one"
    assert guide.finish is None
    guide.take(ord("!"))
    assert guide.finish == "stop", "nothing more may follow, so nobody need wait for an end token"


def test_an_end_token_ends(grammars: Grammars) -> None:
    guide = feed(grammars.guide(Grammar("regex", "a*")), "aa")
    guide.take(EOS)
    assert guide.finish == "stop"


def test_a_token_that_may_not_come_is_an_error(grammars: Grammars) -> None:
    guide = grammars.guide(Grammar("regex", "ab"))
    guide.take(ord("x"))
    assert guide.finish == "error"


def test_no_way_on_is_an_error_and_leaves_logits_alone() -> None:
    """A vocabulary without the letter b cannot write it."""
    tokenizer = bytes_tokenizer()
    tokenizer.token_bytes = lambda i: bytes([i]) if i < 256 and i != ord("b") else b""
    tokenizer.encode = lambda text, special: [i for i in text.encode() if i != ord("b")]
    guide = Grammars(lambda: tokenizer, VOCAB).guide(Grammar("lark", 'start: "a" "b"'))
    guide.take(ord("a"))
    logits = np.arange(VOCAB, dtype=np.float32)
    assert guide.restrict(logits) is logits
    assert guide.finish == "error"


def test_restrict_keeps_the_rest_to_the_bit(grammars: Grammars) -> None:
    logits = np.random.default_rng(0).standard_normal(VOCAB).astype(np.float32)
    before = logits.copy()
    out = grammars.guide(Grammar("regex", "[a-z]")).restrict(logits)
    letters = list(range(ord("a"), ord("z") + 1))
    assert (logits == before).all(), "the model's own logits are not changed"
    assert (out[letters] == logits[letters]).all()
    assert np.isneginf(np.delete(out, letters)).all()


def test_forks_go_their_own_ways(grammars: Grammars) -> None:
    guide = feed(grammars.guide(Grammar("regex", "a(bc|de)")), "a")
    twin = guide.fork()
    feed(guide, "bc")
    assert guide.finish == "stop"
    assert allowed(feed(twin, "d")) == {ord("e")}


@pytest.mark.parametrize("seed", range(20))
def test_random_walks_through_a_schema_validate(grammars: Grammars, seed: int) -> None:
    import jsonschema

    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 4, "pattern": "^[a-z ]+$"},
            "age": {"type": "integer", "minimum": -3, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["a", "bc", None]}, "maxItems": 3},
            "more": {
                "anyOf": [{"type": "boolean"}, {"type": "object", "properties": {}, "additionalProperties": False}]
            },
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
    text = walk(grammars.guide(Grammar("json_schema", json.dumps(schema))), seed)
    jsonschema.validate(json.loads(text), schema)


def test_json_has_no_room_for_endless_white_space(grammars: Grammars) -> None:
    """Blanks come only one at a time, and only where they separate; a schema cannot switch that off."""
    schema = {"type": "array", "items": {"type": "integer"}, "x-guidance": {"whitespace_flexible": True}}
    guide = grammars.guide(Grammar("json_schema", json.dumps(schema)))
    blanks = set(b" \n\t\r")
    assert not allowed(guide) & blanks
    assert not allowed(feed(guide, "[")) & blanks
    assert allowed(feed(guide, "1,")) == {ord(" ")}
    assert not allowed(feed(guide, " ")) & blanks


@pytest.mark.parametrize(
    ("kind", "text", "code"),
    [
        ("json_schema", '{"type": "foo"}', "invalid_schema"),
        ("json_schema", '{"$ref": "#/$defs/missing"}', "invalid_schema"),
        ("json_schema", '{"not": {"type": "string"}}', "invalid_schema"),  # not supported by the library: said so
        ("json_schema", "[1]", "invalid_schema"),
        ("json_schema", "{", "invalid_schema"),
        ("json_schema", json.dumps({"allOf": [{"type": "string"}, {"type": "integer"}]}), "invalid_schema"),
        ("regex", "(?=a)b", "invalid_grammar"),
        ("regex", "(", "invalid_grammar"),
        ("regex", r"[^\x00-\U0010ffff]", "invalid_grammar"),  # no character is left
        ("json_schema", '{"$ref": "#"}', "invalid_schema"),
        ("lark", "start: start", "invalid_grammar"),
        ("lark", "start: missing", "invalid_grammar"),
        ("lark", 'start: "a', "invalid_grammar"),
        ("lark", "\x00", "invalid_grammar"),
    ],
)
def test_wrong_grammars_are_refused(grammars: Grammars, kind: Any, text: str, code: str) -> None:
    with pytest.raises(GrammarError) as e:
        grammars.guide(Grammar(kind, text))
    assert (e.value.code, e.value.param) == (code, "grammar")
    assert "\n" not in e.value.message


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "(a+)+(b+)+(c+)+$"),
        ("regex", "((a{1,500}){1,500}){1,500}"),
        ("regex", "(.*a){60}"),
        ("regex", "[a-z]{1,1000000}"),
        ("json_schema", json.dumps({"enum": [f"value {i}" for i in range(10_000)]})),
        ("json_schema", json.dumps({"type": "array", "minItems": 10**9, "items": {}})),
        ("json_schema", json.dumps({"type": "string", "pattern": "^(a|aa|aaa)+$", "minLength": 10**6})),
        ("json_schema", json.dumps({"anyOf": [{"anyOf": [{"const": i * j} for i in range(60)]} for j in range(60)]})),
        ("json_schema", '{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}'),
        ("lark", 'start: start start | "a"'),
        ("lark", "start: start"),
        ("lark", "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(40)) + 'r40: "a"\nstart: r0'),
    ],
)
def test_hostile_grammars_are_followed_or_refused(grammars: Grammars, kind: Any, text: str) -> None:
    """Whatever they say, compiling and twenty tokens end, by the limits on work that every grammar has."""
    try:
        guide = grammars.guide(Grammar(kind, text))
    except GrammarError:
        return
    rng = random.Random(0)
    for _ in range(20):
        if guide.finish is not None:
            break
        guide.take(rng.choice(sorted(allowed(guide)) or [EOS]))


def test_the_last_ones_stay_compiled_and_no_more() -> None:
    grammars = Grammars(bytes_tokenizer, VOCAB)
    all_ = [Grammar("regex", f"a{{{i + 1}}}") for i in range(KEPT + 2)]
    for grammar in all_:
        grammars.guide(grammar)
    assert [g in grammars for g in all_] == [False, False] + [True] * KEPT


def test_threads_share_it() -> None:
    grammars = Grammars(bytes_tokenizer, VOCAB)
    texts: list[bytes] = []

    def work(seed: int) -> None:
        for i in range(10):
            texts.append(walk(grammars.guide(Grammar("regex", "(ab|cd){3}")), seed * 100 + i))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 40
    assert all(re.fullmatch(b"(ab|cd){3}", t) for t in texts)


def test_a_vocabulary_without_end_follows_none() -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.eos_ids = frozenset()
    with pytest.raises(UserError, match="no end-of-text token"):
        Grammars(lambda: tokenizer, VOCAB).guide(Grammar("regex", "a"))


@pytest.mark.parametrize("text", ["", "a" * (MAX_GRAMMAR + 1)])
def test_lengths(text: str) -> None:
    with pytest.raises(UserError, match="1 to"):
        Grammar("regex", text)


def test_params_refuse_what_contradicts() -> None:
    with pytest.raises(UserError, match="kind"):
        Grammar("yaml", "a")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="ignore_eos"):
        SamplingParams(grammar=Grammar("regex", "a"), ignore_eos=True)
