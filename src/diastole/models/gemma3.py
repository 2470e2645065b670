"""Gemma 3 (text): windowed layers with a local rotary base between global ones, norms on both sides of each part.

Source: Gemma Team, "Gemma 3 Technical Report" (arXiv 2503.19786), section 2. A norm's weight w acts as 1 + w.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diastole.nn.attention import Attention
from diastole.nn.decoder import Block, Decoder
from diastole.nn.family import Shape, attention, decoder, mlp, rope_base, rope_scaling
from diastole.nn.linear import Loader
from diastole.nn.norm import RMSNorm
from diastole.nn.rope import rope_table
from diastole.types import Array

LOCAL_BASE = 10_000.0
PATTERN = 6  # every sixth layer is global, where the configuration does not say


def build(load: Loader, config: Mapping[str, Any], context: int = 0) -> Decoder:
    """A model from its checkpoint; ``context`` > 0 shortens the model's own."""
    shape = Shape.read(config, context)
    window = config.get("sliding_window")
    ropes = _ropes(shape, config)
    scale = float(config.get("query_pre_attn_scalar") or shape.head_dim) ** -0.5
    blocks = []
    for i, kind in enumerate(_kinds(config, shape.layers)):
        at = f"model.layers.{i}"
        local = kind == "sliding_attention"
        attend = attention(load, shape, f"{at}.self_attn", ropes[kind], window if local else None)
        attend = replace(
            attend,
            scale=scale,
            q_norm=_norm(load, shape, f"{at}.self_attn.q_norm"),
            k_norm=_norm(load, shape, f"{at}.self_attn.k_norm"),
        )
        blocks.append(_block(load, shape, i, attend))
    return decoder(load, shape, blocks, _norm(load, shape, "model.norm"), shape.hidden**0.5)


def _norm(load: Loader, shape: Shape, name: str) -> RMSNorm:
    return RMSNorm(load.ops, 1 + load.vector(f"{name}.weight"), shape.eps)


def _block(load: Loader, shape: Shape, i: int, attend: Attention) -> Block:
    names = ("input_layernorm", "pre_feedforward_layernorm", "post_attention_layernorm", "post_feedforward_layernorm")
    before, before_mlp, after, after_mlp = (_norm(load, shape, f"model.layers.{i}.{n}") for n in names)
    return Block(before, attend, before_mlp, mlp(load, shape, i), after, after_mlp)


def _kinds(config: Mapping[str, Any], layers: int) -> list[str]:
    given = config.get("layer_types")
    if given:
        return list(given)
    every = int(config.get("sliding_window_pattern") or PATTERN)
    return ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)]


def _ropes(shape: Shape, config: Mapping[str, Any]) -> dict[str, Array]:
    per_kind = config.get("rope_parameters")
    if isinstance(per_kind, Mapping) and "full_attention" in per_kind:
        return {
            kind: rope_table(shape.context, shape.head_dim, float(p["rope_theta"]), p) for kind, p in per_kind.items()
        }
    local = float(config.get("rope_local_base_freq") or LOCAL_BASE)
    return {
        "sliding_attention": rope_table(shape.context, shape.head_dim, local),
        "full_attention": rope_table(shape.context, shape.head_dim, rope_base(config), rope_scaling(config)),
    }
