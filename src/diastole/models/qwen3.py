"""Qwen3 (dense): the Llama block with normalised queries and keys.

Source: Yang et al., "Qwen3 Technical Report" (arXiv 2505.09388), section 2.
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
    attend = [attention(load, shape, f"model.layers.{i}.self_attn", rope, qk_norm=True) for i in range(shape.layers)]
    return decoder(load, shape, [block(load, shape, i, a) for i, a in enumerate(attend)])
