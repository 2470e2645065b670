"""Detokenizer: ids to text one at a time, never half a character."""

from __future__ import annotations

import codecs

from diastole.text.tokenizer import Tokenizer


class Detokenizer:
    """The pieces that ``push`` and ``flush`` give, put together, are ``tokenizer.decode`` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = tokenizer.strips_space

    def push(self, id: int) -> str:
        """Text that is certain now. Bytes that may be the beginning of a character wait for the next id."""
        if id in self._tokenizer.special_ids:
            return ""
        return self._begin(self._decoder.decode(self._tokenizer.token_bytes(id)))

    def flush(self) -> str:
        """What is left at the end: an unfinished character becomes U+FFFD."""
        return self._begin(self._decoder.decode(b"", final=True))

    def _begin(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ")
        return text
