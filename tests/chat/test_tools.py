"""How models are told of tools, and how their calls are found in text that comes in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.chat.tools import (
    AUTO,
    HERMES,
    LLAMA,
    MISTRAL,
    REQUIRED,
    CallEnd,
    CallPiece,
    CallStart,
    Format,
    Parser,
    Piece,
    call_grammar,
    telling_of,
)
from models.common import tokenizer

NAMES = ("weather", "f")
PARIS = '{"name": "weather", "arguments": {"city": "Par{is"}}'
PLAIN_F = '{"name": "f", "arguments": {}}'


def pieces_of(text: str, cuts: list[int], format: Format, most: int | None = None) -> list[Piece]:
    parser = Parser(format, NAMES, most)
    got: list[Piece] = []
    for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True):
        got += parser.push(text[a:b])
    got += parser.flush()
    assert parser.calls == sum(isinstance(p, CallEnd) and p.whole for p in got)
    return got


def summary(pieces: list[Piece]) -> list[Any]:
    """Text, and calls as [name, arguments, whole], adjacent pieces joined. Names come before arguments, ends after."""
    said: list[Any] = []
    open_: int | None = None
    count = 0
    for piece in pieces:
        match piece:
            case str():
                assert piece
                assert open_ is None
                if said and isinstance(said[-1], str):
                    said[-1] += piece
                else:
                    said.append(piece)
            case CallStart():
                assert (open_, piece.index) == (None, count)
                open_, count = piece.index, count + 1
                said.append([piece.name, "", None])
            case CallPiece():
                assert piece.index == open_
                said[-1][1] += piece.arguments
            case CallEnd():
                assert piece.index == open_
                said[-1][2], open_ = piece.whole, None
    assert open_ is None
    return said


PARIS_CALL = ["weather", '{"city": "Par{is"}', True]
F_CALL = ["f", "{}", True]
ALL_TEXT: list[Any] = [...]
CASES: list[tuple[str, Format, str, list[Any]]] = [
    ("text", HERMES, "Just text, with < and <tool and {braces}.", ["Just text, with < and <tool and {braces}."]),
    ("nothing", HERMES, "", []),
    ("blank", HERMES, " \n", [" \n"]),
    ("one", HERMES, f"<tool_call>\n{PARIS}\n</tool_call>", [PARIS_CALL]),
    ("no white space", HERMES, f"<tool_call>{PARIS}</tool_call>", [PARIS_CALL]),
    (
        "text around",
        HERMES,
        f"Let me see.\n<tool_call>{PARIS}</tool_call>\nSo.",
        ["Let me see.\n", PARIS_CALL, "\nSo."],
    ),
    (
        "several",
        HERMES,
        f"\n<tool_call>{PARIS}</tool_call>\n<tool_call>{PLAIN_F}</tool_call>\n",
        [PARIS_CALL, F_CALL],
    ),
    ("list", HERMES, f"<tool_call>[{PARIS}, {PLAIN_F}]</tool_call>", [PARIS_CALL, F_CALL]),
    ("two in one tag", HERMES, f"<tool_call>{PARIS}\n{PLAIN_F}</tool_call>", [PARIS_CALL, F_CALL]),
    ("no closer", HERMES, f"<tool_call>\n{PARIS}", [PARIS_CALL]),
    ("opener again", HERMES, f"<tool_call>{PARIS}\n<tool_call>{PLAIN_F}</tool_call>", [PARIS_CALL, F_CALL]),
    ("name last", HERMES, '<tool_call>{"arguments": {"a":1}, "name": "f"}</tool_call>', [["f", '{"a":1}', True]]),
    ("no arguments", HERMES, '<tool_call>{"name": "f"}</tool_call>', [F_CALL]),
    ("arguments in a string", HERMES, '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', [F_CALL]),
    ("parameters", HERMES, '<tool_call>{"name": "f", "parameters": {}}</tool_call>', [F_CALL]),
    ("more keys", HERMES, '<tool_call>{"name": "f", "arguments": {}, "id": {"x": []}}</tool_call>', [F_CALL]),
    ("unknown", HERMES, '<tool_call>{"name": "g", "arguments": {}}</tool_call>', ALL_TEXT),
    ("empty", HERMES, "<tool_call></tool_call> x", ALL_TEXT),
    ("words", HERMES, "<tool_call>f()</tool_call>", ALL_TEXT),
    ("no JSON", HERMES, "<tool_call>{'name': 'f'}</tool_call>", ALL_TEXT),
    ("arguments no object", HERMES, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', ALL_TEXT),
    ("name no string", HERMES, '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>', ALL_TEXT),
    ("cut in the name", HERMES, '<tool_call>{"name": "wea', ALL_TEXT),
    ("cut in the opener", HERMES, "see <tool_ca", ALL_TEXT),
    ("opener only", HERMES, "<tool_call>\n", ALL_TEXT),
    ("an empty list", HERMES, "<tool_call>[]</tool_call>", ALL_TEXT),
    ("cut in the arguments", HERMES, f"<tool_call>{PARIS[:-5]}", [["weather", '{"city": "Par{', False]]),
    ("NaN", HERMES, '<tool_call>{"name": "f", "arguments": {"a": NaN}}x', [["f", '{"a": ', False], "NaN}}x"]),
    (
        "a brace too few, then a good one",
        HERMES,
        f'<tool_call>{{"arguments": {{}}</tool_call>\n<tool_call>{PLAIN_F}</tool_call>',
        ['<tool_call>{"arguments": {}</tool_call>\n', F_CALL],
    ),
    (
        "malformed, then a good one",
        HERMES,
        f"<tool_call>what?\n<tool_call>{PLAIN_F}</tool_call>",
        ["<tool_call>what?\n", F_CALL],
    ),
    ("llama", LLAMA, '{"name": "f", "parameters": {"a": [1, "}"]}}', [["f", '{"a": [1, "}"]}', True]]),
    ("llama, tag", LLAMA, '<|python_tag|>{"name": "f", "parameters": {}}', [F_CALL]),
    ("llama, white space", LLAMA, ' \n{ "name" : "f" , "parameters" : {} }', [F_CALL]),
    ("llama, text after it", LLAMA, '{"name": "f", "parameters": {}}; {"x": 1}', [F_CALL, '; {"x": 1}']),
    ("llama, other JSON", LLAMA, '{"city": "Paris", "x": {"y": 1}}', ALL_TEXT),
    ("llama, other name", LLAMA, '{"name": "Ann", "parameters": {"y": 1}}', ALL_TEXT),
    ("llama, code", LLAMA, '{ x = "y"; }\nand <|more', ALL_TEXT),
    ("llama, in a sentence", LLAMA, 'Use {"name": "f", "parameters": {}}', ALL_TEXT),
    ("mistral", MISTRAL, f"[TOOL_CALLS] [{PARIS}, {PLAIN_F}]", [PARIS_CALL, F_CALL]),
    ("mistral, silent token", MISTRAL, f" [{PARIS}]", [PARIS_CALL]),
    ("mistral, text first", MISTRAL, f"Well.[TOOL_CALLS][{PARIS}] ok", ["Well.", PARIS_CALL, " ok"]),
    ("mistral, white space and other list", MISTRAL, " \n[x", ALL_TEXT),
    ("mistral, other list", MISTRAL, '[1, 2, {"name": "f"}]', ALL_TEXT),
    ("mistral, list of other things", MISTRAL, '[{"city": "Paris"}]', ALL_TEXT),
]


@pytest.mark.parametrize(("format", "text", "want"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_calls_are_found_however_the_text_is_cut(format: Format, text: str, want: Any) -> None:
    want = [text] if want is ALL_TEXT else want
    assert summary(pieces_of(text, [], format)) == want
    assert summary(pieces_of(text, list(range(1, len(text))), format)) == want
    for cut in range(1, len(text)):
        assert summary(pieces_of(text, [cut], format)) == want


FRAGMENTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", PARIS, PLAIN_F, "{", "}", "[", "]", ",", ";", '"', "\\", " ", "\n",
     "x", '{"name": "f", "arguments": ', '{"a": ', "<", "é", '{"name": ["f"]}', "<|python_tag|>"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(FRAGMENTS, max_size=12), st.sampled_from([HERMES, LLAMA, MISTRAL]), st.data())
def test_any_text_is_told_apart_alike_in_any_pieces(parts: list[str], format: Format, data: st.DataObject) -> None:
    text = "".join(parts)
    whole = summary(pieces_of(text, [], format))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(text) - 1, 1)), max_size=8))) if len(text) > 1 else []
    assert summary(pieces_of(text, cuts, format)) == whole
    for part in whole:
        if isinstance(part, list) and part[2]:
            assert isinstance(json.loads(part[1]), dict)
    if not any(isinstance(part, list) for part in whole):
        assert "".join(whole) == text


def test_arguments_come_as_they_are_written_and_text_waits_for_markers_only() -> None:
    parser = Parser(HERMES, NAMES)
    assert parser.push("Hm <") == ["Hm "]
    assert parser.push("b> <tool") == ["<b> "]
    assert parser.push('_call>{"name": "weather", "arguments"') == []
    assert parser.push(': {"ci') == [CallStart(0, "weather"), CallPiece(0, '{"ci')]
    assert parser.push('ty": "') == [CallPiece(0, 'ty": "')]
    assert parser.push('X"}}') == [
        CallPiece(0, 'X"}'),
        CallEnd(0, True, '{"name": "weather", "arguments": {"city": "X"}}'),
    ]


def test_a_bare_answer_that_is_no_call_is_not_withheld() -> None:
    parser = Parser(LLAMA, NAMES)
    assert parser.push('{"ci') == []
    assert "".join(map(str, parser.push('ty"'))) == '{"city"'
    assert parser.push(": 1") == [": 1"]


def test_what_follows_the_last_call_that_may_be_is_dropped() -> None:
    text = f"<tool_call>{PARIS}</tool_call> and <tool_call>{PLAIN_F}</tool_call>"
    assert summary(pieces_of(text, list(range(1, len(text))), HERMES, most=1)) == [PARIS_CALL]


def test_a_deep_or_long_call_costs_linear_time_and_no_exception() -> None:
    deep = '<tool_call>{"x":' + "[" * 100_000
    assert summary(pieces_of(deep, list(range(5, len(deep), 5)), HERMES)) == [deep]
    closed = '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 5000 + "]" * 5000 + "}}</tool_call>"
    assert summary(pieces_of(closed, [], HERMES))[0][2] is False
    long = '<tool_call>{"name": "f", "arguments": {"a": "' + "x" * 200_000 + '"}}</tool_call>'
    assert summary(pieces_of(long, list(range(3, len(long), 3)), HERMES))[0][2] is True


# ---- telling

TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Says it.", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "call_0123456789", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "call_0123456789", "name": "weather"},
]

READS = "{% if tools %}{{ tools | tojson }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "format", "native"),
    [
        (None, HERMES, False),
        ("{% for m in messages %}{{ m.content }}{% endfor %} You have no tools <tool_call>.", HERMES, False),
        (READS + "<tool_call>", HERMES, True),
        (READS + '{{ \'{"name": "\' + c.name + \'", "parameters": \' }}', LLAMA, True),
        ("{%- if builtin_tools is defined or tools is not none %}<|python_tag|>{% endif %}", LLAMA, True),
        (READS + "[AVAILABLE_TOOLS][TOOL_CALLS]", MISTRAL, True),
        (READS + "[TOOL_CALLS]name[ARGS]", HERMES, False),
        (READS + "<tool_call><function=", HERMES, False),
        (READS + "<something_else>", HERMES, False),
    ],
)
def test_the_template_tells_the_format(template: str | None, format: Format, native: bool) -> None:
    telling = telling_of(template)
    assert telling.format is format
    _, told = telling.prepare(TALK, [TOOL])
    assert (told == [TOOL]) is native


def test_a_template_that_knows_tools_gets_them_as_they_are() -> None:
    messages, tools = telling_of(READS + "<tool_call>").prepare(TALK, [TOOL])
    assert (messages, tools) == (TALK, [TOOL])


def test_mistral_wants_short_ids_and_the_same_for_call_and_result() -> None:
    messages, _ = telling_of(READS + "[TOOL_CALLS]").prepare(TALK, None)
    short = messages[1]["tool_calls"][0]["id"]
    assert len(short) == 9
    assert short.isalnum()
    assert messages[2]["tool_call_id"] == short
    assert TALK[2]["tool_call_id"] == "call_0123456789"


def test_a_template_without_tools_is_told_in_text_that_our_parser_reads() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    more = [*TALK, {**TALK[2], "content": "warm"}, {"role": "user", "content": "And now?"}]
    messages, tools = telling_of(template).prepare([{"role": "system", "content": "Be kind."}, *more], [TOOL])
    assert tools is None
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"].startswith("Be kind.\n\n")
    assert json.dumps(TOOL) in messages[0]["content"]
    assert summary(pieces_of(messages[2]["content"], [], HERMES)) == [["weather", '{"city": "Zürich"}', True]]
    results = "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nwarm\n</tool_response>"
    assert messages[3]["content"] == results + "\nAnd now?"
    first, _ = telling_of(template).prepare(TALK, [TOOL])
    assert first[0]["role"] == "system"
    assert telling_of(template).prepare(TALK, None)[0][0] == TALK[0]
    assert TALK[1]["tool_calls"] == [CALL]


@pytest.mark.model
def test_a_conversation_with_a_result_goes_through_the_embedded_models_template() -> None:
    from diastole.chat import ChatTemplate
    from diastole.frontend.voice import Voice

    voice = Voice(tokenizer(), ChatTemplate.of(tokenizer()))
    try:
        text = voice.tokenizer._special.decode(voice.chat(TALK, [TOOL], {}), skip_special_tokens=False)
    finally:
        voice.close()
    turns = [t.removesuffix("<|im_end|>\n") for t in text.split("<|im_start|>")[1:]]
    assert [t.partition("\n")[0] for t in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert '"name": "weather"' in turns[0]
    assert summary(pieces_of(turns[2].partition("\n")[2], [], HERMES)) == [["weather", '{"city": "Zürich"}', True]]
    assert "sunny" in turns[3]
    assert turns[4] == "assistant\n"


# ---- grammar

CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["Paris", "Rome"]}},
}
FUNCTIONS = [
    {"name": "weather", "parameters": CITY},
    {"name": "f", "parameters": {"properties": {"n": {"type": "integer"}}, "additionalProperties": False}},
]


class Matcher:
    """One byte per token."""

    def __init__(self, text: str) -> None:
        llguidance = pytest.importorskip("llguidance", reason="llguidance is not installed")

        class Bytes:
            eos_token_id, bos_token_id = 256, None
            special_token_ids = (256,)
            tokens = (*(bytes([i]) for i in range(256)), b"<eos>")

            def __call__(self, text: bytes) -> list[int]:
                return list(text)

        words = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))
        assert llguidance.LLMatcher.validate_grammar(text, words) == ""
        self.begin = llguidance.LLMatcher(words, text, log_level=0)
        assert not self.begin.is_error(), self.begin.get_error()

    def takes(self, text: str) -> bool:
        matcher = self.begin.deep_copy()
        data = list(text.encode())
        return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def call(format: Format, name: str = "weather", arguments: str = '{"city": "Paris"}') -> str:
    return format.call(name, arguments)


@pytest.mark.parametrize("format", [HERMES, LLAMA, MISTRAL])
def test_required_calls_match_their_schema_and_our_parser_reads_them(format: Format) -> None:
    grammar = Matcher(call_grammar(format, FUNCTIONS, REQUIRED, parallel=False))
    good = [call(format), call(format, "f", "{}"), call(format, "f", '{"n": 7}')]
    for one in good:
        text = format.written([one])
        assert grammar.takes(text), text
        assert len(pieces_of(text, [], format)) >= 2
        assert summary(pieces_of(text, [], format))[0][2] is True
    bad = [call(format, arguments='{"city": "Bonn"}'), call(format, "g"), call(format, arguments="{}"), "hi"]
    bad += [call(format, arguments='{ "city": "Paris"}'), call(format, "f", '{"n": "7"}'), call(format, "f", "[]")]
    for one in bad:
        assert not grammar.takes(format.written([one])), one
    assert not grammar.takes("hi")
    assert not grammar.takes("")
    assert not grammar.takes(format.written([good[0]]) + " and more")
    if format.between is not None:
        assert not grammar.takes(format.written(good[:2]))


@pytest.mark.parametrize("format", [HERMES, MISTRAL])
def test_parallel_calls_are_several_and_not_endless(format: Format) -> None:
    grammar = Matcher(call_grammar(format, FUNCTIONS, REQUIRED, parallel=True))
    assert grammar.takes(format.written([call(format)]))
    assert grammar.takes(format.written([call(format), call(format, "f", "{}")] * 8))
    assert not grammar.takes(format.written([call(format)] * 17))
    assert len(summary(pieces_of(format.written([call(format)] * 16), [], format))) == 16


@pytest.mark.parametrize("format", [HERMES, LLAMA, MISTRAL])
def test_a_named_function_is_called_once(format: Format) -> None:
    grammar = Matcher(call_grammar(format, FUNCTIONS, "f", parallel=True))
    assert grammar.takes(format.written([call(format, "f", "{}")]))
    assert not grammar.takes(format.written([call(format)]))
    if format.between is not None:
        assert not grammar.takes(format.written([call(format, "f", "{}")] * 2))


@pytest.mark.parametrize("format", [HERMES, LLAMA, MISTRAL])
def test_auto_allows_text_and_binds_calls(format: Format) -> None:
    grammar = Matcher(call_grammar(format, FUNCTIONS, AUTO, parallel=True))
    for text in ("", "Hello, <b> you.", "ünï\n\n{x}", format.written([call(format)])):
        assert grammar.takes(text), text
    assert not grammar.takes(format.written([call(format, arguments='{"city": "Bonn"}')]))
    assert not grammar.takes(format.written([call(format, "g")]))
    wrong = call(format, arguments='{"city": "Bonn"}')
    for text in (f"{format.opener}\n[{wrong}]", f"Well.{format.opener}\n{wrong}"):
        assert not grammar.takes(text), text


def test_auto_has_text_around_tagged_calls() -> None:
    grammar = Matcher(call_grammar(HERMES, FUNCTIONS, AUTO, parallel=True))
    text = "Look:\n" + HERMES.written([call(HERMES), call(HERMES, "f", "{}")]) + " done"
    assert grammar.takes(text)
    assert summary(pieces_of(text, [], HERMES)) == ["Look:\n", ["weather", '{"city": "Paris"}', True], F_CALL, " done"]
