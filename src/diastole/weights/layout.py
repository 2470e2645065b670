"""The shapes that a decoder's tensors must have for its configuration to be true.

A file whose tensors and configuration disagree would otherwise fail much later, in the middle of a product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diastole.weights.error import WeightsError

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text"})  # those whose tensors are known here

_WHOLE = {
    "model.embed_tokens.weight": ("vocab_size", "hidden_size"),
    "lm_head.weight": ("vocab_size", "hidden_size"),
    "model.norm.weight": ("hidden_size",),
}
_LAYER = {
    "input_layernorm.weight": ("hidden_size",),
    "post_attention_layernorm.weight": ("hidden_size",),
    "pre_feedforward_layernorm.weight": ("hidden_size",),
    "post_feedforward_layernorm.weight": ("hidden_size",),
    "self_attn.q_proj.weight": ("queries", "hidden_size"),
    "self_attn.k_proj.weight": ("keys", "hidden_size"),
    "self_attn.v_proj.weight": ("keys", "hidden_size"),
    "self_attn.o_proj.weight": ("hidden_size", "queries"),
    "self_attn.q_proj.bias": ("queries",),
    "self_attn.k_proj.bias": ("keys",),
    "self_attn.v_proj.bias": ("keys",),
    "self_attn.o_proj.bias": ("hidden_size",),
    "self_attn.q_norm.weight": ("head_dim",),
    "self_attn.k_norm.weight": ("head_dim",),
    "mlp.gate_proj.weight": ("intermediate_size", "hidden_size"),
    "mlp.up_proj.weight": ("intermediate_size", "hidden_size"),
    "mlp.down_proj.weight": ("hidden_size", "intermediate_size"),
}


def check_shapes(path: Path, config: Mapping[str, Any], tensors: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """Compare the shapes of the tensors that are known by name with the configuration; others are let pass.

    Args:
        path: the checkpoint, for messages.
        config: keys of Hugging Face's config.json; a number that it lacks is not checked.
        tensors: name and shape (rows first) of each.

    Raises:
        WeightsError: one does not fit; the message names it, its shape and the right one.
    """
    if config.get("model_type") not in MODEL_TYPES:
        return
    sizes = _sizes(config)
    for name, shape in tensors:
        wanted = _wanted(name)
        if wanted is None or any(sizes.get(w) is None for w in wanted):
            continue
        right = tuple(sizes[w] for w in wanted)
        if shape != right:
            raise WeightsError(path, f"tensor {name!r} has shape {shape}, its configuration asks for {right}")


def _wanted(name: str) -> tuple[str, ...] | None:
    if name in _WHOLE:
        return _WHOLE[name]
    parts = name.split(".", 3)
    return _LAYER.get(parts[3]) if len(parts) == 4 and parts[:2] == ["model", "layers"] else None


def _sizes(config: Mapping[str, Any]) -> dict[str, int | None]:
    def number(key: str) -> int | None:
        value = config.get(key)
        return value if type(value) is int and value > 0 else None

    heads, hidden = number("num_attention_heads"), number("hidden_size")
    keys = number("num_key_value_heads") or heads
    dim = number("head_dim") or (hidden // heads if hidden and heads else None)
    return {
        "vocab_size": number("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": number("intermediate_size"),
        "head_dim": dim,
        "queries": heads * dim if heads and dim else None,
        "keys": keys * dim if keys and dim else None,
    }
