"""A UNet as diffusers runs it on torch, from the same directory: what pictures are compared with."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diastole.layers.unet import ATTENTION, OLDER_ATTENTION, scheduler
from diastole.loops.denoise import noise
from diastole.params import PictureParams
from diastole.types import Array, UserError
from diastole.weights import open_checkpoint


class Diffusers:
    """Its UNet2DModel and DDIMScheduler in float32, pictures of equal steps and guidance in one batch.

    Raises:
        UserError: diffusers is not installed.
    """

    def __init__(self, path: Path, threads: int) -> None:
        try:
            import diffusers
            import torch
        except ImportError:
            raise UserError("diffusers is not installed: pip install 'diastole[peers]'", param="peers") from None
        torch.set_num_threads(threads)
        library: Any = diffusers
        self._torch, checkpoint = torch, open_checkpoint(path)
        config = dict(checkpoint.config)
        known = inspect.signature(library.UNet2DModel).parameters
        self._net = library.UNet2DModel(**{k: v for k, v in config.items() if k in known}).eval()
        shape = {n: checkpoint.raw(n).shape for n in checkpoint.names()}
        state = {n: torch.from_numpy(checkpoint.f32(n).reshape(s).copy()) for n, s in shape.items()}
        for older, name in zip(OLDER_ATTENTION, ATTENTION, strict=True):
            state = {n.replace(f".{older}.", f".{name}."): tensor for n, tensor in state.items()}
        self._net.load_state_dict(state)
        self._schedule = library.DDIMScheduler.from_config(scheduler(checkpoint))
        self._nothing = (config.get("num_class_embeds") or 0) - 1  # below 0: it knows no labels
        checkpoint.close()

    def paint(self, wishes: Sequence[PictureParams]) -> Array:
        """(N, H, W, C) float32 from -1 to 1."""
        torch, net, first = self._torch, self._net, wishes[0]
        size = net.config.sample_size, net.config.sample_size, net.config.in_channels
        begun = np.stack([noise(w.seed, size) for w in wishes])
        x: Any = torch.from_numpy(begun).permute(0, 3, 1, 2)
        self._schedule.set_timesteps(first.steps)
        with torch.no_grad():
            for t in self._schedule.timesteps:
                x = self._schedule.step(self._found(x, t, wishes), t, x).prev_sample
        found: Array = x.permute(0, 2, 3, 1).clamp(-1, 1).numpy()
        return found

    def _found(self, x: Any, t: Any, wishes: Sequence[PictureParams]) -> Any:
        if self._nothing < 0:
            return self._net(x, t).sample
        torch, guidance = self._torch, wishes[0].guidance
        labels = torch.tensor([self._nothing if w.label is None else w.label for w in wishes])
        if guidance == 1 or wishes[0].label is None:
            return self._net(x, t, class_labels=labels).sample
        both = torch.cat([torch.full_like(labels, self._nothing), labels])
        without, of = self._net(torch.cat([x, x]), t, class_labels=both).sample.chunk(2)
        return without + guidance * (of - without)
