"""Bounds of requests' fields as the OpenAPI document tells them.

What holds a request to them, in words that name the field, stands elsewhere; tests try both sides of each bound.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, get_args

from msgspec import Meta

from diastole.params import MAX_LOGIT_BIAS, MAX_STEPS, MAX_STOP_CHARS, MAX_STOPS, RANGES, Remasking

MAX_TOOLS = 128
MOST_PRIORITY = 1000
LONGEST_MS = 3_600_000.0
_OPEN = ("top_p", "repetition_penalty")  # whose lower bound is not allowed itself


def documented(**schema: Any) -> Meta:
    """Words of JSON schema for a type. They check nothing."""
    return Meta(extra_json_schema=schema)


def sampled(name: str) -> Meta:
    """The range of a field of ``SamplingParams``."""
    low, high = next((low, high) for field, low, high in RANGES if field == name)
    return documented(**{"exclusiveMinimum" if name in _OPEN else "minimum": low, "maximum": high})


Tokens: TypeAlias = Annotated[int, sampled("max_tokens")]
Temperature: TypeAlias = Annotated[float, sampled("temperature")]
TopP: TypeAlias = Annotated[float, sampled("top_p")]
TopK: TypeAlias = Annotated[int, documented(minimum=-1, maximum=2**31 - 1)]  # -1 means off to many clients
PlainTopK: TypeAlias = Annotated[int, sampled("top_k")]
MinP: TypeAlias = Annotated[float, sampled("min_p")]
RepetitionPenalty: TypeAlias = Annotated[float, sampled("repetition_penalty")]
Penalty: TypeAlias = Annotated[float, sampled("presence_penalty")]
Seed: TypeAlias = Annotated[int, sampled("seed")]
Choices: TypeAlias = Annotated[int, sampled("n")]
Steps: TypeAlias = Annotated[int, documented(minimum=1, maximum=MAX_STEPS)]
UnmaskingRule: TypeAlias = Annotated[str, documented(enum=get_args(Remasking))]
Logprobs: TypeAlias = Annotated[int, sampled("logprobs")]
Stop: TypeAlias = Annotated[str, documented(minLength=1, maxLength=MAX_STOP_CHARS)]
Stops: TypeAlias = Annotated[list[Stop], documented(maxItems=MAX_STOPS)]
Text: TypeAlias = Annotated[str, documented(minLength=1)]
TokenId: TypeAlias = Annotated[int, documented(minimum=0)]
Ids: TypeAlias = Annotated[list[TokenId], documented(minItems=1)]
StopIds: TypeAlias = Annotated[list[TokenId], documented(maxItems=MAX_LOGIT_BIAS)]
BiasNumber: TypeAlias = Annotated[float, documented(minimum=-100, maximum=100)]
_ONE_KIND = [{"items": {"type": kind}} for kind in ("string", "integer", "array")]
Prompts: TypeAlias = Annotated[list[Text | TokenId | Ids], documented(minItems=1, anyOf=_ONE_KIND)]
Bias: TypeAlias = Annotated[dict[str, BiasNumber], documented(maxProperties=MAX_LOGIT_BIAS)]
Milliseconds: TypeAlias = Annotated[float, documented(exclusiveMinimum=0, maximum=LONGEST_MS)]
Priority: TypeAlias = Annotated[int, documented(minimum=-MOST_PRIORITY, maximum=MOST_PRIORITY)]
Refused: TypeAlias = Annotated[int, documented(**{"not": {}})]
