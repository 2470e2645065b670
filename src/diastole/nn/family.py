"""What decoder families share when they are built from a checkpoint: the numbers of config.json and the usual block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diastole.nn.attention import Attention
from diastole.nn.decoder import Block, Decoder
from diastole.nn.linear import Linear, Loader
from diastole.nn.mlp import GatedMLP
from diastole.nn.norm import RMSNorm
from diastole.nn.rope import rope_table
from diastole.types import Array, UserError

LARGEST_ROPE = 2**27  # numbers in a rotary table, which a file's own claim of its context must not decide alone
_ACTS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a decoder, checked.

    Raises:
        UserError: a number is missing, not positive or does not fit the others; ``param`` names the config key.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    eps: float
    rope_base: float
    act: str

    @classmethod
    def read(cls, config: Mapping[str, Any], context: int = 0) -> Shape:
        """From Hugging Face's config keys; ``context`` > 0 shortens the model's own."""
        heads = _positive(config, "num_attention_heads")
        hidden = _positive(config, "hidden_size")
        kv_heads = _positive(config, "num_key_value_heads", heads)
        if heads % kv_heads:
            raise UserError(
                f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})",
                param="num_key_value_heads",
            )
        act = config.get("hidden_activation") or config.get("hidden_act") or "silu"
        if act not in _ACTS:
            raise UserError(f"activation {act!r} is not supported; supported: {', '.join(_ACTS)}", param="hidden_act")
        own = _positive(config, "max_position_embeddings")
        if context > own:
            raise UserError(f"context {context} is more than the model's own {own}", param="context")
        head_dim = _positive(config, "head_dim", hidden // heads)
        if (context or own) * head_dim > LARGEST_ROPE:
            raise UserError(
                f"a context of {context or own} tokens needs a rotary table of more than {LARGEST_ROPE} numbers: "
                f"set context to at most {LARGEST_ROPE // head_dim}",
                param="context",
            )
        return cls(
            hidden=hidden,
            inner=_positive(config, "intermediate_size"),
            layers=_positive(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab=_positive(config, "vocab_size"),
            context=context or own,
            eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_base=rope_base(config),
            act=_ACTS[act],
        )


def _positive(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 2**31:
        raise UserError(f"the model's configuration gives {key} = {value!r}; it must be a positive integer", param=key)
    return value


def rope_base(config: Mapping[str, Any]) -> float:
    """ "rope_theta", wherever this version of the configuration keeps it."""
    parameters = config.get("rope_parameters")
    nested = parameters.get("rope_theta") if isinstance(parameters, Mapping) else None
    return float(config.get("rope_theta") or nested or 10_000.0)


def rope_scaling(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """ "rope_scaling", wherever this version of the configuration keeps it."""
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if isinstance(value, Mapping):
            return value
    return None


def plain_rope(shape: Shape, config: Mapping[str, Any]) -> Array:
    """The one rotary table of families that use the same in every layer."""
    return rope_table(shape.context, shape.head_dim, shape.rope_base, rope_scaling(config))


def attention(
    load: Loader, shape: Shape, prefix: str, rope: Array, window: int | None = None, qk_norm: bool = False
) -> Attention:
    """``prefix``.{q,k,v,o}_proj as one Attention."""
    own = {
        n: RMSNorm(load.ops, load.vector(f"{prefix}.{n}.weight"), shape.eps) for n in ("q_norm", "k_norm") if qk_norm
    }
    return Attention(
        load.ops,
        load.linear(f"{prefix}.q_proj", f"{prefix}.k_proj", f"{prefix}.v_proj"),
        load.linear(f"{prefix}.o_proj"),
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        shape.head_dim**-0.5,
        rope,
        window,
        own.get("q_norm"),
        own.get("k_norm"),
    )


def block(load: Loader, shape: Shape, layer: int, attn: Attention) -> Block:
    """The usual pre-norm block around an attention."""
    at = f"model.layers.{layer}"
    return Block(
        RMSNorm(load.ops, load.vector(f"{at}.input_layernorm.weight"), shape.eps),
        attn,
        RMSNorm(load.ops, load.vector(f"{at}.post_attention_layernorm.weight"), shape.eps),
        mlp(load, shape, layer),
    )


def mlp(load: Loader, shape: Shape, layer: int) -> GatedMLP:
    at = f"model.layers.{layer}.mlp"
    return GatedMLP(
        load.ops, load.linear(f"{at}.gate_proj", f"{at}.up_proj"), load.linear(f"{at}.down_proj"), shape.act
    )


def decoder(
    load: Loader, shape: Shape, blocks: list[Block], final: RMSNorm | None = None, embed_scale: float = 1.0
) -> Decoder:
    """Blocks with embedding, final norm and head; a checkpoint without a head of its own uses the embedding."""
    embed = load.linear("model.embed_tokens")
    head: Linear = load.linear("lm_head") if load.has("lm_head.weight") else embed
    norm = final or RMSNorm(load.ops, load.vector("model.norm.weight"), shape.eps)
    return Decoder(load.ops, embed, blocks, norm, head, shape.context, embed_scale)
