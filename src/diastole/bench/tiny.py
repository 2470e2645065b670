"""A small random Llama, made in memory: what needs a model and no particular one runs on it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diastole.kernels.table import Packed
from diastole.types import Array
from diastole.weights import Raw
from diastole.weights.error import WeightsError

# Deep, because techniques name layers; otherwise as small as the operators' formats allow.
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
}
SHARP = 4.0  # standard deviation of attention's scores


class TinyLlama:
    """A checkpoint of random weights; the same ``seed`` and ``config`` give the same weights.

    Args:
        config: keys of config.json that differ from CONFIG.
    """

    def __init__(self, seed: int = 0, **config: Any) -> None:
        self.config = CONFIG | config
        self.path = Path("tiny-llama")
        self.fingerprint = hashlib.sha256(f"{seed}/{sorted(self.config.items())}".encode()).hexdigest()[:16]
        rng = np.random.default_rng(seed)
        self._tensors = {name: _random(rng, name, shape) for name, shape in self._shapes()}

    def _shapes(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        c = self.config
        hidden, inner, vocab = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
        queries, keys = (c["head_dim"] * c[f"num_{n}_heads"] for n in ("attention", "key_value"))
        matrices = {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        found: list[tuple[str, tuple[int, ...]]] = [
            ("model.embed_tokens.weight", (vocab, hidden)),
            ("lm_head.weight", (vocab, hidden)),
            ("model.norm.weight", (hidden,)),
        ]
        for i in range(c["num_hidden_layers"]):
            at = f"model.layers.{i}"
            found += [(f"{at}.{name}.weight", shape) for name, shape in matrices.items()]
            found += [(f"{at}.{norm}_layernorm.weight", (hidden,)) for norm in ("input", "post_attention")]
        return found

    def names(self) -> list[str]:
        return list(self._tensors)

    def raw(self, name: str) -> Raw:
        w = self.f32(name)
        return Raw(name, "F32", w.shape, w.reshape(-1, w.shape[-1]).view(np.uint8))

    def f32(self, name: str) -> Array:
        if name not in self._tensors:
            raise WeightsError(self.path, f"has no tensor {name!r}")
        return self._tensors[name]

    def close(self) -> None:
        """Nothing is open."""


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Array:
    """A matrix that keeps its input's size on average, a norm's weights near 1. Queries are larger: heads look at few
    tokens then, and what they look at decides what is said."""
    w = rng.normal(size=shape).astype(np.float32)
    if len(shape) == 1:
        return 1 + np.float32(0.05) * w
    return w * np.float32((SHARP if "q_proj" in name else 1) / shape[-1] ** 0.5)


class Remembered:
    """Packed matrices of one checkpoint in memory, for those who build its model many times."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Packed]] = {}

    def get(self, name: str) -> list[Packed] | None:
        return self._parts.get(name)

    def put(self, name: str, parts: Sequence[Packed]) -> None:
        self._parts[name] = list(parts)
