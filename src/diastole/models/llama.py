"""Llama: the plain pre-norm decoder with rotary positions, grouped-query attention and SwiGLU.

Serves SmolLM and SmolLM2 too. Source: Touvron et al., "LLaMA" (arXiv 2302.13971) and "Llama 2" (arXiv 2307.09288).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diastole.nn.decoder import Decoder
from diastole.nn.family import Shape, attention, block, decoder, plain_rope
from diastole.nn.linear import Loader


def build(load: Loader, config: Mapping[str, Any], context: int = 0) -> Decoder:
    """A model from its checkpoint; ``context`` > 0 shortens the model's own."""
    shape = Shape.read(config, context)
    rope = plain_rope(shape, config)
    layers = range(shape.layers)
    return decoder(
        load,
        shape,
        [block(load, shape, i, attention(load, shape, f"model.layers.{i}.self_attn", rope)) for i in layers],
    )
