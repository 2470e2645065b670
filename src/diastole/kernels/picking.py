"""Operators for who attends to a part of the cache, or to rows in other forms: the second half of ``table.Ops``."""

from __future__ import annotations

from typing import Protocol

from diastole.kernels.shadows import Shadowed, Shadows
from diastole.types import Array


class Picking(Protocol):
    """See ``table`` for what all arguments have in common."""

    # ---- for who attends to a part of the cache only

    def attend_tokens(
        self,
        q: Array,
        buf: Array,
        fmt: str,
        which: Array,
        at: Array,
        counts: Array,
        scale: float,
        out: Array,
        lse: Array | None = None,
    ) -> None:
        """The same for tokens one by one, to rows ``which`` (R,) int32 of q and out; the others stay as they are.

        at (R, S, K) int64: rows of the cache (page · 64 + slot), the first counts (R, S) int32 of each set; there is a
        set for each key/value head, S = Hkv, or for each query head, S = H.
        """
        ...

    def scores(
        self,
        q: Array,
        buf: Array,
        fmt: str,
        tables: Array,
        starts: Array,
        lo: Array,
        hi: Array,
        scale: float,
        out: Array,
        less: Array | None = None,
    ) -> None:
        """Products of queries with the keys that ``attend`` would look at, times ``scale``, -inf for the rest: out
        (T, H, N), or (T, Hkv, N) with the largest of those that share a key. less (T, H): what is taken off each head's
        before they are compared. fmt "keys": see ``keys_write``."""
        ...

    def keys_write(self, buf: Array, rows: Array, k: Array, channels: Array | None = None, bits: int = 16) -> None:
        """Store k (T, Hkv, R), R a multiple of 16, as bfloat16 at rows (T,) of a buffer of keys alone: (pages, Hkv,
        128·R) uint8. channels (Hkv, C) int32, C ≤ R: of k (T, Hkv, D) only these of each head, then zeros.

        bits 4: each as least + step · code, code 0 to 15 and step and least of bfloat16 for all channels of a token and
        head, (pages, Hkv, 32·R + 256) uint8; see csrc/labels.inl.
        """
        ...

    def choose(
        self,
        q: Array,
        buf: Array,
        channels: Array,
        which: Array,
        tables: Array,
        lo: Array,
        hi: Array,
        most: Array,
        sink: int,
        recent: int,
        at: Array,
        counts: Array,
        bits: int = 16,
    ) -> None:
        """For rows ``which`` (R,) of q (T, H, D) the tokens whose keys' ``channels`` give the largest product with any
        of the query heads that share them, as ``attend_tokens`` takes them.

        buf: what ``keys_write`` stored with the same channels and bits; with 4 bits queries are rounded too, to int8.
        Row i sees tokens lo[i] <= j < hi[i] on the pages tables[i] (R, P) and gets most[i] of them, in order: at (R,
        Hkv, K) int64, counts (R, Hkv) int32. The first ``sink`` and the latest ``recent`` that it sees come before all
        others.
        """
        ...

    def page_scores(self, q: Array, index: Array, tables: Array, starts: Array, n: Array, out: Array) -> None:
        """Products of q (T, H, E), E a multiple of 32, with ``per`` rows of bfloat16 that stand for a page, the largest
        of the heads that share it: index (pages, Hkv, 2·E·per) uint8; row t looks at the first n[t] pages of its
        stream's table; out (T, Hkv, P) the largest of a page's, or (T, Hkv, P·per); -inf for the rest."""
        ...

    def pick_pages(
        self,
        q: Array,
        index: Array,
        per: int,
        tables: Array,
        blocks: Array,
        heads: Array,
        first: int,
        recent: int,
        places: Array,
        runs: Array,
        pages: Array,
    ) -> None:
        """Pages that heads choose by bounds of their scores: for q (R, H, D), D a multiple of 16, and the heads of
        ``heads`` (Hkv,) int32 that are not 0, places (R, Hkv, K) int32 in row i's table, tables (R, P) int32, of whose
        pages it has those up to place blocks[i] >= K: the ``first``, the ``recent``, the last among them, and of the
        others those with the largest bound that any query head of a group has for any of a page's ``per`` runs of
        tokens. Their ids go to the beginning of pages[runs[i]]: runs (R,) int32, pages (V, Hkv, K or more) int32.

        index (pages, E, 4·D·per) uint8, in which head g has the place heads[g] - 1: of each run the largest key by
        channel and then the smallest, 2·D numbers of bfloat16, in the order [2·D·per/32][per][32/per]: pieces of all
        runs side by side."""
        ...

    def tops(self, x: Array, k: Array, places: Array, counts: Array) -> None:
        """Places of the k[i] largest of each row of x (N, n) in order of place, of equal ones the first, never those of
        -inf or NaN: places (N, K) int32, padded with -1, and how many, counts (N,) int32."""
        ...

    def recall(self, q: Array, state: Shadows, rows: Shadowed, scale: float, at: Array, missed: Array) -> None:
        """Choose each row's chunks and bring them into its buffer.

        For q (T, H, D), row stride: softmax over the landmarks of all chunks but the outliers, per query head; the
        largest weight of the heads that share a key; the C chunks where it is largest. Those that the buffer does not
        hold yet, missed (R, Hkv) of them, are rebuilt (A B, rotated to their places, bfloat16) and their values copied.
        The tokens of all that are chosen, as rows of ``buf`` in the stream's order, are written to the first 8 C of at
        (R, Hkv, K) int64. Behind these there is at least one that the row attends to anyway; where scores are no
        numbers and choose too few, it stands for the rest.
        """
        ...

    # ---- for who looks before attending

    def masses(
        self,
        q: Array,
        buf: Array,
        fmt: str,
        tables: Array,
        starts: Array,
        lo: Array,
        hi: Array,
        scale: float,
        out: Array,
    ) -> None:
        """Softmax weights that ``attend`` would give each token, summed over the rows of a stream and the heads that
        share a key: out (B, Hkv, N). tables (B, P); lo, hi (T,)."""
        ...

    def choose_lines(
        self,
        q: Array,
        buf: Array,
        fmt: str,
        tables: Array,
        starts: Array,
        lo: Array,
        hi: Array,
        scale: float,
        share: float,
        first: Array,
        sink: int,
        bands: Array,
        columns: Array,
        counts: Array,
        covered: Array,
    ) -> None:
        """For B blocks of rows, each with its stream's table (B, P), and every query head: the lines that hold
        ``share`` of the softmax weights of q (T, H, D), which are some of the block's rows.

        A line is a column, one token before the block's first position ``first`` (B,) int32, or a band, the pages at
        one distance from the page that a row lies on. The line with most weight per token comes first; what lies on
        chosen ones is not counted again. Band 0 and the first ``sink`` columns are always in, and all columns of a page
        of which half are in. bands (B, H, M) uint8: 1
        where chosen, by distance; columns (B, H, K) int32 in order, the first counts (B, H) int32 of them; covered
        (B, H): the share that lies on them.
        """
        ...

    def attend_lines(
        self,
        q: Array,
        buf: Array,
        fmt: str,
        tables: Array,
        starts: Array,
        hi: Array,
        scale: float,
        bands: Array,
        columns: Array,
        counts: Array,
        out: Array,
        lse: Array | None = None,
    ) -> None:
        """Each row attends to its block's lines as ``choose_lines`` gives them; hi (T,) rises by one within a block."""
        ...

    # ---- pages of codes of four and of two bits, beside pages in bf16: see csrc/zip.inl

    def zip_page_bytes(self, dim: int, fine: int) -> int:
        """Bytes of a page of one head, ``fine`` tokens of which, a multiple of 4, keep four bits."""
        ...

    def zip_seal(self, raw: Array, slots: Array, zip: Array, pages: Array, masks: Array, fine: int) -> None:
        """Pages slots (n,) int32 of raw, in "bf16", as codes to pages (n,) int32 of zip (pages, Hkv, bytes); masks
        (n, Hkv) uint64: the positions that keep four bits."""
        ...

    def zip_open(self, zip: Array, pages: Array, fine: int, k: Array, v: Array) -> None:
        """Such pages as numbers: k, v (n, 64, Hkv, D)."""
        ...

    def zip_attend(
        self,
        q: Array,
        zip: Array,
        raw: Array,
        slots: Array,
        fine: int,
        tables: Array,
        starts: Array,
        lo: Array,
        hi: Array,
        scale: float,
        out: Array,
        lse: Array | None = None,
    ) -> None:
        """``attend`` over pages of codes, but for those whose slots (pages,) int32 is not negative: they are found in
        raw, in "bf16". A page of codes is seen as a whole or not at all."""
        ...
