"""Recalling chunks in plain numpy: what the native operator is tested against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diastole.kernels.shadows import Shadowed, Shadows
from diastole.types import Array

if TYPE_CHECKING:
    from diastole.kernels.table import Ops

PAGE, CHUNK = 64, 8


def recall(ops: Ops, q: Array, state: Shadows, rows: Shadowed, scale: float, at: Array, missed: Array) -> None:
    """See ``table.Ops.recall``. Pages are of float32 rows, as ``ref.TorchOps`` keeps them."""
    groups, chunks = state.held.shape[1:]
    for i, g in np.ndindex(len(rows.which), groups):
        table, buffer = rows.tables[i, : rows.pages[i]], int(rows.buffers[i])
        own = q[rows.which[i]].reshape(groups, -1, q.shape[2])[g]
        chosen = _chosen(ops, own, state, table, int(rows.records[i]), g, scale)
        held = state.held[buffer, g]
        slots = {int(c): j for j, c in enumerate(held) if c in chosen}
        free = [j for j, c in enumerate(held) if c not in chosen]
        new = [int(c) for c in chosen if c not in slots]
        missed[i, g] = len(new)
        first = (state.first + buffer * -(-chunks // (PAGE // CHUNK))) * PAGE
        for c, j in zip(new, free, strict=False):
            slots[c], held[j] = j, c
            _rebuild(ops, state, g, table, int(rows.records[i]), c, first + j * CHUNK)
        at[i, g, : CHUNK * chunks] = at[i, g, CHUNK * chunks]
        at[i, g, : CHUNK * len(chosen)] = [first + slots[int(c)] * CHUNK + t for c in chosen for t in range(CHUNK)]


def _chosen(ops: Ops, q: Array, state: Shadows, table: Array, record: int, g: int, scale: float) -> Array:
    """q (G, D) -> chunks in order."""
    marks = (state.marks[table, g].view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(-1, q.shape[1])
    s = q @ marks.T * np.float32(scale)
    s[:, state.outliers[record, g]] = -np.inf
    most = s.max(1, keepdims=True)
    weights = s - most - np.log(np.exp(s - most).sum(1, keepdims=True))
    count = state.held.shape[2]
    places, found = np.empty((1, count), np.int32), np.empty(1, np.int32)
    ops.tops(weights.max(0, keepdims=True), np.array([count], np.int32), places, found)
    chosen: Array = places[0, : found[0]]
    return chosen


def _rebuild(ops: Ops, state: Shadows, g: int, table: Array, record: int, chunk: int, row: int) -> None:
    dim = state.basis.shape[2] // state.held.shape[1]
    cache = state.buf.view(np.float32).reshape(*state.buf.shape[:2], 2, PAGE, dim)
    page, first = table[chunk // (PAGE // CHUNK)], chunk % (PAGE // CHUNK) * CHUNK
    a = state.a[page].view(np.int16).reshape(PAGE, -1)[first : first + CHUNK].astype(np.float32)
    k = np.ascontiguousarray(a @ state.basis[record][:, g * dim : (g + 1) * dim])[:, None]
    ops.rope(k, np.arange(chunk * CHUNK, (chunk + 1) * CHUNK, dtype=np.int32), state.rope)
    at = slice(row % PAGE, row % PAGE + CHUNK)
    cache[row // PAGE, g, 0, at] = _rounded(k[:, 0])
    cache[row // PAGE, g, 1, at] = state.values[page, g].view(np.float32).reshape(PAGE, dim)[first : first + CHUNK]


def _rounded(x: Array) -> Array:
    """To bfloat16, half to even."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
