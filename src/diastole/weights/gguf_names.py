"""A GGUF file seen as a Hugging Face checkpoint: configuration keys, tensor names, and the conventions undone.

Converters to GGUF change two things that are put back here: Llama's query and key rows are reordered so that rotary
pairs lie side by side, and Gemma's norm weights have one added.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from diastole.types import Array
from diastole.weights.error import WeightsError
from diastole.weights.gguf import GGUF
from diastole.weights.gguf_config import config_of
from diastole.weights.layout import check_shapes
from diastole.weights.quants import KINDS, Raw, dequantize

ROPE_FACTORS = "rope_freqs.weight"  # a table, told as rope_scaling in the configuration
_ROTARY_PAIRS = {"llama"}  # architectures whose query and key rows were reordered
_PLUS_ONE = {"gemma3"}  # architectures whose norm weights had one added

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
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    def names(self) -> list[str]:
        return list(self._stored)

    def raw(self, name: str) -> Raw:
        stored = self._stored.get(name)
        if stored is None:
            raise WeightsError(self.path, f"has no tensor {name!r}")
        raw = replace(self._file.raw(stored), name=name)
        if self._arch in _ROTARY_PAIRS and ".q_proj." in name:
            return self._halved(raw, self.config["num_attention_heads"])
        if self._arch in _ROTARY_PAIRS and ".k_proj." in name:
            return self._halved(raw, self.config["num_key_value_heads"])
        if self._arch in _PLUS_ONE and name.endswith("norm.weight"):
            return Raw(name, "F32", raw.shape, (dequantize(raw) - 1).reshape(raw.rows, -1).view(np.uint8))
        return raw

    def f32(self, name: str) -> Array:
        return dequantize(self.raw(name))

    def close(self) -> None:
        self._file.close()

    def _read(self) -> None:
        self.config = config_of(self._file)
        self._arch = str(self._file.metadata["general.architecture"])
        layers = _LAYER_GEMMA if self._arch == "gemma3" else _LAYER
        self._stored: dict[str, str] = {}
        for stored in self._file.tensors:
            name = _canonical(stored, layers)
            if name in self._stored:
                raise WeightsError(self.path, f"is damaged: {stored!r} and {self._stored[name]!r} are the same tensor")
            if stored != ROPE_FACTORS:
                self._stored[name] = stored
        check_shapes(self.path, self.config, ((n, self._file.tensors[s].shape) for n, s in self._stored.items()))
        self.fingerprint = self._fingerprint()

    def _halved(self, raw: Raw, heads: int) -> Raw:
        """Rows with rotary pairs side by side (0, h/2, 1, h/2+1, ...) put back into halves (0..h/2-1, h/2..)."""
        n = raw.shape[0]
        order = np.arange(n).reshape(heads, n // heads // 2, 2).swapaxes(1, 2).ravel()
        if len(raw.shape) == 2:
            return raw.take(order)
        if KINDS[raw.kind].weights > 1:
            raise WeightsError(self.path, f"tensor {raw.name!r} is a vector stored as {raw.kind}; floats are supported")
        return replace(raw, data=raw.data.reshape(n, -1)[order].reshape(1, -1))  # a bias

    def _fingerprint(self) -> str:
        """Of the whole header, the size, and 64 bytes from the middle of every tensor."""
        file = self._file
        digest = hashlib.sha256(file.bytes_at(0, min(t.offset for t in file.tensors.values())))
        digest.update(str(file.nbytes).encode())
        for t in file.tensors.values():
            digest.update(file.bytes_at(t.offset + t.nbytes // 2, min(64, t.nbytes // 2)))
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
