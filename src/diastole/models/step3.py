"""Step-3 (text): MFA with one key/value head; an FFN that is dense in some layers, experts with a shared one in others.

Source: StepFun, "Step-3 is Large yet Affordable" (arXiv 2507.19427), its section on the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diastole.nn.decoder import Block, Decoder
from diastole.nn.family import Shape, plain_rope
from diastole.nn.linear import Linear, Loader
from diastole.nn.mfa import MFA, OpenDecoder, attends
from diastole.nn.mlp import GatedMLP
from diastole.nn.moe import ExpertBlock, MoE, Router, expert_layers, stacked
from diastole.nn.norm import RMSNorm
from diastole.types import Array, UserError
from diastole.weights.error import WeightsError


def build(load: Loader, config: Mapping[str, Any], context: int = 0) -> Decoder:
    """A model from its checkpoint; ``context`` > 0 shortens the model's own.

    Raises:
        UserError: a number is missing or does not fit the others (``param`` names the key), or a tensor has not the
            shape that the configuration asks for.
    """
    shape, sparse = _shape(config, context), expert_layers(config)
    rank, rope = _positive(config, "share_q_dim"), plain_rope(shape, config)
    attends(load.ops, shape.heads, shape.head_dim)
    blocks = [
        (_sparse if i in sparse else _dense)(load, shape, config, i, _attention(load, shape, i, rank, rope))
        for i in range(shape.layers)
    ]
    embed = _linear(load, shape.hidden, **{"model.embed_tokens": shape.vocab})
    head = _linear(load, shape.hidden, lm_head=shape.vocab) if load.has("lm_head.weight") else embed
    return OpenDecoder(load.ops, embed, blocks, _norm(load, shape, "model.norm", shape.hidden), head, shape.context)


def _shape(config: Mapping[str, Any], context: int) -> Shape:
    """The dimensions; Step-3 has names of its own for two of them, and leaves nothing to be guessed."""
    for key in ("num_attention_groups", "num_key_value_heads"):
        if config.get(key, 1) != 1:
            said = f"{key} = {config[key]!r:.60}: MFA has one key/value head, so it must be 1"
            raise UserError(said, param=key)
    own = next((k for k in ("max_position_embedding", "max_position_embeddings", "max_seq_len") if k in config), None)
    if own is None:
        raise UserError("the model's configuration lacks max_position_embedding", param="max_position_embedding")
    _positive(config, own)
    head_dim = _positive(config, "head_dim")
    if head_dim % 2:
        raise UserError(f"head_dim = {head_dim} must be even: positions turn pairs of numbers", param="head_dim")
    return Shape.read({**config, "num_key_value_heads": 1, "max_position_embeddings": config[own]}, context)


def _positive(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 2**31:
        raise UserError(
            f"the model's configuration gives {key} = {value!r:.60}; it must be a positive integer", param=key
        )
    return value


# ---- parts


def _attention(load: Loader, shape: Shape, layer: int, rank: int, rope: Array) -> MFA:
    at, d, wide = f"model.layers.{layer}.self_attn", shape.head_dim, shape.heads * shape.head_dim
    return MFA(
        load.ops,
        _linear(load, shape.hidden, **{f"{at}.q_proj": rank, f"{at}.k_proj": d, f"{at}.v_proj": d}),
        _linear(load, wide, **{f"{at}.o_proj": shape.hidden}),
        shape.heads,
        shape.kv_heads,
        d,
        d**-0.5,
        rope,
        inter_norm=_norm(load, shape, f"{at}.inter_norm", rank),
        wq=_linear(load, rank, **{f"{at}.wq": wide}),
    )


def _dense(load: Loader, shape: Shape, config: Mapping[str, Any], layer: int, attn: MFA) -> Block:
    return Block(*_around(load, shape, layer, attn), _mlp(load, shape, f"model.layers.{layer}.mlp", shape.inner))


def _sparse(load: Loader, shape: Shape, config: Mapping[str, Any], layer: int, attn: MFA) -> Block:
    at = f"model.layers.{layer}"
    shared = _mlp(load, shape, f"{at}.share_expert", _positive(config, "share_expert_dim"))
    moe = MoE(_router(load, shape, config, at), _experts(load, shape, config, at), shared)
    return ExpertBlock(*_around(load, shape, layer, attn), shared, moe=moe)


def _around(load: Loader, shape: Shape, layer: int, attn: MFA) -> tuple[RMSNorm, MFA, RMSNorm]:
    before, after = (
        _norm(load, shape, f"model.layers.{layer}.{n}_layernorm", shape.hidden) for n in ("input", "post_attention")
    )
    return before, attn, after


def _router(load: Loader, shape: Shape, config: Mapping[str, Any], at: str) -> Router:
    count, chosen = _positive(config, "moe_num_experts"), _positive(config, "moe_top_k")
    if chosen > count:
        raise UserError(f"moe_top_k = {chosen} must be at most moe_num_experts = {count}", param="moe_top_k")
    _expect(load, f"{at}.moe.gate.weight", count, shape.hidden)
    gate = Linear(load.ops, [load.ops.pack_f32(load.vector(f"{at}.moe.gate.weight"))])
    return Router(gate, chosen, config.get("norm_expert_weight") is True)


def _experts(load: Loader, shape: Shape, config: Mapping[str, Any], at: str) -> list[GatedMLP]:
    count, inner = _positive(config, "moe_num_experts"), _positive(config, "moe_intermediate_size")
    gate, up, down = (f"{at}.moe.{n}_proj" for n in ("gate", "up", "down"))
    for name, want in ((gate, (inner, shape.hidden)), (up, (inner, shape.hidden)), (down, (shape.hidden, inner))):
        _expect(load, f"{name}.weight", count, *want)
    both = zip(stacked(load, gate, up), stacked(load, down), strict=True)
    return [GatedMLP(load.ops, gate_up, back, shape.act) for gate_up, back in both]


def _mlp(load: Loader, shape: Shape, at: str, inner: int) -> GatedMLP:
    both = _linear(load, shape.hidden, **{f"{at}.gate_proj": inner, f"{at}.up_proj": inner})
    return GatedMLP(load.ops, both, _linear(load, inner, **{f"{at}.down_proj": shape.hidden}), shape.act)


def _norm(load: Loader, shape: Shape, name: str, width: int) -> RMSNorm:
    _expect(load, f"{name}.weight", width)
    return RMSNorm(load.ops, load.vector(f"{name}.weight"), shape.eps)


def _linear(load: Loader, k: int, **rows: int) -> Linear:
    """Matrices (rows, k) by name, stacked."""
    for name, n in rows.items():
        _expect(load, f"{name}.weight", n, k)
    return load.linear(*rows)


def _expect(load: Loader, name: str, *shape: int) -> None:
    """Raises:
    WeightsError: the checkpoint has not this tensor in this shape.
    """
    found = load.checkpoint.raw(name).shape
    if found != shape:
        said = f"tensor {name!r} has shape {found}, its configuration asks for {shape}"
        raise WeightsError(load.checkpoint.path, said)
