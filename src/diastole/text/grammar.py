"""Grammars: which tokens may come next, so that a text becomes what was asked for. The automata are llguidance's.

JSON is written with one space after commas and colons and no other white space: a model that likes to write blanks
could do so for ever otherwise.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from diastole.params import Grammar
from diastole.text.tokenizer import Tokenizer
from diastole.types import Array, UserError

KEPT = 64  # grammars that stay compiled
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Work and memory that one grammar may cost, whatever it says: about 20 ms to compile and 15 ms for a token.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 500_000,
}
_WHAT = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar"}


class GrammarError(UserError):
    """A grammar that cannot be followed."""

    def __init__(self, kind: str, why: str) -> None:
        code = "invalid_schema" if kind == "json_schema" else "invalid_grammar"
        super().__init__(f"the {_WHAT[kind]} cannot be followed: {_one_line(why)}", param="grammar", code=code)


class Guide:
    """Where one text stands in its grammar. ``finish`` is None until it is complete ("stop") or stuck ("error")."""

    __slots__ = ("_matcher", "_words", "finish")

    def __init__(self, matcher: Any, vocab: int) -> None:
        self._matcher = matcher
        self._words = np.zeros(-(-vocab // 32), np.uint32)
        self.finish: str | None = None

    @property
    def why(self) -> str:
        """What the library says of a text that is stuck; it may say nothing."""
        return self._matcher.get_error()

    def restrict(self, logits: Array) -> Array:
        """logits (V,) with minus infinity for every token that may not come next."""
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        if self._matcher.is_error() or not self._words.any():
            self.finish = "error"
            return logits
        allowed = np.unpackbits(self._words.view(np.uint8), count=len(logits), bitorder="little").view(bool)
        return np.where(allowed, logits, np.float32(-np.inf))

    def take(self, token: int) -> None:
        """This token came."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            self.finish = "error"
        elif self._matcher.is_stopped():
            self.finish = "stop"

    def fork(self) -> Guide:
        """For another text that stands at the same place."""
        return Guide(self._matcher.deep_copy(), 32 * len(self._words))


class Grammars:
    """Compiles grammars for one vocabulary and keeps the last of them. Threads may share it.

    Args:
        tokenizer: gives the tokenizer; called when the first grammar comes.
        vocab: ids run from 0 to vocab - 1.
    """

    def __init__(self, tokenizer: Callable[[], Tokenizer], vocab: int) -> None:
        self._tokenizer, self._vocab = tokenizer, vocab
        self._lock = threading.Lock()
        self._words: Any = None
        self._kept: OrderedDict[Grammar, Guide] = OrderedDict()

    def __contains__(self, grammar: Grammar) -> bool:
        """Whether a guide for it costs nothing."""
        return grammar in self._kept

    def guide(self, grammar: Grammar) -> Guide:
        """A guide at the beginning of a text.

        Raises:
            GrammarError: the grammar is wrong, or too much work.
        """
        with self._lock:
            if grammar not in self._kept:
                self._kept[grammar] = self._compile(grammar)
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(grammar)
            return self._kept[grammar].fork()

    def _compile(self, grammar: Grammar) -> Guide:
        from llguidance import LLMatcher, LLParserLimits

        if self._words is None:
            self._words = _vocabulary(self._tokenizer(), self._vocab)
        try:
            source = _source(grammar)
        except ValueError as e:
            raise GrammarError(grammar.kind, str(e)) from None
        limits = LLParserLimits(**LIMITS, verbose_errors=False)
        matcher = LLMatcher(self._words, source, log_level=0, limits=limits)
        if matcher.is_error():
            raise GrammarError(grammar.kind, matcher.get_error())
        guide = Guide(matcher, self._vocab)
        first = guide.fork()  # the first mask finds what compiling does not
        first.restrict(np.zeros(self._vocab, np.float32))
        if first.finish is not None:
            raise GrammarError(grammar.kind, first.why or "no token may come first")
        return guide


def _source(grammar: Grammar) -> str:
    """What llguidance reads."""
    from llguidance import LLMatcher

    if grammar.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(grammar.text, overrides=JSON_STYLE)  # type: ignore[arg-type]
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    return LLMatcher.grammar_from_lark(grammar.text)


class _Words:
    """A vocabulary as llguidance asks for it."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self.eos_token_id = min(tokenizer.eos_ids)
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = sorted(i for i in tokenizer.special_ids if i < vocab)
        self.tokens = [tokenizer.token_bytes(i) for i in range(vocab)]  # b"" for ids that a padded matrix adds
        self._encode = tokenizer.encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode("utf-8", "replace"), special=False)


def _vocabulary(tokenizer: Tokenizer, vocab: int) -> Any:
    """Raises:
    UserError: texts have no end in this vocabulary.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    ends = sorted(i for i in tokenizer.eos_ids if i < vocab)
    if not ends:
        raise UserError("this model has no end-of-text token, without which no grammar can end", param="grammar")
    return LLTokenizer(TokenizerWrapper(_Words(tokenizer, vocab)), eos_token=ends)


def _one_line(why: str) -> str:
    lines = [line.strip() for line in why.replace("<non-verbose/>", "").splitlines() if line.strip()]
    return " ".join(lines)[:300] or "no reason was given"
