"""Dream: a masked diffusion language model made of Qwen2.5, whose row before a place tells what stands there.

Source: Ye et al., "Dream 7B: Diffusion Large Language Models" (arXiv 2508.15487), section 3, and its public code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diastole.nn.family import Shape, attention, block, decoder, plain_rope
from diastole.nn.linear import Loader
from diastole.nn.masking import MaskedModel, masked_model


def masked(load: Loader, config: Mapping[str, Any], context: int = 0) -> MaskedModel:
    """A model from its checkpoint, by Qwen2's names; ``context`` > 0 shortens the model's own."""
    shape = Shape.read(config, context)
    rope = plain_rope(shape, config)
    attend = [attention(load, shape, f"model.layers.{i}.self_attn", rope) for i in range(shape.layers)]
    model = decoder(load, shape, [block(load, shape, i, a) for i, a in enumerate(attend)])
    return masked_model(model, config, shift=1)
