"""Checkpoint: the one face that every kind of model file shows, with Hugging Face's names and configuration keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from diastole.types import Array
from diastole.weights.error import WeightsError
from diastole.weights.quants import Raw


class Checkpoint(Protocol):
    """Weights and configuration of one model."""

    path: Path
    config: dict[str, Any]  # keys of Hugging Face's config.json
    fingerprint: str  # changes with the weights and the configuration

    def names(self) -> list[str]:
        """Tensor names, such as "model.layers.0.self_attn.q_proj.weight"."""
        ...

    def raw(self, name: str) -> Raw:
        """A tensor as stored, with rotary rows in the half-split order.

        Raises:
            WeightsError: there is none of this name.
        """
        ...

    def f32(self, name: str) -> Array:
        """A tensor as float32."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a GGUF file or a Hugging Face directory.

    Raises:
        WeightsError: it is neither, or damaged.
    """
    from diastole.weights.gguf_names import GGUFCheckpoint
    from diastole.weights.hf import HFCheckpoint

    path = Path(path)
    if path.is_dir():
        return HFCheckpoint(path)
    if not path.exists():
        raise WeightsError(path, "does not exist")
    return GGUFCheckpoint(path)
