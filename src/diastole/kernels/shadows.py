"""What ``Ops.recall`` reads: a layer's keys of low rank with their landmarks, and the rows that look at them."""

from __future__ import annotations

from dataclasses import dataclass

from diastole.types import Array


@dataclass(frozen=True, slots=True)
class Shadows:
    """One layer of ``stores.shadow``: chunks of 8 tokens with keys of low rank. E is the rank, C the chunks that
    a buffer holds for each head."""

    marks: Array  # uint8 (sealed pages, Hkv, 8·D·2): bfloat16, the landmarks of a page's chunks
    a: Array  # uint8 (sealed pages, 64·E·2): int16, the scales of whose columns are in the basis
    values: Array  # uint8 (sealed pages, Hkv, bytes): 64 values in the precision of form "rows"
    basis: Array  # (records, E, Hkv·D)
    outliers: Array  # int32 (records, Hkv, O): chunks that are never chosen
    rope: Array  # (positions, rotated dimensions)
    buf: Array  # pages of form "rows": chunk c of buffer b is at 8 c tokens from page first + b · ceil(C / 8)
    held: Array  # int32 (buffers, Hkv, C): the chunk of the stream that is there, or -1; buffers lie from ``first`` on
    first: int


@dataclass(frozen=True, slots=True)
class Shadowed:
    """Rows of a batch whose streams have sealed pages; no two of them use one buffer."""

    which: Array  # (R,) int32: rows of q
    tables: Array  # (R, P) int32: sealed pages
    pages: Array  # (R,) int32: how many
    records: Array  # (R,) int32
    buffers: Array  # (R,) int32
