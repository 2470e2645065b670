"""ShadowKV's store: full pages while a prompt is read, then keys of low rank and values at a distance.

    full pages     bf16 token by token: prompts that are still read, what is not sealed of them, and all own output
    sealed pages   64 tokens of a prompt: A (64, rank) of its keys before rotation, int16, and for each key/value head
                   8 landmarks, each the mean of 8 rotated keys, in bf16: these stay near. Values, bf16: these
                   may lie in a file.
    records        of one prompt: the basis B, A B being all heads' keys side by side; and for each head the chunks of
                   8 tokens that their landmark tells least about, as exact rows
    buffers        of one stream: rows that were rebuilt and fetched for the last token and may be wanted again

Full pages, outliers and buffers are places of one array, so that one operator attends to all of them. Sealed pages and
records are pages of pools of their own, whose leases a stream holds from the moment it is let in: a prompt that has
been read always finds its room. Buffers are a cache: what is not there is rebuilt to the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from diastole.kernels.blas import one_thread
from diastole.kernels.shadows import Shadows
from diastole.slots import Companion
from diastole.state.arena import Arena, layered
from diastole.state.lease import Lease
from diastole.state.pages import GONE, PAGE, PagePool
from diastole.state.passive import Passive
from diastole.stores.cold import cold
from diastole.types import Array, PagedSpec, Stream

if TYPE_CHECKING:
    from diastole.kernels.table import Ops

CHUNK = 8  # tokens of a landmark
PIECE = 512  # tokens that are factorised at a time, at fixed places
SEALED, RECORD = "sealed", "record"  # names of leases
_SCRATCH = "shadowkv"


@dataclass(frozen=True, slots=True)
class Shape:
    """What the store is built for.

    Args:
        rank: columns of A.
        budget: tokens that a buffer holds for each head.
        outliers: chunks that stay exact for each head.
        local: last tokens of a prompt that stay exact.
        stretch: sealed pages for each full one.
        tier: where values are kept, see ``cold``.
        rope: what keys are rotated by; the factors are of keys that are not.
    """

    rank: int
    budget: int
    outliers: int
    local: int
    stretch: int
    tier: str
    rope: Array

    @property
    def chunks(self) -> int:
        """What a buffer holds for each head."""
        return self.budget // CHUNK

    @property
    def buffer_pages(self) -> int:
        return -(-self.budget // PAGE)

    @property
    def outlier_pages(self) -> int:
        return -(-self.outliers * CHUNK // PAGE)

    def sealed(self, prompt: int) -> int:
        """How many of a prompt's first tokens will be sealed: whole pages, and none where all of it would be chosen."""
        n = max(prompt - self.local, 0) // PAGE * PAGE
        most = self.budget + self.outliers * CHUNK
        return n if n >= most and prompt > most + self.local else 0

    @property
    def least(self) -> int:
        """Full pages of the shortest prompt that is sealed."""
        return (self.budget + self.outliers * CHUNK + self.local) // PAGE + 1


class ShadowKV(Passive):
    """Slot ``kv``. ``shadowkv.py`` in the techniques says how it is used.

    Attributes:
        buffers: each layer's full pages, then pages of buffers, then of outliers.
        a, marks, values: each layer's sealed pages: int16 (pages, 64, rank), uint8 (pages, Hkv, 8·D·2) of bf16,
            (pages, Hkv, 64, D) as full pages have them.
        basis, outliers: each layer's records: float32 (records, rank, Hkv·D); int32 chunks (records, Hkv, outliers).
        held: each layer's buffers: int32 chunks (buffers, Hkv, budget/8); -1: none.
    """

    fmt = "shadow"
    rows = "rows"  # form of full pages
    bare = passive = False

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.layout = "shadow"
        self.bytes_per_token = 0.0
        self.pools: dict[str, PagePool] = {}

    def attach(self, companion: Companion) -> None:
        raise NotImplementedError("only a selector brings companions, and no other selector reads this store")

    # ---- memory

    def alloc(self, spec: PagedSpec, pages: int, ops: Ops) -> None:
        self._ops, self._spec = ops, spec
        shape, layers = self.shape, range(spec.layers)
        g, d = spec.kv_heads, spec.head_dim
        self.records = max(pages // shape.least, 1)
        sealed = pages * shape.stretch
        size = ops.kv_page_bytes(self.rows, d)
        native = size == 2 * PAGE * d * 2
        number = np.dtype(np.uint16 if native else np.float32)  # what a full page is made of
        self.first_buffer = pages
        self.first_outlier = pages + self.records * shape.buffer_pages
        total = self.first_outlier + self.records * shape.outlier_pages

        def arrays(dtype: type | np.dtype[np.generic], *dims: int) -> list[Array]:
            count, item = int(np.prod(dims)), np.dtype(dtype)
            return [a.view(item).reshape(dims) for a in layered(ops, len(layers), (count * item.itemsize,))]

        self.buffers = arrays(np.uint8, total, g, size)
        # As (pages, Hkv, 2, 64, D); native pages are (64, 2, D), see rows.inl.
        shape_of = (total, g, PAGE, 2, d) if native else (total, g, 2, PAGE, d)
        cells = [b.view(number).reshape(shape_of) for b in self.buffers]
        self.cells = [c.swapaxes(2, 3) for c in cells] if native else cells
        self.a = arrays(np.int16, sealed, PAGE, shape.rank)
        self.marks = arrays(np.uint8, sealed, g, PAGE // CHUNK * d * 2)
        self.values = [cold(shape.tier, number, (sealed, g, PAGE, d), ops) for _ in layers]
        self.basis = arrays(np.float32, self.records, shape.rank, g * d)
        self.outliers = arrays(np.int32, self.records, g, shape.outliers)
        self.held = [np.full((self.records, g, shape.chunks), -1, np.int32) for _ in layers]
        exact = [b[self.first_outlier :].reshape(self.records, shape.outlier_pages, g, size) for b in self.buffers]
        self.layout = f"shadow-{shape.rank}-{shape.outliers}-{shape.local}-{spec.layers}x{g}x{d}"
        self.shadows = [self._shadows(layer) for layer in layers]
        self._near = Arena("", [*self.a, *self.marks])
        self._sealed = Arena(f"{self.layout}-sealed", [*self.a, *self.marks, *self.values])
        self._record = Arena(f"{self.layout}-record", [*self.basis, *self.outliers, *exact])
        self._full = Arena(self.layout, self.buffers)
        self.pools = {SEALED: PagePool(sealed, self._sealed), RECORD: PagePool(self.records, self._record)}
        self._owners: dict[int, object] = dict.fromkeys(
            range(self.records)
        )  # buffer -> its stream's note, oldest first
        inverse = shape.rope.copy()
        inverse[:, inverse.shape[1] // 2 :] *= -1
        self._inverse = inverse
        near = shape.stretch * (self._sealed if shape.tier == "ram" else self._near).page_bytes
        self.bytes_per_token = (self._full.page_bytes + near + self.stream_bytes / shape.least) / PAGE

    def _shadows(self, layer: int) -> Shadows:
        """A layer as the operators see it."""
        a, values = self.a[layer], self.values[layer]
        return Shadows(
            marks=self.marks[layer],
            a=a.view(np.uint8).reshape(len(a), -1),
            values=values.view(np.uint8).reshape(*values.shape[:2], -1),
            basis=self.basis[layer],
            outliers=self.outliers[layer],
            rope=self.shape.rope,
            buf=self.buffers[layer],
            held=self.held[layer],
            first=self.first_buffer,
        )

    @property
    def stream_bytes(self) -> int:
        """Of a stream's record and buffer."""
        return self._record.page_bytes + self.shape.buffer_pages * self._full.page_bytes

    def hot_bytes(self, stream: Stream) -> int:
        """What of a stream's state lies near: its full pages, sealed pages without values, record and buffer."""
        full = sum(p != GONE for p in stream.leases["kv"].places) * self._full.page_bytes
        if not self.is_sealed(stream):
            return full
        return full + len(stream.leases[SEALED].places) * self._near.page_bytes + self.stream_bytes

    def cold_bytes(self, stream: Stream) -> int:
        """What of it lies at a distance."""
        sealed = len(stream.leases[SEALED].places) if self.is_sealed(stream) else 0
        return sealed * (self._sealed.page_bytes - self._near.page_bytes)

    # ---- full pages

    def write(self, layer: int, rows: Array, k: Array, v: Array) -> None:
        self._ops.kv_write(self.buffers[layer], self.rows, rows, k, v)

    def read(self, layer: int, rows: Array) -> tuple[Array, Array]:
        shape = (len(rows), self._spec.kv_heads, self._spec.head_dim)
        k, v = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._ops.kv_read(self.buffers[layer], self.rows, rows, k, v)
        return k, v

    def attend(
        self,
        layer: int,
        q: Array,
        tables: Array,
        starts: Array,
        lo: Array,
        hi: Array,
        scale: float,
        out: Array,
        lse: Array | None = None,
    ) -> None:
        self._ops.attend(q, self.buffers[layer], self.rows, tables, starts, lo, hi, scale, out, lse)

    def copy_page(self, src: int, dst: int) -> None:
        self._full.copy_page(src, dst)

    def pack(self, pages: Sequence[int]) -> Array:
        return self._full.pack(pages)

    def unpack(self, pages: Sequence[int], data: Array) -> None:
        self._full.unpack(pages, data)

    # ---- a stream's life

    def settle(self, stream: Stream) -> dict[str, Lease] | None:
        n = self.shape.sealed(stream.given) if stream.speaks else 0
        if not n:
            return {}
        leases = {name: pool.lease() for name, pool in self.pools.items()}
        sealed, record = (self.pools[name].grow(leases[name], u) for name, u in ((SEALED, n), (RECORD, PAGE)))
        if sealed and record:
            return leases
        for lease in leases.values():
            lease.close()
        return None

    def is_sealed(self, stream: Stream) -> bool:
        """Whether its prompt is kept in the shadow."""
        return SEALED in stream.leases and stream.leases["kv"].places[:1] == [GONE]

    def buffer(self, stream: Stream) -> int:
        """The buffer that is a stream's until others need it more."""
        note = stream.scratch.setdefault(_SCRATCH, _Note())
        if self._owners.get(note.buffer) is not note:
            note.buffer = next(iter(self._owners))
            for held in self.held:
                held[note.buffer] = -1
        del self._owners[note.buffer]
        self._owners[note.buffer] = note  # now the youngest
        return note.buffer

    def seal(self, stream: Stream, upto: int) -> None:
        if SEALED not in stream.leases or self.is_sealed(stream):
            return
        with one_thread():
            self._seal(stream, upto)

    def _seal(self, stream: Stream, upto: int) -> None:
        note = stream.scratch.setdefault(_SCRATCH, _Note())
        n = stream.leases[SEALED].units
        table = np.array(stream.leases["kv"].places[: n // PAGE], np.int32)
        if not note.grams:
            width = self._spec.kv_heads * self._spec.head_dim
            note.grams = [np.zeros((width, width)) for _ in self.buffers]
        for piece in _pieces(note.counted, n):
            if piece.stop > upto:
                return
            for layer, gram in enumerate(note.grams):
                x = self._unrotated(self._keys(layer, table, piece), piece)
                gram += x.T @ x
            note.counted = piece.stop
        if upto >= stream.given:
            for layer, gram in enumerate(note.grams):
                self._seal_layer(layer, gram, table, stream)
            note.grams, note.counted = [], 0
            pool = stream.leases["kv"].pool
            assert isinstance(pool, PagePool)
            pool.vacate(stream.leases["kv"], n)

    def _seal_layer(self, layer: int, gram: Array, table: Array, stream: Stream) -> None:
        places = np.array(stream.leases[SEALED].places, np.int64)
        (record,) = stream.leases[RECORD].places
        _, vectors = np.linalg.eigh(gram.astype(np.float32))
        basis = np.ascontiguousarray(vectors[:, ::-1][:, : self.shape.rank])
        g, d = self._spec.kv_heads, self._spec.head_dim
        likeness, factors = [], []
        for piece in _pieces(0, len(table) * PAGE):
            k = self._keys(layer, table, piece)
            chunks = k.reshape(-1, CHUNK, g, d)
            marks = chunks.mean(1)
            likeness.append(_cosine(chunks, marks[:, None]).min(1))
            at = places[piece.start // PAGE : piece.stop // PAGE]
            rounded = _bf16(marks.reshape(len(at), PAGE // CHUNK, g, d).transpose(0, 2, 1, 3))
            self.marks[layer][at] = rounded.view(np.uint8).reshape(len(at), g, -1)
            factors.append(self._unrotated(k, piece) @ basis)
        a = np.concatenate(factors)
        scale = np.maximum(np.abs(a).max(0), np.finfo(np.float32).tiny) / 32767
        self.a[layer][places] = np.rint(a / scale).reshape(len(places), PAGE, -1)
        self.basis[layer][record] = basis.T * scale[:, None]
        self.values[layer][places] = self.cells[layer][table, :, 1]
        worst = np.argsort(np.concatenate(likeness), axis=0, kind="stable")[: self.shape.outliers].T
        self.outliers[layer][record] = np.sort(worst, axis=1)
        self._keep_exact(layer, table, record)

    def _keep_exact(self, layer: int, table: Array, record: int) -> None:
        """Copy a record's outliers, head by head, to its pages."""
        cells, t = self.cells[layer], np.arange(self.shape.outliers * CHUNK)
        to = self.first_outlier + record * self.shape.outlier_pages + t // PAGE
        for head, chunks in enumerate(self.outliers[layer][record]):
            token = chunks[t // CHUNK] * CHUNK + t % CHUNK
            cells[to, head, :, t % PAGE] = cells[table[token // PAGE], head, :, token % PAGE]

    def _keys(self, layer: int, table: Array, piece: slice) -> Array:
        """(n, Hkv, D) float32, as they are stored."""
        at = np.arange(piece.start, piece.stop)
        return self.read(layer, table[at // PAGE].astype(np.int64) * PAGE + at % PAGE)[0]

    def _unrotated(self, k: Array, piece: slice) -> Array:
        """(n, Hkv·D): in float32 little is lost by it, beside the rounding of what is stored. What is not finite, which
        spoils a stream's answer anyway, must not stop the factorisation: it counts as nothing."""
        x = np.nan_to_num(k, nan=0, posinf=0, neginf=0)
        self._ops.rope(x, np.arange(piece.start, piece.stop, dtype=np.int32), self._inverse)
        return x.reshape(len(x), -1)


@dataclass(eq=False, slots=True)
class _Note:
    """What the store remembers of a stream beside its leases: all of it can be made again."""

    buffer: int = -1
    counted: int = 0  # tokens in ``grams``
    grams: list[Array] = field(default_factory=list)  # of each layer XᵀX of its keys, while the prompt is read


def _pieces(first: int, last: int) -> Iterator[slice]:
    for at in range(first, last, PIECE):
        yield slice(at, min(at + PIECE, last))


def _cosine(a: Array, b: Array) -> Array:
    """Along the last axis."""
    product = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), product, out=np.ones_like(product), where=product > 0)


def _bf16(x: Array) -> Array:
    """Bits of bfloat16, rounded half to even."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
