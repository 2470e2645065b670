"""Which channels of a head's keys decide its scores: measured on real text.

Three importances of each channel, (layers, kv heads, head dim) float32, summed over the query heads that share a key:

    qk   mean |q k| of a token's own query and key, rotated, as they are multiplied
    q    mean |q| before rotation
    k    mean |k| before rotation

The published script stores "qk" under another name than it looks up, so that only its last text counts; here all do.
"""

from __future__ import annotations

import numpy as np

from diastole.calibrate.job import Job
from diastole.nn.attention import Attention
from diastole.slots import View
from diastole.types import Array, Batch, UserError

TOKENS = 131_072
CONTEXT = 512  # tokens of one text, as published


class Importance:
    """A probe that adds up the three."""

    def __init__(self, layers: list[Attention]) -> None:
        shape = (len(layers), layers[0].kv_heads, layers[0].head_dim)
        self._sums = {name: np.zeros(shape) for name in ("qk", "q", "k")}
        self._counts = np.zeros((len(layers), 1, 1))
        self._back = [_inverse(a.rope) for a in layers]

    def need(self, layer: int, b: Batch) -> bool:
        return True

    def see(self, view: View, q: Array, out: Array, lse: Array) -> None:
        k, _ = view.store.read(view.layer, view.b.rows)
        t, heads, dim = q.shape
        groups = k.shape[1]
        self._counts[view.layer] += t
        self._add("qk", view.layer, q.reshape(t, groups, -1, dim) * k[:, :, None])
        own = np.concatenate([q, k], axis=1)
        view.ops.rope(own, view.b.pos, self._back[view.layer])
        self._add("q", view.layer, own[:, :heads].reshape(t, groups, -1, dim))
        self._add("k", view.layer, own[:, heads:, None])

    def _add(self, name: str, layer: int, x: Array) -> None:
        self._sums[name][layer] += np.abs(x).sum((0, 2), dtype=np.float64)

    def means(self) -> dict[str, Array]:
        return {name: (total / self._counts).astype(np.float32) for name, total in self._sums.items()}


def _inverse(table: Array) -> Array:
    """A rotary table that turns back."""
    back = table.copy()
    back[:, table.shape[1] // 2 :] *= -1
    return back


def measure(job: Job) -> dict[str, Array]:
    """Raises:
    UserError: there is less than one text.
    """
    if len(job.ids) < CONTEXT:
        raise UserError(f"the texts have {len(job.ids)} tokens; at least {CONTEXT} are needed", param="texts")
    probe = Importance([b.attn for b in job.rig.decoder.blocks])
    with job.rig.watched(probe):
        for at in range(0, len(job.ids) - CONTEXT + 1, CONTEXT):
            with job.rig.stream(job.ids[at : at + CONTEXT]) as stream:
                job.rig.absorb(stream)
            job.tell(CONTEXT)
    return probe.means()
