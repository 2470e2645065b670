"""What a user may ask of a language model, checked where it enters: ``SamplingParams`` where it speaks, ``PoolParams``
where it only reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from diastole.types import UserError

MAX_STOPS = 16
MAX_STOP_CHARS = 1_000
MAX_CHOICES = 64
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 1_024
MAX_STEPS = 1 << 20
MAX_PICTURE_STEPS = 1_000
MAX_GRAMMAR = 256 * 1024  # characters

GrammarKind = Literal["json_schema", "regex", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a text must match from its first character to its last.

    ``text`` is a JSON schema, a regular expression (Rust's syntax, no look-around) or a grammar in llguidance's Lark.

    Raises:
        UserError: the kind is unknown, or the text is empty or too long.
    """

    kind: GrammarKind
    text: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(GrammarKind):
            known = ", ".join(get_args(GrammarKind))
            raise UserError(f"grammar.kind must be one of {known}, not {self.kind!r:.40}", param="grammar")
        if not 1 <= len(self.text) <= MAX_GRAMMAR:
            message = f"a grammar must have 1 to {MAX_GRAMMAR} characters, not {len(self.text)}"
            raise UserError(message, param="grammar", code="invalid_grammar")


Remasking = Literal["low_confidence", "entropy", "random"]


@dataclass(frozen=True, slots=True)
class Unmasking:
    """How a masked language model settles the places of a text: in so many steps, block by block.

    ``remasking``: which places a step settles: those whose likeliest token is likeliest, those whose distribution is
    narrowest, or some at random. ``min_steps``: how few steps will do where the time that the request promises
    (``slo.total``) would not last for all.

    Raises:
        UserError: a value is out of range; ``param`` names the field.
    """

    steps: int | None = None  # None: one for each token
    block_length: int | None = None  # tokens; None: all of the answer is one block
    remasking: Remasking = "low_confidence"
    min_steps: int | None = None  # None: never fewer than ``steps``

    def __post_init__(self) -> None:
        for name in ("steps", "block_length", "min_steps"):
            if getattr(self, name) is not None:
                _in_range(name, getattr(self, name), 1, MAX_STEPS)
        if self.remasking not in get_args(Remasking):
            known = ", ".join(get_args(Remasking))
            message = f"remasking must be one of {known}, not {self.remasking!r:.40}"
            raise UserError(message, param="remasking", code="invalid_value")

    def blocks(self, length: int) -> tuple[int, int]:
        """Blocks of an answer of so many tokens, and steps of each.

        Raises:
            UserError: it is no whole number of blocks, or the steps do not go into them.
        """
        size, steps = self.block_length or length, self.steps or length
        if length % size:
            message = f"max_tokens ({length}) must be a multiple of block_length ({size})"
            raise UserError(message, param="block_length", code="invalid_value")
        if steps % (length // size) or steps > length:
            message = f"steps ({steps}) must be a multiple of the {length // size} blocks, and at most {length}"
            raise UserError(message, param="steps", code="invalid_value")
        if self.min_steps is not None and not length // size <= self.min_steps <= steps:
            message = f"min_steps must be between the {length // size} blocks and steps ({steps})"
            raise UserError(message, param="min_steps", code="invalid_value")
        return length // size, steps // (length // size)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to stop.

    Temperature 0 is greedy. With a ``seed`` the text depends on nothing but the request itself; without one a fresh
    seed is drawn where the request enters.

    Raises:
        UserError: a value is out of range; ``param`` names the field.
    """

    max_tokens: int | None = None  # None: up to the model's context
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # divides positive, multiplies negative logits of tokens in prompt or output
    presence_penalty: float = 0.0  # subtracted once per token in the output
    frequency_penalty: float = 0.0  # subtracted per occurrence in the output
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    n: int = 1
    repetition_stop: bool | None = None  # end a text that has become a loop; None: as the service is set
    logprobs: int | None = None  # None: none; k: the chosen token's and the k likeliest
    grammar: Grammar | None = None
    prediction: str | tuple[int, ...] = ""  # what the answer may repeat, for drafters that look there; text or its ids
    unmasking: Unmasking | None = None  # for masked language models alone
    allow_approximate_prefill: bool = False  # the prompt may be read in a cheaper, inexact way, where there is one

    def __post_init__(self) -> None:
        for name, low, high in RANGES:
            _in_range(name, getattr(self, name), low, high)
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.top_p == 0:
            raise UserError("top_p must be above 0 and at most 1", param="top_p", code="invalid_value")
        if self.repetition_penalty == 0:
            raise UserError("repetition_penalty must be above 0", param="repetition_penalty", code="invalid_value")
        _prediction(self.prediction)
        if not isinstance(self.allow_approximate_prefill, bool):
            message = f"allow_approximate_prefill must be true or false, not {self.allow_approximate_prefill!r:.60}"
            raise UserError(message, param="allow_approximate_prefill", code="invalid_type")
        _stops(self.stop)
        _token_ids(self.stop_token_ids)
        _bias(self.logit_bias)
        if self.grammar is not None and self.ignore_eos:
            message = "ignore_eos cannot be combined with a grammar, which says where the text ends"
            raise UserError(message, param="ignore_eos", code="invalid_value")


Pooling = Literal["mean", "last"]


@dataclass(frozen=True, slots=True)
class PoolParams:
    """A prompt is read and becomes one vector of length 1, made of the model's final hidden states: their mean over the
    prompt's tokens, or the one at its last token.

    Raises:
        UserError: there is no such kind.
    """

    kind: Pooling = "mean"
    grammar: ClassVar[None] = None  # nothing is written

    def __post_init__(self) -> None:
        if self.kind not in get_args(Pooling):
            message = f"kind must be one of {', '.join(get_args(Pooling))}, not {self.kind!r:.60}"
            raise UserError(message, param="kind", code="invalid_value")


@dataclass(frozen=True, slots=True)
class PictureParams:
    """How a picture is made out of noise.

    Raises:
        UserError: a value is out of range; ``param`` names the field.
    """

    steps: int = 50
    label: int | None = None  # None: nothing is said of what it shall show
    guidance: float = 2.0  # how much more it shall show that than if nothing were said; 1: no more
    seed: int = 0
    previews: int = 0  # a preview is told every so many steps; 0: none
    min_steps: int | None = None  # how few will do where the promised time (``slo.total``) would not last; None: all

    grammar: ClassVar[None] = None  # nothing is written

    def __post_init__(self) -> None:
        for name, low, high in (("steps", 1, MAX_PICTURE_STEPS), ("guidance", 0, 100), ("seed", -(2**63), 2**63 - 1)):
            _in_range(name, getattr(self, name), low, high)
        _in_range("previews", self.previews, 0, MAX_PICTURE_STEPS)
        if self.min_steps is not None:
            _in_range("min_steps", self.min_steps, 1, self.steps)
        if self.label is not None:
            _in_range("label", self.label, 0, 2**31)


# Python's JSON integers have no limit of their own, so every integer field needs one.
RANGES: tuple[tuple[str, float, float], ...] = (
    ("max_tokens", 1, 2**31 - 1),
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("top_k", 0, 2**31 - 1),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 0.0, 100.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("seed", -(2**63), 2**63 - 1),
    ("n", 1, MAX_CHOICES),
    ("logprobs", 0, MAX_TOP_LOGPROBS),
)
_INTEGERS = frozenset(
    {"max_tokens", "top_k", "seed", "n", "logprobs", "steps", "block_length", "min_steps", "previews", "label"}
)


def _in_range(name: str, value: object, low: float, high: float) -> None:
    if value is None and name in {"max_tokens", "seed", "logprobs"}:
        return
    whole = name in _INTEGERS
    kind = "an integer" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise UserError(f"{name} must be {kind}, not {value!r:.60}", param=name, code="invalid_type")
    if not (math.isfinite(value) and low <= value <= high):
        raise UserError(
            f"{name} must be between {low:g} and {high:g}, not {value!r:.60}", param=name, code="invalid_value"
        )


def _stops(stops: tuple[str, ...]) -> None:
    if isinstance(stops, str) or not all(isinstance(s, str) for s in stops):
        raise UserError("stop must be a list of strings", param="stop", code="invalid_type")
    if len(stops) > MAX_STOPS:
        raise UserError(
            f"stop may hold at most {MAX_STOPS} strings, not {len(stops)}", param="stop", code="invalid_value"
        )
    for s in stops:
        if not 1 <= len(s) <= MAX_STOP_CHARS:
            raise UserError(
                f"each stop string must have 1 to {MAX_STOP_CHARS} characters, not {len(s)}",
                param="stop",
                code="invalid_value",
            )


def _token_ids(ids: tuple[int, ...]) -> None:
    if len(ids) > MAX_LOGIT_BIAS or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
        raise UserError(
            f"stop_token_ids must be at most {MAX_LOGIT_BIAS} non-negative integers",
            param="stop_token_ids",
            code="invalid_value",
        )


def _prediction(text: str | tuple[int, ...]) -> None:
    ids = () if isinstance(text, str) else text
    if not isinstance(ids, tuple) or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
        message = f"prediction must be a text, or a tuple of its token ids, not {text!r:.60}"
        raise UserError(message, param="prediction", code="invalid_type")


def _bias(bias: Mapping[int, float]) -> None:
    if len(bias) > MAX_LOGIT_BIAS:
        raise UserError(
            f"logit_bias may name at most {MAX_LOGIT_BIAS} tokens, not {len(bias)}",
            param="logit_bias",
            code="invalid_value",
        )
    for token, value in bias.items():
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise UserError(f"logit_bias: {token!r:.40} is no token id", param="logit_bias", code="invalid_value")
        if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
            raise UserError(
                f"logit_bias: the bias of token {token} must be between -100 and 100, not {value!r:.40}",
                param="logit_bias",
                code="invalid_value",
            )
