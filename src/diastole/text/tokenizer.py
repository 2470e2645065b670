"""Tokenizer: text to ids and back, built from a GGUF file's vocabulary or from a tokenizer.json.

The work is done by the ``tokenizers`` library; what is ours is the reading of vocabularies, the knowledge of which ids
end a text, and the exact bytes of every token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from diastole.text.bytelevel import byte_alphabet
from diastole.text.formats import MARKERS
from diastole.text.private import Private, ids_of
from diastole.types import UserError

# Token types in GGUF files.
_CONTROL, _USER, _BYTE = 3, 4, 6
# Tokens that end a turn or a text in the families known here.
_ENDS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "</s>",
    "<|end|>",
)  # fmt: skip
# With those that begin one: special in every vocabulary, although some files say that they are text.
_TURNS = frozenset((
    *_ENDS, "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<bos>", "<s>",
    "<|begin_of_text|>", "<|system|>", "<|user|>", "<|assistant|>",
))  # fmt: skip
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPACE = "▁"


class TokenizerError(UserError):
    """A vocabulary cannot be used; the message says why."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model", code="invalid_tokenizer")


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_apart() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _words(digits: str) -> Callable[[], Any]:
    def build() -> Any:
        split = pre_tokenizers.Split(Regex(_WORDS % digits), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return build


_PRE: dict[str, Callable[[], Any]] = {
    "default": _gpt2,
    "gpt-2": _gpt2,
    "smollm": _digits_apart,
    "qwen2": _words(""),
    "llama-bpe": _words("{1,3}"),
    "llama3": _words("{1,3}"),
    "llama-v3": _words("{1,3}"),
}


class Tokenizer:
    """A vocabulary. Make one with ``from_gguf`` or ``from_directory``.

    Attributes:
        eos_ids: ids that end a turn or a text.
        special_ids: ids that stand for no text. Markers of tool calls are text, whatever the file says.
        chat_template: the model's own, or None.
    """

    def __init__(
        self,
        make: Callable[[bool], Backend],
        special_ids: frozenset[int],
        eos_ids: frozenset[int],
        bos_id: int | None,
        add_bos: bool,
        chat_template: str | None,
    ) -> None:
        self._make = make
        self._special = make(True)
        self._private: Private | None = None
        self.special_ids = special_ids - {self._special.token_to_id(marker) for marker in MARKERS}
        self.eos_ids, self.bos_id, self.add_bos = eos_ids, bos_id, add_bos
        self.chat_template = chat_template
        self.vocab_size = self._special.get_vocab_size(with_added_tokens=True)
        self._bytes = _byte_reader(self._special)
        self.strips_space = _strips_space(self._special)

    # ---- building

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From a GGUF file's metadata.

        Raises:
            TokenizerError: the vocabulary is missing, inconsistent or of an unknown kind.
        """
        meta = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items() if k.startswith("tokenizer.")}
        tokens = _strings(meta, "tokens")
        types = meta.get("token_type") or [1] * len(tokens)
        if len(types) != len(tokens):
            raise TokenizerError(f"the vocabulary has {len(tokens)} tokens but {len(types)} token types")
        types = [_CONTROL if k == _USER and t in _TURNS else k for t, k in zip(tokens, types, strict=True)]
        kind = meta.get("model")
        if kind == "gpt2":
            make = _byte_level(meta, tokens, types)
        elif kind == "llama":
            make = _sentence_piece(meta, tokens, types)
        else:
            raise TokenizerError(
                f"vocabularies of kind {kind!r} are not supported; supported: gpt2 (BPE), llama (SentencePiece)"
            )
        bos = meta.get("bos_token_id")
        template = meta.get("tokenizer.chat_template")
        return cls(
            make,
            special_ids=frozenset(i for i, t in enumerate(types) if t == _CONTROL),
            eos_ids=_ends(tokens, [meta.get("eos_token_id"), meta.get("eot_token_id")]),
            bos_id=bos if isinstance(bos, int) and bos < len(tokens) else None,
            add_bos=bool(meta.get("add_bos_token", kind == "llama")),
            chat_template=template if isinstance(template, str) else None,
        )

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """From tokenizer.json and its neighbours in a Hugging Face directory.

        Raises:
            TokenizerError: a file is missing or cannot be read.
        """
        path = Path(path)
        try:
            text = (path / "tokenizer.json").read_text("utf-8")
            whole = _with_turns(json.loads(text))
            text = json.dumps(whole)
            Backend.from_str(text)
        except FileNotFoundError:
            raise TokenizerError(f"{path} has no tokenizer.json") from None
        except Exception as e:  # the library raises bare Exceptions
            raise TokenizerError(f"{path / 'tokenizer.json'} cannot be read: {e}") from None
        settings, generation = _json(path / "tokenizer_config.json"), _json(path / "generation_config.json")
        added = [t for t in whole.get("added_tokens", []) if isinstance(t, dict) and t.get("special")]
        plain = json.dumps({**whole, "added_tokens": [t for t in whole.get("added_tokens", []) if t not in added]})
        ids = {str(t["content"]): int(t["id"]) for t in added}
        eos = generation.get("eos_token_id")
        more = eos if isinstance(eos, list) else [eos]
        named = ids.get(_content(settings.get("eos_token")) or "")
        bos = _content(settings.get("bos_token"))
        template = settings.get("chat_template")
        if (path / "chat_template.jinja").exists():
            template = (path / "chat_template.jinja").read_text("utf-8")
        return cls(
            lambda special: Backend.from_str(text if special else plain),
            special_ids=frozenset(ids.values()),
            eos_ids=frozenset(i for t, i in ids.items() if t in _ENDS)
            | frozenset(i for i in (*more, named) if isinstance(i, int)),
            bos_id=ids.get(bos or ""),
            add_bos=bool(settings.get("add_bos_token", False)),
            chat_template=template if isinstance(template, str) else None,
        )

    # ---- use

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Text to ids.

        Args:
            special: read special tokens where their text occurs (rendered templates); otherwise it is plain text, and
                the beginning-of-text id is put in front where the model wants one (prompts of users).
        """
        if special:
            return ids_of(self._special, text)
        ids = self.encode_private(text)
        return [self.bos_id, *ids] if self.add_bos and self.bos_id is not None else ids

    @property
    def special_names(self) -> list[str]:
        """The names of all special tokens, markers of tool calls included where the file says so."""
        return [t.content for t in self._special.get_added_tokens_decoder().values() if t.special]

    def encode_private(self, text: str) -> list[int]:
        """Text to ids, where only private names are read as special tokens."""
        return self._apart().encode(text)

    def private_name(self, name: str) -> str:
        """What a special token is called in ``encode_private``: no text holds it by accident or by guessing."""
        return self._apart().names[name]

    def _apart(self) -> Private:
        if self._private is None:
            self._private = Private(self._make(False), self._special)
        return self._private

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text; special ids give none, bytes that are not UTF-8 become U+FFFD."""
        text = b"".join(self.token_bytes(i) for i in ids if i not in self.special_ids).decode("utf-8", "replace")
        return text[1:] if self.strips_space and text.startswith(" ") else text

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for; b"" for an id without token."""
        token = self._special.id_to_token(id)
        return b"" if token is None else self._bytes(token)

    def token(self, id: int) -> str:
        """The token's own name in the vocabulary, such as "<|im_end|>"; "" for an id without token."""
        return self._special.id_to_token(id) or ""

    @property
    def fingerprint(self) -> str:
        """Changes with the vocabulary."""
        return hashlib.sha256(self._special.to_str().encode()).hexdigest()


def _byte_level(meta: Mapping[str, Any], tokens: list[str], types: Sequence[int]) -> Callable[[bool], Backend]:
    pre = str(meta.get("pre", "default"))
    if pre not in _PRE:
        raise TokenizerError(f"pre-tokenizer {pre!r} is not supported; supported: {', '.join(_PRE)}")
    merges = [_pair(m) for m in _strings(meta, "merges")]
    vocab = {t: i for i, t in enumerate(tokens)}

    def make(special: bool) -> Backend:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.startswith("llama"))
        backend = Backend(model)
        if pre == "qwen2":
            backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = _PRE[pre]()
        backend.decoder = decoders.ByteLevel()
        return _with_added(backend, tokens, types, special)

    return _checked(make)


def _sentence_piece(meta: Mapping[str, Any], tokens: list[str], types: Sequence[int]) -> Callable[[bool], Backend]:
    scores = meta.get("scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise TokenizerError("a SentencePiece vocabulary needs one score per token")
    vocab = {t: i for i, t in enumerate(tokens)}
    merges = _merges_by_score(vocab, tokens, scores, types)
    prefix = bool(meta.get("add_space_prefix", True))

    def make(special: bool) -> Backend:
        unknown = tokens[meta.get("unknown_token_id", 0)]
        backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
        steps: list[Any] = [normalizers.Prepend(_SPACE)] if prefix else []
        backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
        ends: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
        backend.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
        )
        return _with_added(backend, tokens, types, special)

    return _checked(make)


def _merges_by_score(
    vocab: Mapping[str, int], tokens: list[str], scores: list[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose union scores best: as ranked pairs for a BPE model."""
    ranked = []
    for id, token in enumerate(tokens):
        if types[id] in {_CONTROL, _BYTE}:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                ranked.append((-scores[id], vocab[left], vocab[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _with_added(backend: Backend, tokens: list[str], types: Sequence[int], special: bool) -> Backend:
    user = [AddedToken(t, normalized=False) for t, kind in zip(tokens, types, strict=True) if kind == _USER]
    control = [
        AddedToken(t, normalized=False, special=True) for t, k in zip(tokens, types, strict=True) if k == _CONTROL
    ]
    backend.add_tokens(user)
    if special:
        backend.add_special_tokens(control)
    return backend


def _checked(make: Callable[[bool], Backend]) -> Callable[[bool], Backend]:
    def build(special: bool) -> Backend:
        try:
            return make(special)
        except Exception as e:  # the library raises bare Exceptions
            raise TokenizerError(f"the vocabulary is inconsistent: {e}") from None

    return build


def _byte_reader(backend: Backend) -> Callable[[str], bytes]:
    """From a token of the vocabulary to its bytes, as this vocabulary spells them."""
    alphabet = byte_alphabet()
    state = json.loads(backend.to_str())
    added = {t["content"] for t in state["added_tokens"]}

    def byte_level(token: str) -> bytes:
        if token in added:
            return token.encode()
        return bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()

    def pieces(token: str) -> bytes:
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace(_SPACE, " ").encode()

    return pieces if state["model"].get("byte_fallback") else byte_level


def _strips_space(backend: Backend) -> bool:
    return '"Strip"' in json.dumps(json.loads(backend.to_str()).get("decoder"))


def _ends(tokens: list[str], ids: Sequence[object]) -> frozenset[int]:
    known = {t: i for i, t in enumerate(tokens)}
    named = {known[t] for t in _ENDS if t in known}
    return frozenset(named | {i for i in ids if isinstance(i, int) and 0 <= i < len(tokens)})


def _strings(meta: Mapping[str, Any], key: str) -> list[str]:
    value = meta.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise TokenizerError(f"the file has no list of strings tokenizer.ggml.{key}")
    return value


def _pair(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not space:
        raise TokenizerError(f"merge {merge!r} is not a pair")
    return left, right


def _with_turns(file: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json in which the tokens that begin and end turns are special."""
    added = [{**t, "special": t.get("special") or t["content"] in _TURNS} for t in file.get("added_tokens", [])]
    return {**file, "added_tokens": added}


def _content(token: object) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise TokenizerError(f"{path} cannot be read: {e}") from None
    return value if isinstance(value, dict) else {}
