"""LLaDA: a masked diffusion language model: the Llama block without its causal mask, over a text with holes.

Source: Nie et al., "Large Language Diffusion Models" (arXiv 2502.09992), section 2 and its public code, whose names of
tensors and settings are read. Our own masked models are written by the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diastole.nn.attention import Attention
from diastole.nn.decoder import Block, Decoder
from diastole.nn.family import Shape, plain_rope
from diastole.nn.linear import Loader
from diastole.nn.masking import MaskedModel, masked_model
from diastole.nn.mlp import GatedMLP
from diastole.nn.norm import RMSNorm
from diastole.types import UserError

NAMES = {  # of settings here, by Hugging Face's usual ones
    "hidden_size": "d_model",
    "intermediate_size": "mlp_hidden_size",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "max_position_embeddings": "max_sequence_length",
    "hidden_act": "activation_type",
}


def masked(load: Loader, config: Mapping[str, Any], context: int = 0) -> MaskedModel:
    """A model from its checkpoint; ``context`` > 0 shortens the model's own.

    Raises:
        UserError: the settings are of a variant that is not known.
    """
    for name, usual in (("block_type", "llama"), ("scale_logits", False), ("layer_norm_type", "rms"), ("alibi", False)):
        if config.get(name, usual) != usual:
            raise UserError(f"{name} must be {usual!r}, not {config[name]!r:.40}", param=name)
    settings = {**config, **{ours: config[theirs] for ours, theirs in NAMES.items() if theirs in config}}
    settings["vocab_size"] = config.get("embedding_size") or config.get("vocab_size")
    shape = Shape.read(settings, context)
    rope, top = plain_rope(shape, settings), "model.transformer"

    def norm(name: str) -> RMSNorm:
        return RMSNorm(load.ops, load.vector(f"{top}.{name}.weight"), shape.eps)

    def block(layer: int) -> Block:
        at = f"blocks.{layer}"
        qkv = load.linear(*(f"{top}.{at}.{n}_proj" for n in "qkv"))
        size, scale = shape.head_dim, shape.head_dim**-0.5
        out = load.linear(f"{top}.{at}.attn_out")
        attn = Attention(load.ops, qkv, out, shape.heads, shape.kv_heads, size, scale, rope)
        up, down = load.linear(f"{top}.{at}.ff_proj", f"{top}.{at}.up_proj"), load.linear(f"{top}.{at}.ff_out")
        return Block(norm(f"{at}.attn_norm"), attn, norm(f"{at}.ff_norm"), GatedMLP(load.ops, up, down, shape.act))

    blocks = [block(i) for i in range(shape.layers)]
    embed = load.linear(f"{top}.wte")
    head = load.linear(f"{top}.ff_out") if load.has(f"{top}.ff_out.weight") else embed
    return masked_model(Decoder(load.ops, embed, blocks, norm("ln_f"), head, shape.context), config)
