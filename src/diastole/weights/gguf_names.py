"""A GGUF file seen as a Hugging Face checkpoint: configuration keys, tensor names, and the conventions undone.

Converters to GGUF change two things that are put back here: Llama's query and key rows are reordered so that rotary
pairs lie side by side, and Gemma's norm weights have one added.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from diastole.types import Array
from diastole.weights.error import WeightsError
from diastole.weights.gguf import GGUF
from diastole.weights.quants import Raw, dequantize

MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
_ROTARY_PAIRS = {"llama"}  # architectures whose query and key rows were reordered
_PLUS_ONE = {"gemma3"}  # architectures whose norm weights had one added

_NUMBERS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.local.freq_base",
    "max_position_embeddings": "context_length",
    "sliding_window": "attention.sliding_window",
}
_FRACTIONS = {"rms_norm_eps", "rope_theta", "rope_local_base_freq"}
_NEEDED = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_GEMMA = _LAYER | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


class GGUFCheckpoint:
    """A checkpoint in one GGUF file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GGUF.open(path)
        self._arch = str(self._file.metadata.get("general.architecture"))
        if self._arch not in MODEL_TYPES:
            known = ", ".join(MODEL_TYPES)
            raise WeightsError(path, f"holds a model of architecture {self._arch!r}; supported: {known}")
        layers = _LAYER_GEMMA if self._arch == "gemma3" else _LAYER
        self._stored = {_canonical(n, layers): n for n in self._file.tensors}
        if "model.embed_tokens.weight" not in self._stored:
            raise WeightsError(path, "has no token embedding (token_embd.weight)")
        self.config = self._config()
        self.fingerprint = self._fingerprint()

    def names(self) -> list[str]:
        return list(self._stored)

    def raw(self, name: str) -> Raw:
        raw = self._file.raw(self._stored.get(name, name))
        if self._arch in _ROTARY_PAIRS and ("q_proj." in name or "k_proj." in name):
            heads = "num_attention_heads" if "q_proj." in name else "num_key_value_heads"
            return self._halved(raw, self.config[heads])
        return raw

    def f32(self, name: str) -> Array:
        weights = dequantize(self.raw(name))
        return weights - 1 if self._arch in _PLUS_ONE and name.endswith("norm.weight") else weights

    def close(self) -> None:
        self._file.close()

    def _halved(self, raw: Raw, heads: int) -> Raw:
        """Rows with rotary pairs side by side (0, h/2, 1, h/2+1, ...) put back into halves (0..h/2-1, h/2..)."""
        vector = len(raw.shape) == 1  # a bias
        n = raw.shape[0]
        if n % (2 * heads):
            raise WeightsError(self.path, f"tensor {raw.name!r} has {n} rows, which {heads} heads cannot share")
        order = np.arange(n).reshape(heads, n // heads // 2, 2).swapaxes(1, 2).ravel()
        if not vector:
            return raw.take(order)
        item = raw.data.shape[-1] // n
        return Raw(raw.name, raw.kind, raw.shape, raw.data.reshape(n, item)[order].reshape(1, -1))

    def _config(self) -> dict[str, Any]:
        meta, arch = self._file.metadata, self._arch
        config: dict[str, Any] = {"model_type": MODEL_TYPES[arch]}
        for key, stored in _NUMBERS.items():
            value = self._number(f"{arch}.{stored}", whole=key not in _FRACTIONS)
            if value is not None:
                config[key] = value
            elif key in _NEEDED:
                raise WeightsError(self.path, f"does not say {arch}.{stored}")
        config.setdefault("num_key_value_heads", config["num_attention_heads"])
        embedding = self._file.tensors[self._stored["model.embed_tokens.weight"]]
        if len(embedding.shape) != 2:
            raise WeightsError(self.path, f"is damaged: the token embedding has shape {embedding.shape}")
        config["vocab_size"] = embedding.shape[0]
        config["tie_word_embeddings"] = "lm_head.weight" not in self._stored
        config["hidden_act"] = "gelu_pytorch_tanh" if arch == "gemma3" else "silu"
        for key, stored in (("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id")):
            config[key] = meta.get(f"tokenizer.ggml.{stored}")
        config["rope_scaling"] = self._scaling()
        return config

    def _number(self, key: str, whole: bool) -> int | float | None:
        value = self._file.metadata.get(key)
        if isinstance(value, list):
            if not value or any(v != value[0] for v in value):
                raise WeightsError(self.path, f"{key} differs between layers, which is not supported")
            value = value[0]
        if value is None:
            return None
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not fits or not 0 < value < 2**31:
            raise WeightsError(self.path, f"is damaged: {key} is {value!r:.60}, not a positive number")
        return value

    def _scaling(self) -> dict[str, Any] | None:
        if "rope_freqs.weight" in self._file.tensors:
            return {"rope_type": "factors", "factors": dequantize(self._file.raw("rope_freqs.weight")).ravel()}
        kind = self._file.metadata.get(f"{self._arch}.rope.scaling.type", "none")
        if kind == "none":
            return None
        return {"rope_type": kind, "factor": self._file.metadata.get(f"{self._arch}.rope.scaling.factor", 1.0)}

    def _fingerprint(self) -> str:
        """Of the whole header and a sample of the data: 64 spots of 256 bytes."""
        file = self._file
        first = min(t.offset for t in file.tensors.values())
        digest = hashlib.sha256(file.bytes_at(0, first))
        digest.update(str(file.nbytes).encode())
        for spot in np.linspace(first, file.nbytes - 256, 64).astype(int):
            digest.update(file.bytes_at(max(int(spot), 0), 256))
        return digest.hexdigest()


def _canonical(name: str, layers: dict[str, str]) -> str:
    """Hugging Face's name of a tensor; names without a counterpart stay as they are."""
    stem, _, suffix = name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{suffix}"
    parts = stem.split(".", 2)
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in layers:
        return f"model.layers.{parts[1]}.{layers[parts[2]]}.{suffix}"
    return name
