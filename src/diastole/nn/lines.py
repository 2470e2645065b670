"""Lines: what the rows of a prompt's block attend to, where a few columns and bands hold most of the weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diastole.nn.selection import Tokens
from diastole.slots import View
from diastole.state.pages import PAGE
from diastole.types import Array, Batch


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of a prompt that lie in one block of positions, and those of them that it is judged by."""

    rows: slice  # of the batch
    first: int  # position of the first of them
    table: Array  # (1, P) int32: pages of their stream
    judges: Array  # (R,) int64: rows of the batch


@dataclass(frozen=True, slots=True)
class Lines:
    """One block's lines, for each query head: see ``Ops.choose_lines``."""

    block: Block
    bands: Array  # (1, H, M) uint8
    columns: Array  # (1, H, K) int32
    counts: Array  # (1, H) int32
    covered: Array  # (1, H)

    @classmethod
    def choose(cls, view: View, q: Array, block: Block, share: float, sink: int) -> Lines:
        """The lines that hold this share of what the judges attend to; the first ``sink`` tokens are among them."""
        heads, hi = q.shape[1], view.b.hi[block.judges]
        found = cls(
            block,
            np.empty((1, heads, -(-int(hi[-1]) // PAGE)), np.uint8),
            np.empty((1, heads, block.first), np.int32),
            np.empty((1, heads), np.int32),
            np.empty((1, heads), np.float32),
        )
        view.ops.choose_lines(
            np.ascontiguousarray(q[block.judges]),
            view.pages,
            view.store.fmt,
            block.table,
            np.array([0, len(hi)], np.int32),
            view.lo[block.judges],
            hi,
            view.scale,
            share,
            np.array([block.first], np.int32),
            sink,
            found.bands,
            found.columns,
            found.counts,
            found.covered,
        )
        return found

    def attend(self, view: View, q: Array, out: Array, lse: Array | None) -> None:
        rows = self.block.rows
        view.ops.attend_lines(
            q[rows],
            view.pages,
            view.store.fmt,
            self.block.table,
            np.array([0, rows.stop - rows.start], np.int32),
            view.b.hi[rows],
            view.scale,
            self.bands,
            self.columns,
            self.counts,
            out[rows],
            None if lse is None else lse[rows],
        )


@dataclass(frozen=True, slots=True)
class Partly:
    """Blocks attend to their lines, some rows to tokens one by one, the others to everything."""

    blocks: tuple[Lines, ...]
    tokens: Tokens | None

    def attend(self, view: View, q: Array, out: Array, lse: Array | None) -> None:
        b = view.b
        hi = b.hi.copy()  # whoever attends elsewhere sees nothing here
        for lines in self.blocks:
            hi[lines.block.rows] = 0
        if self.tokens is not None:
            hi[self.tokens.which] = 0
        if hi.any():
            view.ops.attend(q, view.pages, view.store.fmt, b.tables, b.starts, view.lo, hi, view.scale, out, lse)
        for lines in self.blocks:
            lines.attend(view, q, out, lse)
        if self.tokens is not None:
            self.tokens.pick(view, q, out, lse)


def blocks_of(b: Batch, size: int, judges: int, least: int) -> list[Block]:
    """The blocks of prompts in a batch that begin at position ``least`` or later and have more rows than twice their
    judges: one row out of every as many, at random places that only the block's position decides, and the last."""
    found = []
    for i, (stream, _) in enumerate(b.grants):
        row, last = int(b.starts[i]), int(b.starts[i + 1])
        while row < last:
            first = int(b.pos[row])
            end = min(row + size - first % size, last, row + max(stream.given - first, 0))
            if end <= row:
                break
            if first >= least and end - row > 2 * judges:
                found.append(
                    Block(slice(row, end), first, b.tables[i : i + 1], row + _places(end - row, judges, first))
                )
            row = end
    return found


def _places(n: int, k: int, seed: int) -> Array:
    edges = np.linspace(0, n, k + 1)
    places = (edges[:-1] + np.random.default_rng(seed).random(k) * np.diff(edges)).astype(np.int64)
    places[-1] = n - 1
    return places
