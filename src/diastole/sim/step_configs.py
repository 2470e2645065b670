"""Models and devices for ``step_costs``: from configurations as Hugging Face writes them, and from files of prices."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from diastole.nn.moe import expert_layers
from diastole.sim.step_costs import AttentionShape, Device, Factored, Gated, Grouped, Latent, Model
from diastole.types import UserError

LARGEST_FILE = 1 << 20  # bytes
MOST_LAYERS = 10_000


def _step3(c: Mapping[str, Any]) -> tuple[AttentionShape, list[Gated]]:
    layers, experts = _layers(c), expert_layers(c)
    attention = Factored(_number(c, "num_attention_heads"), _number(c, "head_dim"), _number(c, "share_q_dim"))
    if not experts:
        return attention, [Gated(_number(c, "intermediate_size"))] * layers
    shared = _number(c, "share_expert_dim")
    sparse = _sparse(c, shared, "moe_num_experts", "moe_top_k", "moe_intermediate_size")
    return attention, [sparse if i in experts else Gated(_number(c, "intermediate_size")) for i in range(layers)]


def _deepseek(c: Mapping[str, Any]) -> tuple[AttentionShape, list[Gated]]:
    layers, width = _layers(c), _number(c, "moe_intermediate_size")
    rank = _number(c, "q_lora_rank") if c.get("q_lora_rank") else 0
    keys = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    attention = Latent(_number(c, "num_attention_heads"), rank, *(_number(c, key) for key in keys))
    shared = _number(c, "n_shared_experts", 0, 0) * width
    sparse = _sparse(c, shared, "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
    dense = min(_number(c, "first_k_dense_replace", 0, 0), layers)
    return attention, [Gated(_number(c, "intermediate_size"))] * dense + [sparse] * (layers - dense)


def _qwen3_moe(c: Mapping[str, Any]) -> tuple[AttentionShape, list[Gated]]:
    step, dense = _number(c, "decoder_sparse_step", 1), c.get("mlp_only_layers") or ()
    sparse = _sparse(c, 0, "num_experts", "num_experts_per_tok", "moe_intermediate_size")
    return _grouped(c), [
        sparse if (i + 1) % step == 0 and i not in dense else Gated(_number(c, "intermediate_size"))
        for i in range(_layers(c))
    ]


def _llama(c: Mapping[str, Any]) -> tuple[AttentionShape, list[Gated]]:
    return _grouped(c), [Gated(_number(c, "intermediate_size"))] * _layers(c)


def _sparse(c: Mapping[str, Any], shared: int, experts: str, chosen: str, width: str) -> Gated:
    """A layer with experts, by the keys that say how many, how many of them at once, and how wide."""
    if _number(c, chosen) > _number(c, experts):
        raise UserError(f"{chosen} = {c[chosen]} must be at most {experts} = {c[experts]}", param=chosen)
    return Gated(shared, _number(c, experts), _number(c, chosen), _number(c, width))


def _grouped(c: Mapping[str, Any]) -> Grouped:
    heads = _number(c, "num_attention_heads")
    dim = _number({"head_dim": c.get("head_dim") or _number(c, "hidden_size") // heads}, "head_dim")
    return Grouped(heads, _number(c, "num_key_value_heads", heads), dim)


READERS: dict[str, Callable[[Mapping[str, Any]], tuple[AttentionShape, list[Gated]]]] = {
    "step3_text": _step3,
    "deepseek_v3": _deepseek,
    "qwen3_moe": _qwen3_moe,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _llama),
}

# What the published config.json files say.
CONFIGS: dict[str, dict[str, Any]] = {
    "step-3": {
        "model_type": "step3_text", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
        "num_attention_heads": 64, "num_attention_groups": 1, "head_dim": 256, "share_q_dim": 2048,
        "vocab_size": 128815, "moe_num_experts": 48, "moe_top_k": 3, "moe_intermediate_size": 5120,
        "share_expert_dim": 5120, "moe_layers_enum": list(range(4, 60)),
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
        "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280, "n_routed_experts": 256,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "first_k_dense_replace": 3,
    },
    "qwen3-moe-235b": {
        "model_type": "qwen3_moe", "hidden_size": 4096, "num_hidden_layers": 94, "num_attention_heads": 64,
        "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 1536,
    },
    "smollm2-135m": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
}  # fmt: skip


def model(name: str) -> Model:
    """One of ``CONFIGS``, or that of a config.json or the directory it lies in.

    Raises:
        UserError: it is neither, or a number is missing; ``param`` names the key.
    """
    if name in CONFIGS:
        return of_config(name, CONFIGS[name])
    path = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    if not path.is_file():
        known = ", ".join(CONFIGS)
        raise UserError(f"--model {name!r:.200} is no file; give a config.json or one of {known}", param="model")
    text = _text(path, "model")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"--model {path} is no JSON: {e!s:.100}", param="model") from None
    inner = found.get("text_config") if isinstance(found, dict) else None
    whole = inner if isinstance(inner, dict) and "hidden_size" not in found else found
    if not isinstance(whole, dict):
        raise UserError(f"--model {path} is no JSON object", param="model")
    return of_config(path.parent.name or name, whole)


def of_config(name: str, config: Mapping[str, Any]) -> Model:
    """From Hugging Face's config keys.

    Raises:
        UserError: a kind of model that is not known, or a number is missing; ``param`` names the key.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in READERS:
        known = ", ".join(READERS)
        raise UserError(f"no costs are known of model_type {kind!r:.60}; known: {known}", param="model_type")
    attention, ffn = READERS[kind](config)
    tied = config.get("tie_word_embeddings") is True
    return Model(name, _number(config, "hidden_size"), _number(config, "vocab_size"), tied, attention, tuple(ffn))


def devices(path: Path) -> tuple[Device, ...]:
    """A TOML file with a table per device: dollars_per_hour, flops, bytes_per_second, network_bytes_per_second.

    Raises:
        UserError: it cannot be read, a key is not known or missing, or a number is not positive.
    """
    text = _text(path, "devices")
    try:
        found = tomllib.loads(text)
    except ValueError as e:
        raise UserError(f"--devices {path} is no TOML: {e!s:.100}", param="devices") from None
    if not found:
        raise UserError(f"--devices {path} names no device", param="devices")
    return tuple(_device(path, name, table) for name, table in found.items())


_KEYS = ("dollars_per_hour", "flops", "bytes_per_second", "network_bytes_per_second")


def _device(path: Path, name: str, table: object) -> Device:
    if not isinstance(table, dict) or set(table) - set(_KEYS) or set(_KEYS[:3]) - set(table):
        wanted = ", ".join(_KEYS[:3])
        said = f"--devices {path}: {name!r:.60} must be a table with {wanted} and, if known, {_KEYS[3]}"
        raise UserError(said, param="devices")
    for key, value in table.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (isfinite(value) and value > 0):
            said = f"--devices {path}: {key} of {name!r:.60} must be a number above 0, not {value!r:.60}"
            raise UserError(said, param=key)
    return Device(name, *(float(table.get(key, 0.0)) for key in _KEYS))


def _text(path: Path, param: str) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"--{param} {path} has more than {LARGEST_FILE} bytes", param=param)
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"--{param} {path} cannot be read: {e!s:.100}", param=param) from None


def _layers(config: Mapping[str, Any]) -> int:
    layers = _number(config, "num_hidden_layers")
    if layers > MOST_LAYERS:
        raise UserError(f"num_hidden_layers = {layers} is more than {MOST_LAYERS}", param="num_hidden_layers")
    return layers


def _number(config: Mapping[str, Any], key: str, default: int | None = None, least: int = 1) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 2**31:
        said = f"the model's configuration gives {key} = {value!r:.60}; it must be an integer from {least}"
        raise UserError(said, param=key)
    return value
