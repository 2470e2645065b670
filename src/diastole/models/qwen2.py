"""Qwen2 and Qwen2.5: the Llama block with biases on q, k and v.

Source: Yang et al., "Qwen2 Technical Report" (arXiv 2407.10671), section 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diastole.nn.decoder import Decoder
from diastole.nn.family import Shape, attention, block, decoder, plain_rope
from diastole.nn.linear import Loader


def build(load: Loader, config: Mapping[str, Any], context: int = 0) -> Decoder:
    """A model from its checkpoint; ``context`` > 0 shortens the model's own.

    The biases come with the linear layers; a window is used by the layers that the configuration says use one.
    """
    shape = Shape.read(config, context)
    rope = plain_rope(shape, config)
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    dense = int(config.get("max_window_layers", shape.layers))  # the first layers attend to everything
    attend = [
        attention(load, shape, f"model.layers.{i}.self_attn", rope, window if i >= dense else None)
        for i in range(shape.layers)
    ]
    return decoder(load, shape, [block(load, shape, i, a) for i, a in enumerate(attend)])
