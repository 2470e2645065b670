"""Requests of the OpenAI API: their fields, and what of them goes into ``SamplingParams``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from diastole.params import MAX_LOGIT_BIAS, SamplingParams, Unmasking
from diastole.serve import bounds
from diastole.serve.bounds import documented
from diastole.serve.errors import ApiError, of_user_error
from diastole.serve.limits import decode, decode_field
from diastole.types import UserError

MAX_SALT = 256  # characters
ROLES = ("system", "developer", "user", "assistant", "tool")
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, for plain completions


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SloWish(msgspec.Struct):
    """Promises asked for, in milliseconds."""

    ttft_ms: bounds.Milliseconds | None = None
    tpot_ms: bounds.Milliseconds | None = None
    total_ms: bounds.Milliseconds | None = None


class Common(msgspec.Struct, kw_only=True):
    """What chat and plain completions share. None everywhere means the default."""

    model: str
    max_tokens: bounds.Tokens | None = None
    temperature: bounds.Temperature | None = None
    top_p: bounds.TopP | None = None
    top_k: bounds.TopK | None = None
    min_p: bounds.MinP | None = None
    repetition_penalty: bounds.RepetitionPenalty | None = None
    presence_penalty: bounds.Penalty | None = None
    frequency_penalty: bounds.Penalty | None = None
    logit_bias: bounds.Bias | None = None
    seed: bounds.Seed | None = None
    stop: bounds.Stop | bounds.Stops | None = None
    stop_token_ids: bounds.StopIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    n: bounds.Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    slo: SloWish | None = None
    cache_salt: Annotated[str, documented(minLength=1, maxLength=MAX_SALT)] | None = None
    # What the text must match: see structured.py.
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: Any = None
    grammar: str | None = None
    repetition_detection: bool | None = None
    allow_approximate_prefill: bool | None = None
    # Of masked language models.
    steps: bounds.Steps | None = None
    block_length: bounds.Steps | None = None
    remasking: bounds.UnmaskingRule | None = None
    min_steps: bounds.Steps | None = None
    priority: bounds.Priority | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class Part(msgspec.Struct):
    """A piece of a message's content."""

    type: str
    text: str | None = None


class CalledFunction(msgspec.Struct):
    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    """A call that the assistant made earlier."""

    id: str
    function: CalledFunction
    type: str = "function"


class Message(msgspec.Struct):
    role: Annotated[str, documented(enum=ROLES)]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: Any = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """A function that may be called. ``type`` is looked at first: tools of other types have other fields."""

    type: str
    function: Function | None = None


class NamedFunction(msgspec.Struct):
    name: str


class ToolChoice(msgspec.Struct):
    type: str
    function: NamedFunction | None = None


class Prediction(msgspec.Struct):
    """What much of the answer is expected to be."""

    type: Annotated[str, documented(enum=["content"])]
    content: str | Annotated[list[Part], documented(minItems=1)]


class ChatRequest(Common, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], documented(minItems=1)]
    max_completion_tokens: bounds.Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: bounds.Logprobs | None = None
    tools: Annotated[list[Tool], documented(maxItems=bounds.MAX_TOOLS)] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    prediction: Prediction | None = None


class CompletionRequest(Common, kw_only=True):
    """POST /v1/completions."""

    prompt: bounds.Text | bounds.Prompts
    echo: bool | None = None
    logprobs: bounds.Logprobs | None = None


# Fields that would change the answer and are not served, with the values that change nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "best_of": (1,),
    "suffix": ("",),
    "use": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "prompt_logprobs": (),
    "prompt_embeds": (),
    "truncate_prompt_tokens": (),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "documents": ([],),
    "repeat_penalty": (1,),
    "typical_p": (1,),
    "mirostat": (0,),
}
CHAT_UNSERVED = {**NEUTRAL, "echo": (False,)}
# Each of these runs code that the server's owner did not choose.
TEMPLATES = {"chat_template": ("",), "chat_template_kwargs": ({},)}
_REASONS = {
    "conversation": "Nothing is stored: send the whole conversation as input.",
    "max_completion_tokens": "Its name here is max_output_tokens.",
    "max_tokens": "Its name here is max_output_tokens.",
    "messages": "Their place here is input.",
    "previous_response_id": "Nothing is stored: send the whole conversation as input.",
    "store": "Nothing is stored: leave it out or say false.",
    "truncation": "Nothing is cut: leave it out, and send what fits.",
}

R = TypeVar("R", bound=Common)
S = TypeVar("S", bound=msgspec.Struct)


def read(body: bytes, type: type[R], unserved: Mapping[str, tuple[Any, ...]] = NEUTRAL) -> R:
    """A request from its body.

    Args:
        unserved: fields that are refused, with the values that are not.

    Raises:
        ApiError: it is no JSON, a field has the wrong type, or one is not served.
    """
    request = read_plain(body, type, unserved)
    options = request.stream_options
    if options is not None and not request.stream:
        raise wrong("stream_options", "stream_options may be given only with stream: true.")
    if options is not None and options.continuous_usage_stats:
        field = "stream_options.continuous_usage_stats"
        raise unsupported(field, "Usage is sent once, at the end, with stream_options.include_usage.")
    if request.cache_salt is not None and not 1 <= len(request.cache_salt) <= MAX_SALT:
        raise wrong("cache_salt", f"cache_salt must have 1 to {MAX_SALT} characters.")
    return request


def read_plain(body: bytes, type: type[S], unserved: Mapping[str, tuple[Any, ...]]) -> S:
    """``read`` for requests that share no fields with completions."""
    refuse_unsupported(decode(body, dict[str, msgspec.Raw]), unserved)
    return decode(body, type, checked=True)


def refuse_unsupported(fields: Mapping[str, msgspec.Raw], unserved: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse fields that would be ignored in silence otherwise.

    Raises:
        ApiError: 400 unsupported_parameter, or 403 template_not_allowed.
    """
    for name, raw in fields.items():
        neutral = unserved.get(name, TEMPLATES.get(name))
        if neutral is None:
            continue
        value = decode_field(raw, name)
        if value is None or value in neutral:
            continue
        if name in TEMPLATES:
            message = f"{name}: a request may not bring its own template; the model's is used."
            raise ApiError(403, message, param=name, code="template_not_allowed")
        raise unsupported(name, "Leave it out.")


def sampling(request: Common, max_tokens: int | None, logprobs: int | None, names: Mapping[str, str]) -> SamplingParams:
    """The sampling part of a request, checked.

    Args:
        names: what this request calls a field of ``SamplingParams`` that it names otherwise.

    Raises:
        ApiError: a value is out of range.
    """
    stop = request.stop
    given: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": None if request.top_k == -1 else request.top_k,  # -1 means off to many clients
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "seed": request.seed,
        "n": request.n,
        "stop": None if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
        "stop_token_ids": None if request.stop_token_ids is None else tuple(request.stop_token_ids),
        "include_stop": request.include_stop_str_in_output,
        "ignore_eos": request.ignore_eos,
        "repetition_stop": request.repetition_detection,
        "allow_approximate_prefill": request.allow_approximate_prefill,
        "logit_bias": None if request.logit_bias is None else _bias(request.logit_bias),
        "max_tokens": max_tokens,
        "logprobs": logprobs,
    }
    return checked_params({**given, "unmasking": _unmasking(request, names)}, names)


def _unmasking(request: Common, names: Mapping[str, str]) -> Unmasking | None:
    """None: nothing is said of it."""
    given = {n: getattr(request, n) for n in ("steps", "block_length", "remasking", "min_steps")}
    said = {name: value for name, value in given.items() if value is not None}
    try:
        return Unmasking(**said) if said else None
    except UserError as e:
        raise of_user_error(e, names) from None


def checked_params(given: Mapping[str, Any], names: Mapping[str, str]) -> SamplingParams:
    """Sampling from fields, where None means the default.

    Raises:
        ApiError: a value is out of range.
    """
    for name, value in given.items():
        if isinstance(value, int) and abs(value) >= 2**64:  # JSON's integers have no limit of their own
            raise wrong(names.get(name, name), f"{names.get(name, name)} is out of range.")
    try:
        return SamplingParams(**{k: v for k, v in given.items() if v is not None})
    except UserError as e:
        raise of_user_error(e, names) from None


def _bias(given: Mapping[str, float]) -> dict[int, float]:
    if len(given) > MAX_LOGIT_BIAS:
        raise wrong("logit_bias", f"logit_bias may name at most {MAX_LOGIT_BIAS} tokens, not {len(given)}.")
    bias: dict[int, float] = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise wrong("logit_bias", f"logit_bias: {key[:40]!r} is no token id; keys are numbers in quotes.")
        if int(key) in bias:
            raise wrong("logit_bias", f"logit_bias names token {int(key)} twice.")
        bias[int(key)] = value
    return bias


def wrong(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """400, a field's value is wrong."""
    return ApiError(400, message, param=param, code=code)


def required(param: str) -> ApiError:
    """400, a field is missing."""
    return ApiError(400, f"{param} is required.", param=param, code="missing_required_parameter")


def unsupported(param: str, advice: str) -> ApiError:
    """400, a field is not served."""
    return ApiError(400, f"{param} is not supported here. {advice}", param=param, code="unsupported_parameter")
