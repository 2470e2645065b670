"""Shape: what a planner has to know of a model, from a profile or from a Hugging Face configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from diastole.sim.reading import folder, names, read
from diastole.types import UserError

Size = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
LARGEST = 1 << 20  # bytes of a configuration
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A dense decoder."""

    name: Annotated[str, msgspec.Meta(max_length=200)]
    layers: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    hidden: Size
    heads: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    kv_heads: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    head_dim: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    parameters: Annotated[float, msgspec.Meta(gt=0, le=1e14)]
    context: Annotated[int, msgspec.Meta(ge=2, le=100_000_000)]
    source: Annotated[str, msgspec.Meta(max_length=2000)]

    @property
    def token_bytes(self) -> int:
        """Of one token's keys and values in all layers, in 16 bits."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    @property
    def weight_bytes(self) -> float:
        """In 16 bits."""
        return 2 * self.parameters


def shape(model: str) -> Shape:
    """A model's by its name, or of a ``config.json``.

    Raises:
        UserError: there is none, or its values make no sense.
    """
    if model.endswith(".json"):
        return _from_config(Path(model))
    path = folder("models") / f"{model}.toml"
    if model not in names("models"):
        known = ", ".join(names("models"))
        message = f"--model {model!r:.80} is not known: give a config.json, or one of {known}"
        raise UserError(message, param="model", code="model_not_found")
    return read(path, Shape, "model")


def _from_config(path: Path) -> Shape:
    """Of a dense model with Hugging Face's names; parameters are counted from its sizes."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise UserError(f"--model {path} has more than {LARGEST:,} bytes: this is no configuration", param="model")
        config = json.loads(raw)
    except OSError as e:
        raise UserError(f"--model {path} cannot be read: {e.strerror}", param="model") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"--model {path} is no JSON: {e}", param="model") from None
    if not isinstance(config, dict):
        raise UserError(f"--model {path} must hold an object with {', '.join(NEEDED)}", param="model")
    if missing := [key for key in NEEDED if key not in config]:
        raise UserError(f"--model {path} lacks {', '.join(missing)}", param="model")
    if any(key in config for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise UserError(f"--model {path} has experts; plans are made for dense models only", param="model")
    hidden, layers, heads, vocab = (_size(path, config, key) for key in NEEDED)
    kv = _size(path, config, "num_key_value_heads", heads)
    dim = _size(path, config, "head_dim", max(hidden // heads, 1))
    plain = "ffn_dim" in config  # two matrices, as in OPT; else three with a gate
    inner = _size(path, config, "ffn_dim" if plain else "intermediate_size", 4 * hidden)
    tied = config.get("tie_word_embeddings", plain) is True
    attention = hidden * dim * (2 * heads + 2 * kv)
    parameters = layers * (attention + (2 if plain else 3) * hidden * inner) + vocab * hidden * (1 if tied else 2)
    found = {
        "name": path.parent.name or path.name,
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv,
        "head_dim": dim,
        "parameters": float(parameters),
        "context": _size(path, config, "max_position_embeddings", 2048),
        "source": f"counted from {path}",
    }
    try:
        return msgspec.convert(found, Shape)
    except msgspec.ValidationError as e:
        raise UserError(f"--model {path}: {e}", param="model") from None


def _size(path: Path, config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100_000_000:
        message = f"--model {path}: {key} must be a whole number from 1 to 100,000,000, not {value!r:.40}"
        raise UserError(message, param="model")
    return value
