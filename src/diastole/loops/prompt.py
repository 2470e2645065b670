"""What a prompt must be for a language model to take it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diastole.loops import pooling
from diastole.params import PoolParams, SamplingParams
from diastole.types import UserError


def check_prompt(
    prompt: Sequence[int], params: SamplingParams | PoolParams, vocab: int, context: int, room: int
) -> None:
    """Whether a request can be served at all. ``room``: tokens that the pool holds.

    Raises:
        UserError: it cannot; ``param`` names the field.
    """
    if not isinstance(params, SamplingParams | PoolParams):
        raise UserError("params of a language model request must be SamplingParams or PoolParams", param="params")
    if len(prompt) == 0:
        raise UserError("the prompt is empty: give at least one token", param="prompt", code="empty_prompt")
    most = min(context, room)
    if isinstance(params, PoolParams):  # before the ids are looked at, of which there may be a million
        pooling.check_length(len(prompt), most)
    else:
        _check_length(len(prompt), params, most)
    ids = np.asarray(prompt)
    if ids.dtype.kind != "i" or ids.ndim != 1:
        raise UserError("the prompt must be a list of integer token ids", param="prompt", code="invalid_type")
    if ids.min() < 0 or ids.max() >= vocab:
        wrong = int(ids.min() if ids.min() < 0 else ids.max())
        raise UserError(
            f"token id {wrong} is outside the vocabulary: ids run from 0 to {vocab - 1}",
            param="prompt",
            code="invalid_token_id",
        )
    if isinstance(params, PoolParams):
        return
    if params.unmasking is not None:
        message = "this model writes one token after the other: steps, block_length and remasking mean nothing to it"
        raise UserError(message, param="steps", code="unsupported_parameter")
    told = () if isinstance(params.prediction, str) else params.prediction  # its text is read on its way to the engine
    for name, tokens in (
        ("logit_bias", params.logit_bias),
        ("stop_token_ids", params.stop_token_ids),
        ("prediction", told),
    ):
        for token in tokens:
            if token >= vocab:
                message = f"{name}: token id {token} is outside the vocabulary of {vocab}"
                raise UserError(message, param=name, code="invalid_token_id")


def _check_length(prompt: int, params: SamplingParams, room: int) -> None:
    if prompt >= room:
        raise UserError(
            f"the prompt has {prompt} tokens; with a context of {room}, at most {room - 1} leave room for an answer",
            param="prompt",
            code="context_length_exceeded",
        )
    if params.max_tokens is not None and prompt + params.max_tokens > room:
        raise UserError(
            f"the prompt has {prompt} tokens and max_tokens is {params.max_tokens}, together more than the context of "
            f"{room}; ask for at most {room - prompt} tokens",
            param="max_tokens",
            code="context_length_exceeded",
        )
