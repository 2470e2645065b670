"""Lean Attention: attention is one list of pieces of all rows and heads, cut into equal shares, one for each worker.

Sanovar, Bharadwaj, St. Amant, Rühle, Rajmohan: "Lean Attention: Hardware-Aware Scalable Attention Mechanism for the
Decode-Phase of Transformers", MLSys 2025, arXiv 2405.10480. Parts of a softmax over disjoint keys can be merged, so the
cut may fall anywhere within a row's context and all workers end at the same time, whatever the batch. It needs nothing
but a paged cache.

Ours: this is how the engine's own attention is spread, fused steps included; the technique is for other pieces and
workers than it takes. A cut falls on every ``tile`` tokens of a row's own context and parts are merged in their order,
so that results depend on neither the batch nor the workers. Who comes last to a row merges, so nobody waits; who is
done takes from the end of another's share. Pages are of 64 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diastole.slots import Facts, Selection, View
from diastole.types import Array, UserError

NEEDS = frozenset({"paged_kv"})
_MOST_TILE, _MOST_WORKERS = 1 << 16, 1 << 10


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    tile: int = 512  # tokens of the smallest piece, a multiple of 64; 512: the same bits as without the technique
    workers: int = 0  # shares; 0: as many as there are threads
    help: bool = True  # who is done takes from others


class Lean:
    """Slot ``kernel``."""

    reads = frozenset({"f32", "bf16", "int8", "rows", "rows8"})
    revocable = True

    def __init__(self, p: Params) -> None:
        if p.tile % 64 or not 64 <= p.tile <= _MOST_TILE:
            raise _wrong("tile", f"must be a multiple of 64, the tokens of a page, up to {_MOST_TILE}, not {p.tile}")
        if not 0 <= p.workers <= _MOST_WORKERS:
            raise _wrong("workers", f"must lie between 0 (one per thread) and {_MOST_WORKERS}, not {p.workers}")
        self.tile, self.workers = p.tile, p.workers
        self.schedule = "lean" if p.help else "shares"

    def __call__(self, view: View, q: Array, selection: Selection | None, out: Array, lse: Array | None) -> None:
        """What is selected is computed by who selects."""
        if selection is not None:
            selection.attend(view, q, out, lse)
            return
        b = view.b
        view.ops.attend_by(
            q,
            view.pages,
            view.store.fmt,
            b.tables,
            b.starts,
            view.lo,
            b.hi,
            view.scale,
            out,
            lse,
            self.schedule,
            self.tile,
            self.workers,
        )


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"lean-attention: {knob} {what}", param="use")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"kernel": Lean(p)}
