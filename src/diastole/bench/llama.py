"""llama.cpp as a contender, through the C interface that ``llama-cpp-python`` wraps: one native call per step.

Tokens are chosen by numpy's argmax over its logits, as cheaply as can be, and building its batch touches only arrays.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diastole.bench.task import Prompt
from diastole.types import Array, UserError

FORMATS = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "bf16": 32}  # numbers of llama_ftype


def module() -> Any:
    """The bindings.

    Raises:
        UserError: they are not installed.
    """
    try:
        import llama_cpp
    except ImportError:
        raise UserError("llama-cpp-python is not installed: pip install 'diastole[peers]'", param="peers") from None
    return llama_cpp


def silence(api: Any) -> Any:
    """Stop its log; the answer must be kept as long as the library is used."""
    quiet = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(quiet, ctypes.c_void_p(0))
    return quiet


def requantised(source: Path, fmt: str, target: Path, threads: int) -> Path:
    """The model in another of its formats; made once and kept.

    Raises:
        UserError: llama.cpp could not make it.
    """
    if target.exists():
        return target
    api = module()
    _kept = silence(api)
    target.parent.mkdir(parents=True, exist_ok=True)
    params = api.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.allow_requantize = threads, FORMATS[fmt], True
    part = target.with_name(target.name + ".part")
    if api.llama_model_quantize(str(source).encode(), str(part).encode(), ctypes.byref(params)) != 0:
        raise UserError(f"llama.cpp could not convert {source.name} to {fmt}", param="model")
    part.rename(target)
    return target


class Llama:
    """One model file in llama.cpp.

    Args:
        flash: its fused attention: 1 on, 0 off, -1 as it decides itself.
        cache: format of keys and values, "f16" or "q8_0".
    """

    def __init__(
        self, path: Path, threads: int, streams: int, context: int, flash: int = -1, cache: str = "f16"
    ) -> None:
        self._api = api = module()
        self._quiet = silence(api)
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        if not self._model:
            raise UserError(f"llama.cpp could not load {path}", param="model")
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        wanted = api.llama_context_default_params()
        wanted.n_ctx, wanted.n_seq_max = streams * (-(-context // 256) * 256), streams
        wanted.n_batch = max(2048, streams)
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.flash_attn_type, wanted.no_perf = flash, True
        wanted.type_k = wanted.type_v = {"f16": 1, "q8_0": 8}[cache]
        self._context = api.llama_init_from_model(self._model, wanted)
        if not self._context:
            raise UserError("llama.cpp could not make a context of this size", param="model")
        self._most = wanted.n_batch
        self._batch = api.llama_batch_init(self._most, 0, 1)
        view = np.ctypeslib.as_array
        self._token = view(self._batch.token, (self._most,))
        self._pos = view(self._batch.pos, (self._most,))
        self._wanted = view(self._batch.logits, (self._most,))
        for i in range(self._most):
            self._batch.n_seq_id[i] = 1
        self._last: Array = np.zeros(0, np.int32)  # each stream's newest token
        self._at = 0  # its position

    def prefill(self, prompt: Prompt) -> float:
        began = time.perf_counter()
        self._absorb(prompt, 0)
        seconds = time.perf_counter() - began
        self.end()
        return seconds

    def begin(self, prompts: Sequence[Prompt]) -> None:
        self._last = np.array([self._absorb(p, i) for i, p in enumerate(prompts)], np.int32)
        self._at = len(prompts[0])

    def decode(self, steps: int) -> float:
        n = len(self._last)
        for i in range(n):
            self._batch.seq_id[i][0] = i
        self._batch.n_tokens = n
        self._wanted[:n] = 1
        began = time.perf_counter()
        for _ in range(steps):
            self._token[:n], self._pos[:n] = self._last, self._at
            self._run()
            self._last = self._logits(n).argmax(1)
            self._at += 1
        return time.perf_counter() - began

    def end(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def _absorb(self, prompt: Prompt, stream: int) -> int:
        for lo in range(0, len(prompt), self._most):
            part = prompt[lo : lo + self._most]
            n = len(part)
            self._token[:n], self._pos[:n] = part, np.arange(lo, lo + n)
            self._wanted[:n] = 0
            self._wanted[n - 1] = lo + n == len(prompt)
            for i in range(n):
                self._batch.seq_id[i][0] = stream
            self._batch.n_tokens = n
            self._run()
        return int(self._logits(1).argmax())

    def _run(self) -> None:
        if self._api.llama_decode(self._context, self._batch) != 0:
            raise RuntimeError("llama.cpp could not run a batch")
        self._api.llama_synchronize(self._context)

    def _logits(self, rows: int) -> Array:
        out: Array = np.ctypeslib.as_array(self._api.llama_get_logits(self._context), (rows, self.vocab))
        return out
