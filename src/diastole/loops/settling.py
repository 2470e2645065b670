"""Settling: which token each place of a masked text would take, how sure that is, and which places are settled.

Source: LLaDA's sampling (Nie et al., "Large Language Diffusion Models", arXiv 2502.09992, section 2.4 and its public
code). There a token is the largest of logits with Gumbel noise of float64, raised to the temperature; here it is drawn
from the softmax at that temperature, which is the same distribution, with one number for each place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diastole.params import Remasking, SamplingParams
from diastole.types import Array, UserError

# Fields that a masked model does not follow, with the values that change nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "n": (1,),
    "logprobs": (None,),
    "grammar": (None,),
    "logit_bias": ({},),
    "allow_approximate_prefill": (False,),
}
LIKELIEST = 512  # tokens that are looked at first
USUAL = 128  # tokens of an answer whose length nobody says


def check_masked(prompt: int, params: SamplingParams, room: int) -> int:
    """The length of an answer to a prompt of so many tokens, where prompt and answer find room together.

    Raises:
        UserError: the request asks for what a masked model cannot do, or is too long.
    """
    for name, neutral in NEUTRAL.items():
        if getattr(params, name) not in neutral:
            message = f"{name} is nothing that a masked language model follows: leave it out"
            raise UserError(message, param=name, code="unsupported_parameter")
    length = min(USUAL, room - prompt) if params.max_tokens is None else params.max_tokens
    if prompt + length > room or length < 1:
        message = f"the prompt has {prompt} tokens and max_tokens is {length}, together more than the {room} there are"
        raise UserError(message, param="max_tokens", code="context_length_exceeded")
    if params.unmasking is not None:
        params.unmasking.blocks(length)
    return length


def uniforms(seed: int, step: int, places: Array) -> Array:
    """(k,) numbers in [0, 1), which depend on nothing but seed, step and place."""
    most = int(places[-1]) + 1 if len(places) else 0
    draws = np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), step]))
    found: Array = draws.random(most)[places]
    return found


def candidates(logits: Array, params: SamplingParams, rule: Remasking, u: Array) -> tuple[Array, Array]:
    """logits (k, V) float32, which are used up; u (k,), where the temperature or a random order needs it -> tokens (k,)
    int64, and how sure each is (k,) float64."""
    logits -= logits.max(1, keepdims=True)
    if params.temperature > 0:
        weights = np.exp(logits.astype(np.float64) / params.temperature)
        weights[weights < params.min_p] = 0  # the likeliest has 1
        if 0 < params.top_k < weights.shape[1]:
            weights[weights < np.partition(weights, -params.top_k, 1)[:, -params.top_k, None]] = 0
        if params.top_p < 1:
            weights[weights < _nucleus(weights, params.top_p)] = 0
        sums = weights.cumsum(1)
        tokens = (sums <= (u * sums[:, -1])[:, None]).sum(1).clip(max=logits.shape[1] - 1)
    else:
        tokens = logits.argmax(1)
    if rule == "random":
        return tokens, u
    chances = np.exp(logits)
    total = chances.sum(1)
    if rule == "low_confidence":
        return tokens, chances[np.arange(len(tokens)), tokens].astype(np.float64) / total
    # sum p log p, of p = chances / total and log p = logits - log total
    return tokens, (chances * np.maximum(logits, -1e4)).sum(1).astype(np.float64) / total - np.log(total)


def _nucleus(weights: Array, share: float) -> Array:
    """(k, 1) the least weight of those that are likeliest and together have this share of each row."""
    n = min(LIKELIEST, weights.shape[1])
    top = -np.sort(-np.partition(weights, -n, 1)[:, -n:], 1)
    enough = share * weights.sum(1)
    if n < weights.shape[1] and (top.sum(1) < enough).any():
        top = -np.sort(-weights, 1)
    before = top.cumsum(1) - top
    count = (before < enough[:, None]).sum(1)
    found: Array = top[np.arange(len(top)), count - 1][:, None]
    return found


def surest(sure: Array, n: int) -> Array:
    """(n,) indices of the surest, in order of places; of equals the first."""
    found: Array = np.sort(np.argsort(-sure, kind="stable")[:n])
    return found
