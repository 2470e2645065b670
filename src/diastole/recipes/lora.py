"""LoRA in torch: low-rank changes of a frozen network's matrices, trained, and written in PEFT's form.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4: B begins at zero,
so that training begins at the base.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.recipes.keeping import whole
from diastole.weights.adapter import CONFIG, MATRICES


class Changed(nn.Module):
    """A matrix that stays as it is, and its change: y = W x + scale · B (A x)."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        out, width = base.weight.shape
        self.lora_A = nn.Parameter(torch.randn(rank, width) / math.sqrt(width))
        self.lora_B = nn.Parameter(torch.zeros(out, rank))
        self.scale = scale
        self._base = (base,)  # in a tuple: no part of what is trained or kept

    def forward(self, x: Tensor) -> Tensor:
        change = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.scale * self.lora_B.to(x.dtype))
        out: Tensor = self._base[0](x) + change
        return out


def adapt(net: nn.Module, names: Iterable[str], rank: int, scale: float) -> nn.ModuleDict:
    """Freeze a network, and put a change over each matrix whose name ends so.

    Returns:
        the changes, by the matrix's path with "-" for ".": all that is trained.
    """
    for p in net.parameters():
        p.requires_grad_(False)
    ends, changes = tuple(names), nn.ModuleDict()
    for path, part in list(net.named_modules()):
        if isinstance(part, nn.Linear) and path.rpartition(".")[2] in ends:
            parent, _, own = path.rpartition(".")
            change = Changed(part, rank, scale)
            setattr(net.get_submodule(parent), own, change)
            changes[path.replace(".", "-")] = change
    return changes


def write_adapter(
    out: Path,
    base: str,
    changes: nn.ModuleDict,
    rank: int,
    scale: float,
    config: Mapping[str, Any],
    about: Mapping[str, str],
) -> None:
    """A directory that is served over its base.

    Args:
        base: name or path of the model that is changed.
        config: settings of the base's that change too.
        about: what the file says of where it comes from.
    """
    tensors, targets = {}, set()
    for key, change in changes.items():
        path = key.replace("-", ".")
        targets.add(path.rpartition(".")[2])
        for half in ("lora_A", "lora_B"):
            x = change.get_parameter(half).detach()
            tensors[f"base_model.model.model.{path}.{half}.weight"] = x.to(torch.bfloat16).contiguous()
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank * scale,
        "target_modules": sorted(targets),
        "bias": "none",
    }

    def save(part: Path) -> None:
        save_file(tensors, part, dict(about))
        part.chmod(0o644)  # as other files are

    whole(out / MATRICES, save)
    for file, said in ((CONFIG, settings), ("config.json", dict(config))):
        text = json.dumps(said, indent=1) + "\n"
        whole(out / file, lambda part, text=text: part.write_text(text, "utf-8"))  # type: ignore[misc]
