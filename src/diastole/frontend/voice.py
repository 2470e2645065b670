"""Voice: the text side of a model, its tokenizer and chat template."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diastole.assets.models import tokenizer_of
from diastole.chat import ChatTemplate
from diastole.chat.guard import Guard
from diastole.chat.tools import telling_of
from diastole.params import SamplingParams
from diastole.text import Tokenizer
from diastole.types import UserError


class Voice:
    """The text side of a model: its tokenizer and chat template. Needs no engine."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self.tokenizer, self.template = tokenizer, template
        self._guard = Guard(tokenizer)
        self.telling = telling_of(None if template is None else template.source)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any],
    ) -> list[int]:
        """A conversation as prompt ids, by the model's own template. Arguments of tool calls are objects in it.

        Only what the template writes becomes special tokens; their names in what is given here are plain text.

        Raises:
            UserError: the model has no template, or its template refuses the messages.
        """
        if self.template is None:
            raise UserError(
                "this model has no chat template: use plain completions", param="messages", code="template_missing"
            )
        prepared, told = self.telling.prepare(self._guard.broken(messages), self._guard.broken(tools))
        text = self.template.render(prepared, tools=told, now=time.time(), **self._guard.broken(options))
        return self._guard.encode(text)

    def prompt(self, text: str) -> list[int]:
        """A plain prompt as ids."""
        return self.tokenizer.encode(text, special=False)

    def told(self, params: SamplingParams, context: int) -> SamplingParams:
        """With ids in the place of a text that the answer may repeat, no more than fit into the context."""
        text = params.prediction
        if not isinstance(text, str) or not text:
            return params
        return replace(params, prediction=tuple(self.prompt(text)[:context]))

    def warm(self) -> None:
        """Start the template's worker process before it is needed."""
        if self.template is not None:
            self.template.warm()

    def close(self) -> None:
        """End the template's worker process."""
        if self.template is not None:
            self.template.close()


def voice_of(path: Path) -> Voice:
    """The text side of a model."""
    tokenizer = tokenizer_of(path)
    return Voice(tokenizer, ChatTemplate.of(tokenizer))
