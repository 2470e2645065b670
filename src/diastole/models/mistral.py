"""Mistral: the Llama block, with a sliding attention window where the checkpoint names one.

Source: Jiang et al., "Mistral 7B" (arXiv 2310.06825).
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
    window = config.get("sliding_window")
    attend = [attention(load, shape, f"model.layers.{i}.self_attn", rope, window) for i in range(shape.layers)]
    return decoder(load, shape, [block(load, shape, i, a) for i, a in enumerate(attend)])
