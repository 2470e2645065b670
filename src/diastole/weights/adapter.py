"""A low-rank change of another checkpoint (LoRA), in the form of Hugging Face's PEFT: W + scale · B A.

adapter_config.json names the base model and the scale, adapter_model.safetensors holds A (r, in) and B (out, r) of
each matrix that is changed. They are added up where a matrix is read, so that a step takes no longer for it. A
config.json beside them changes settings of the base's, such as its ``model_type``.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4; rank-stabilised
scales: Kalajdzievski (arXiv 2312.03732).
"""

from __future__ import annotations

import hashlib
import json
import re
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from diastole.types import Array
from diastole.weights.checkpoint import Checkpoint
from diastole.weights.error import WeightsError
from diastole.weights.quants import Raw, dequantize
from diastole.weights.safefile import json_object, read_shard

CONFIG, MATRICES = "adapter_config.json", "adapter_model.safetensors"
LARGEST_RANK = 4096
_HALF = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
# What PEFT can do beside, and the value that means that it does not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "trainable_token_indices": (None, []),
}


def is_adapter(path: Path) -> bool:
    """Whether an adapter lies there."""
    return (path / CONFIG).is_file()


def base_of(path: Path) -> str:
    """The model that an adapter changes, as it names it.

    Raises:
        WeightsError: it names none.
    """
    named = json_object(path / CONFIG).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise WeightsError(path / CONFIG, "names no base_model_name_or_path")
    return named


class AdaptedCheckpoint:
    """A checkpoint with an adapter over it, which it owns.

    Raises:
        WeightsError: the adapter is damaged, does what is not known here, or does not fit the base.
    """

    def __init__(self, path: Path, base: Checkpoint) -> None:
        self.path, self._base = path, base
        settings = json_object(path / CONFIG)
        self._scale, rank = _scale(path / CONFIG, settings)
        found = read_shard(path / MATRICES)
        self._halves: dict[str, dict[str, Array]] = {}
        for stored, raw in found.tensors.items():
            match = _HALF.fullmatch(stored)
            if match is None:
                message = f"changes {stored!r:.120}: only low-rank changes of matrices are known here"
                raise WeightsError(path / MATRICES, message)
            self._halves.setdefault(f"{match[1]}.weight", {})[match[2]] = dequantize(raw)
        self._check(rank)
        own = path / "config.json"
        self.config: dict[str, Any] = {**base.config, **(json_object(own) if own.exists() else {})}
        digest = hashlib.sha256(base.fingerprint.encode() + found.mark)
        digest.update(json.dumps([self.config, self._scale], sort_keys=True).encode())
        self.fingerprint = digest.hexdigest()

    def names(self) -> list[str]:
        return self._base.names()

    def raw(self, name: str) -> Raw:
        """As stored, or in float32 where it is changed."""
        raw = self._base.raw(name)
        if name not in self._halves:
            return raw
        whole = np.ascontiguousarray(self._changed(name, dequantize(raw)), np.float32)
        return Raw(name, "F32", raw.shape, whole.view(np.uint8).reshape(len(whole), -1))

    def f32(self, name: str) -> Array:
        whole = self._base.f32(name)
        return self._changed(name, whole) if name in self._halves else whole

    def close(self) -> None:
        self._halves.clear()
        self._base.close()

    def _changed(self, name: str, whole: Array) -> Array:
        half = self._halves[name]
        out: Array = whole + np.float32(self._scale) * (half["B"] @ half["A"])
        return out

    def _check(self, rank: int) -> None:
        """Every half has its other, the rank that was said, and a matrix that it fits."""
        if not self._halves:
            raise WeightsError(self.path / MATRICES, "changes nothing")
        known = set(self._base.names())
        for name, half in self._halves.items():
            if len(half) < 2:
                raise WeightsError(self.path / MATRICES, f"has only half {next(iter(half))} of {name!r:.120}")
            if name not in known:
                raise WeightsError(self.path, f"changes {name!r:.120}, which {self._base.path.name} does not have")
            a, b, shape = half["A"], half["B"], self._base.raw(name).shape
            if a.ndim != 2 or b.ndim != 2 or a.shape != (rank, shape[-1]) or b.shape != (shape[0], rank):
                message = (
                    f"changes {name!r:.120} of shape {shape} by matrices of shapes {b.shape} and {a.shape}; "
                    f"with r = {rank} they must be {(shape[0], rank)} and {(rank, shape[-1])}"
                )
                raise WeightsError(self.path / MATRICES, message)
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                raise WeightsError(self.path / MATRICES, f"holds numbers that are not finite, for {name!r:.120}")


def _scale(place: Path, settings: dict[str, Any]) -> tuple[float, int]:
    """What B A is multiplied by, and its rank."""
    if settings.get("peft_type") != "LORA":
        raise WeightsError(place, f"has peft_type {settings.get('peft_type')!r:.40}; supported: LORA")
    for key, plain in _PLAIN.items():
        if settings.get(key, plain[0]) not in plain:
            raise WeightsError(place, f"has {key} = {settings[key]!r:.60}, which is not supported")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if type(rank) is not int or not 0 < rank <= LARGEST_RANK:
        raise WeightsError(place, f"has r = {rank!r:.40}; it must be a whole number from 1 to {LARGEST_RANK}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 2**20:
        raise WeightsError(place, f"has lora_alpha = {alpha!r:.40}; it must be a number above 0")
    return float(alpha) / (sqrt(rank) if settings.get("use_rslora") is True else rank), rank
