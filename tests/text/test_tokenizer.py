"""The embedded model's tokenizer, rebuilt from its GGUF file, against a byte-pair encoder written slowly."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.text import Detokenizer, Tokenizer, TokenizerError
from diastole.text.bytelevel import byte_alphabet
from diastole.weights import GGUF
from models.common import embedded

needs_model = pytest.mark.model


@cache
def metadata() -> dict[str, Any]:
    with GGUF.open(embedded()) as file:
        return file.metadata


@cache
def smollm() -> Tokenizer:
    return Tokenizer.from_gguf(metadata())


@cache
def ranks() -> dict[tuple[str, str], int]:
    return {tuple(m.split(" ", 1)): i for i, m in enumerate(metadata()["tokenizer.ggml.merges"])}  # type: ignore[misc]


@cache
def ids() -> dict[str, int]:
    return {t: i for i, t in enumerate(metadata()["tokenizer.ggml.tokens"])}


GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def slow_encode(text: str) -> list[int]:
    """Digits apart, then GPT-2's words, then the best-ranked merge again and again. Bytes that this vocabulary lacks
    (it has none for the rarest planes of Unicode) are left out."""
    spell = {b: c for c, b in byte_alphabet().items()}
    out = []
    for part in regex.split(r"(\p{N})", text):
        for word in GPT2.findall(part):
            pieces = [c for c in (spell[b] for b in word.encode()) if c in ids()]
            while len(pieces) > 1:
                rank, i = min((ranks().get((a, b), 10**9), i) for i, (a, b) in enumerate(itertools.pairwise(pieces)))
                if rank == 10**9:
                    break
                pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
            out += [ids()[p] for p in pieces]
    return out


TEXTS = [
    "Hello world! It's 12345 o'clock.", "def f(x):\n    return x ** 2  # 2²\n\n\n", "日本語のテキスト, 中文, 한국어",
    "café naïve e\u0301 👩‍👩‍👧 🇫🇷", "   \t\n  \r\n x", "<|im_start|>user", "ΑΒΓ १२३ Ⅷ ½", "\x00\x01\x7f", "",
]  # fmt: skip


@needs_model
@pytest.mark.parametrize("text", TEXTS)
def test_encoding_equals_the_slow_one(text: str) -> None:
    assert smollm().encode(text, special=False) == slow_encode(text)
    assert smollm().decode(slow_encode(text)) == text


@needs_model
@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    encoded = smollm().encode(text, special=False)
    assert encoded == slow_encode(text)
    spell = {b: c for c, b in byte_alphabet().items()}
    kept = bytes(b for b in text.encode() if spell[b] in ids())
    assert smollm().decode(encoded) == kept.decode("utf-8", "replace")


@needs_model
def test_special_tokens_only_where_they_are_meant() -> None:
    assert smollm().encode("<|im_start|>", special=True) == [1]
    assert 1 not in smollm().encode("<|im_start|>", special=False)
    assert smollm().decode([1, 4093, 2]) == "user"
    assert {0, 2} <= smollm().eos_ids
    assert smollm().vocab_size == 49_152


@needs_model
@given(st.lists(st.one_of(st.integers(0, 49_151), st.integers(0, 300)), max_size=40))
@settings(max_examples=200, deadline=None)
def test_pieces_add_up_to_the_whole(tokens: list[int]) -> None:
    """Any ids at all, also halves of characters: together the pieces are the text."""
    detokenizer = Detokenizer(smollm())
    pieces = [detokenizer.push(t) for t in tokens]
    assert "".join(pieces) + detokenizer.flush() == smollm().decode(tokens)


@needs_model
def test_no_half_characters() -> None:
    encoded = smollm().encode("👩‍👩‍👧 naïve 日本", special=False)
    detokenizer = Detokenizer(smollm())
    pieces = [detokenizer.push(t) for t in encoded]
    assert "" in pieces  # some token really was half a character
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + detokenizer.flush() == "👩‍👩‍👧 naïve 日本"


# ---- other vocabularies


def sentence_piece() -> dict[str, Any]:
    """A small SentencePiece vocabulary with byte fallback."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
    types = [2, 3, 3, *([6] * 256), 1, 1, 1, 1, 1, 1]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [0.0] * 259 + [-5.0, -6.0, -7.0, -2.0, -1.0, -3.0],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.mark.parametrize("text", ["ab a b", "a", "abba é 日", " ab"])
def test_sentence_piece_text_comes_back(text: str) -> None:
    tokenizer = Tokenizer.from_gguf(sentence_piece())
    encoded = tokenizer.encode(text, special=False)
    assert encoded[0] == 1  # these models want their beginning marked
    assert 0 not in encoded
    assert tokenizer.decode(encoded) == text
    detokenizer = Detokenizer(tokenizer)
    assert "".join(detokenizer.push(t) for t in encoded) + detokenizer.flush() == text


def test_markers_of_calls_are_text_even_as_control_tokens() -> None:
    changed = sentence_piece()
    changed["tokenizer.ggml.tokens"] = [*changed["tokenizer.ggml.tokens"], "[TOOL_CALLS]"]
    changed["tokenizer.ggml.token_type"] = [*changed["tokenizer.ggml.token_type"], 3]
    changed["tokenizer.ggml.scores"] = [*changed["tokenizer.ggml.scores"], 0.0]
    tokenizer = Tokenizer.from_gguf(changed)
    marker = tokenizer.encode("[TOOL_CALLS]", special=True)[-1]
    assert marker == 265
    assert tokenizer.decode([263, marker, 1]) == "ab[TOOL_CALLS]"
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(t) for t in (263, marker, 1)] == ["ab", "[TOOL_CALLS]", ""]


def test_from_directory(tmp_path: Path) -> None:
    from tokenizers import AddedToken, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(byte_alphabet())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken("<|im_end|>", special=True), AddedToken("<s>", special=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "bos_token": {"content": "<s>"}, "add_bos_token": True, "chat_template": "x"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.eos_ids == {256}
    assert tokenizer.encode("hé", special=False)[0] == tokenizer.bos_id == 257
    assert tokenizer.decode(tokenizer.encode("hé<|im_end|>", special=False)) == "hé<|im_end|>"
    assert tokenizer.encode("<|im_end|>", special=True) == [256]
    assert tokenizer.chat_template == "x"
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="cannot be read"):
        Tokenizer.from_directory(tmp_path)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tokenizer.ggml.model": "rwkv"}, "rwkv"),
    ({"tokenizer.ggml.tokens": None}, "tokens"),
    ({"tokenizer.ggml.tokens": [1, 2]}, "tokens"),
    ({"tokenizer.ggml.token_type": [1]}, "token types"),
    ({"tokenizer.ggml.scores": [1.0]}, "score"),
    ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "martian"}, "martian"),
    ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["ab"]}, "not a pair"),
    ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["x y"]}, "inconsistent"),
]


@pytest.mark.parametrize(("change", "what"), WRONG, ids=lambda v: str(v)[:30])
def test_wrong_vocabularies_are_named(change: dict[str, Any], what: str) -> None:
    with pytest.raises(TokenizerError, match=what):
        Tokenizer.from_gguf(sentence_piece() | change)
