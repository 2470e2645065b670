"""The metadata of a GGUF file as the configuration that Hugging Face's config.json would give.

Keys are those of the GGUF specification, below the name of the architecture: "llama.block_count". Everything is checked
before it is believed, for the file may come from anywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diastole.weights.error import WeightsError
from diastole.weights.gguf import GGUF
from diastole.weights.quants import dequantize

MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}

_COUNTS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
_SMALLEST = 1e-30  # of positive real numbers; what lies beyond, or above its inverse, is damage
_ROPE_BASE = 10_000.0  # where a file names none
_GEMMA_PATTERN = 6  # every sixth layer is global, where a file does not say
_GEMMA_LARGEST = 62  # layers of the one Gemma 3 (27B) whose attention scale does not follow from head_dim


def config_of(file: GGUF) -> dict[str, Any]:
    """The configuration of the model in ``file``.

    Raises:
        WeightsError: an architecture that is not supported, a number missing, absurd or at odds with another.
    """
    return _Reader(file).config()


class _Reader:
    def __init__(self, file: GGUF) -> None:
        self.file = file
        arch = file.metadata.get("general.architecture")
        if not isinstance(arch, str) or arch not in MODEL_TYPES:
            known = ", ".join(MODEL_TYPES)
            raise self.fail(f"holds a model of architecture {arch!r:.60}; supported: {known}")
        self.arch = arch

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"model_type": MODEL_TYPES[self.arch]}
        for key, stored in _COUNTS.items():
            config[key] = self.needed(self.count(stored), stored)
        layers = config["num_hidden_layers"]
        if layers > len(self.file.tensors):
            raise self.fail(f"is damaged: it claims {layers} layers and has {len(self.file.tensors)} tensors")
        if self.count("expert_count"):
            raise self.fail("holds a mixture of experts, which is not supported")
        config["num_key_value_heads"] = self.count("attention.head_count_kv") or config["num_attention_heads"]
        config["head_dim"] = self.head_dim(config)
        config["rms_norm_eps"] = self.needed(
            self.real("attention.layer_norm_rms_epsilon"), "attention.layer_norm_rms_epsilon"
        )
        config["vocab_size"] = self.vocabulary()
        config["tie_word_embeddings"] = "output.weight" not in self.file.tensors
        config["hidden_act"] = "silu"
        config["bos_token_id"], config["eos_token_id"] = self.token("bos_token_id"), self.token("eos_token_id")
        config["rope_theta"] = self.real("rope.freq_base") or _ROPE_BASE
        config["rope_scaling"] = self.scaling(config["head_dim"])
        if self.arch == "gemma3":
            config |= self.gemma(config)
        elif self.arch == "llama" and (window := self.count("attention.sliding_window")):
            config |= {"model_type": "mistral", "sliding_window": window}  # those files call themselves llama too
        return config

    def fail(self, what: str) -> WeightsError:
        return WeightsError(self.file.path, what)

    # ---- values

    def value(self, key: str) -> Any:
        """Of a key below the architecture's name; a list with the same value for every layer is that value."""
        value = self.file.metadata.get(f"{self.arch}.{key}")
        if isinstance(value, list):
            if not value or any(v != value[0] for v in value):
                raise self.fail(f"{self.arch}.{key} differs between layers, which is not supported")
            return value[0]
        return value

    def count(self, key: str) -> int | None:
        """A whole number; None for none and for 0, which files write for "not used"."""
        value = self.value(key)
        if value is not None and (type(value) is not int or not 0 <= value < 2**31):
            raise self.fail(f"is damaged: {self.arch}.{key} is {value!r:.60}, not a whole number below 2^31")
        return value or None

    def real(self, key: str) -> float | None:
        value = self.value(key)
        if value is not None and (type(value) not in {int, float} or not _SMALLEST < value < 1 / _SMALLEST):
            raise self.fail(f"is damaged: {self.arch}.{key} is {value!r:.60}, not a positive number")
        return None if value is None else float(value)

    def needed(self, value: Any, key: str) -> Any:
        if value is None:
            raise self.fail(f"does not say {self.arch}.{key}")
        return value

    def token(self, key: str) -> int | None:
        value = self.file.metadata.get(f"tokenizer.ggml.{key}")
        if value is not None and type(value) is not int:
            raise self.fail(f"is damaged: tokenizer.ggml.{key} is {value!r:.60}, not a token's number")
        return value if value is not None and 0 <= value < self.vocabulary() else None  # "none" is written as -1, too

    # ---- what takes more than one value

    def vocabulary(self) -> int:
        embedding = self.file.tensors.get("token_embd.weight")
        if embedding is None:
            raise self.fail("has no token embedding (token_embd.weight)")
        return embedding.shape[0]

    def head_dim(self, config: dict[str, Any]) -> int:
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        dim = self.count("attention.key_length")
        if dim is None:
            if hidden % heads:
                raise self.fail(
                    f"does not say {self.arch}.attention.key_length, and {heads} heads do not divide {hidden}"
                )
            dim = hidden // heads
        if dim % 2:
            raise self.fail(f"is damaged: heads of {dim} dimensions cannot be rotated in pairs")
        for key in ("attention.value_length", "rope.dimension_count"):
            other = self.count(key)
            if other not in {None, dim}:
                raise self.fail(
                    f"has {self.arch}.{key} = {other} with heads of {dim} dimensions, which is not supported"
                )
        return int(dim)

    def scaling(self, head_dim: int) -> dict[str, Any] | None:
        """Hugging Face's rope_scaling; "factors" are the table rope_freqs.weight, one divisor per frequency."""
        if "rope_freqs.weight" in self.file.tensors:
            raw = self.file.raw("rope_freqs.weight")
            if raw.shape != (head_dim // 2,):
                raise self.fail(f"tensor 'rope_freqs.weight' has shape {raw.shape}, heads ask for {(head_dim // 2,)}")
            factors = dequantize(raw)
            if not (np.isfinite(factors) & (factors > 0)).all():
                raise self.fail("is damaged: 'rope_freqs.weight' must hold positive numbers")
            return {"rope_type": "factors", "factors": factors}
        kind = self.value("rope.scaling.type")
        if kind in {None, "none"}:
            return None
        if not isinstance(kind, str):
            raise self.fail(f"is damaged: {self.arch}.rope.scaling.type is {kind!r:.60}, not a name")
        scaling: dict[str, Any] = {"rope_type": kind, "factor": self.real("rope.scaling.factor") or 1.0}
        original = self.count("rope.scaling.original_context_length")
        return scaling | ({"original_max_position_embeddings": original} if original else {})

    def gemma(self, config: dict[str, Any]) -> dict[str, Any]:
        layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
        window = self.count("attention.sliding_window")
        scale = self.real("attention.scale")
        scalar: float = config["hidden_size"] // heads if layers == _GEMMA_LARGEST else config["head_dim"]
        return {
            "hidden_act": "gelu_pytorch_tanh",
            "sliding_window": window,
            "layer_types": self.layer_types(layers) if window else ["full_attention"] * layers,
            "rope_local_base_freq": self.real("rope.freq_base_swa") or _ROPE_BASE,
            "query_pre_attn_scalar": scale**-2 if scale else scalar,
        }

    def layer_types(self, layers: int) -> list[str]:
        """From a period (every so-manieth layer is global) or from one flag per layer (true: windowed)."""
        key = "attention.sliding_window_pattern"
        pattern = self.file.metadata.get(f"{self.arch}.{key}")
        if not isinstance(pattern, list):
            period = self.count(key) or _GEMMA_PATTERN
            pattern = [(i + 1) % period != 0 for i in range(layers)]
        if len(pattern) != layers or any(type(p) not in {bool, int} for p in pattern):
            raise self.fail(f"is damaged: {self.arch}.{key} must hold {layers} flags, one per layer")
        return ["sliding_attention" if p else "full_attention" for p in pattern]
