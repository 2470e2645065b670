"""Hugging Face transformers in bf16 as a contender, with the weights of the same file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diastole.assets.models import open_model
from diastole.bench.task import Prompt
from diastole.types import UserError

_SAME = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
    "vocab_size",
)


class Transformers:
    """A Llama of one checkpoint, its usual generation loop spelt out: one forward per step with its dynamic cache."""

    def __init__(self, path: Path, threads: int) -> None:
        try:
            import torch
            import transformers
        except ImportError:
            raise UserError("transformers is not installed: pip install 'diastole[peers]'", param="peers") from None
        self._torch, self._library = torch, transformers
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._model = _load(path, torch, transformers)
        self.vocab = int(self._model.config.vocab_size)
        self._cache: Any = None
        self._last: Any = None

    def prefill(self, prompt: Prompt) -> float:
        began = time.perf_counter()
        self.begin([prompt])
        seconds = time.perf_counter() - began
        self.end()
        return seconds

    def begin(self, prompts: Sequence[Prompt]) -> None:
        self._cache = self._library.DynamicCache(config=self._model.config)
        self._forward(self._torch.tensor(prompts))

    def decode(self, steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            self._forward(self._last)
        return time.perf_counter() - began

    def end(self) -> None:
        self._cache = self._last = None

    def _forward(self, ids: Any) -> None:
        out = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._last = out.logits[:, -1].argmax(-1, keepdim=True)


def _load(path: Path, torch: Any, transformers: Any) -> Any:
    checkpoint = open_model(path)
    c = checkpoint.config
    if c["model_type"] != "llama":
        raise UserError(f"only llama models are compared with transformers, not {c['model_type']}", param="model")
    tied = "lm_head.weight" not in checkpoint.names()
    config = transformers.LlamaConfig(
        **{k: c[k] for k in _SAME},
        rope_parameters={"rope_type": "default", "rope_theta": c["rope_theta"]},
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").to(torch.bfloat16).eval()
    target = model.state_dict()
    for name in checkpoint.names():
        target[name].copy_(torch.from_numpy(np.ascontiguousarray(checkpoint.f32(name))))
    if tied:
        model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)  # its buffers are in no checkpoint
    checkpoint.close()
    return model
