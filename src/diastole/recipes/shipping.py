"""Writing a small model where ``open_checkpoint`` reads it: config.json beside model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from diastole.recipes.keeping import whole


def write_model(
    out: Path, config: Mapping[str, Any], net: nn.Module, about: Mapping[str, str], kind: torch.dtype = torch.float32
) -> None:
    """Without counters.

    Args:
        config: with ``model_type``.
        about: what the file says of where it comes from.
        kind: what matrices are stored as; vectors stay float32.
    """
    tensors = {
        name: x.detach().to(kind if x.ndim > 1 else torch.float32).contiguous()
        for name, x in net.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }

    def save(part: Path) -> None:
        save_file(tensors, part, dict(about))
        part.chmod(0o644)  # as other files are

    whole(out / "model.safetensors", save)
    text = json.dumps(dict(config), indent=1) + "\n"
    whole(out / "config.json", lambda part: part.write_text(text, "utf-8"))
