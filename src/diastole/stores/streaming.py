"""StreamingKV: key and value rows in pages, of which streaming heads keep those at the beginning and the latest alone.

    page id      0   1   2   3   4   5            every page has a place for the heads that keep everything
    slots        0  -1  -1   3   1   2            and a slot among fewer for those that stream, while it is looked at

Each layer's array holds first the pages of the heads that keep everything, then the slots of the others. What a stream
will look at follows from its lease: its first pages, and those from the window before its next row on. What nobody will
keeps its slot until another page wants one, the longest unneeded first: prompts that begin alike may come back to it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from diastole.slots import Companion
from diastole.state.arena import Arena, layered
from diastole.state.lease import Lease
from diastole.state.pages import PAGE
from diastole.state.passive import Passive
from diastole.types import Array, KVFormat, PagedSpec, Stream

if TYPE_CHECKING:
    from diastole.kernels.table import Ops

STEP = 256  # tokens of a stream that come in one step, at most: the window of the first of them must still be there


class StreamingKV(Passive):
    """A store, and the rooms of its pages.

    Args:
        streams: which heads stream, (L, Hkv) bool.
        rows: form of all rows.
        sink, window: pages at a stream's beginning, and before a row's own, that these look at.
        context: most tokens of a stream.
        share: of all pages, so many have a slot at once, but never fewer than one stream may need; 0: as many as
            streams of the whole context need.
    """

    fmt = "streaming"
    bare = passive = False

    def __init__(self, streams: Array, rows: KVFormat, sink: int, window: int, context: int, share: float = 0) -> None:
        self.streams, self.rows, self.sink, self.window = streams, rows, sink, window
        self.most = sink + window + 2 * (STEP // PAGE + 2)  # with the last step and the next
        self.share = share or min(self.most / -(-context // PAGE), 1.0)
        self.layout = ""
        self.bytes_per_token = 0.0
        self.buffers: list[Array] = []
        self.leases: Collection[Lease] = ()  # all that hold pages
        self._companions: list[Companion] = []

    def attach(self, companion: Companion) -> None:
        self._companions.append(companion)

    def alloc(self, spec: PagedSpec, pages: int, ops: Ops) -> None:
        self._ops, self._spec = ops, spec
        size = ops.kv_page_bytes(self.rows, spec.head_dim)
        near = self.streams.sum(1)
        far = spec.kv_heads - near
        count = min(max(self.most, round(pages * self.share)), pages)
        ends = far * pages
        self.buffers = layered(ops, spec.layers, (int((ends + near * count).max()), 1, size))
        rank = np.where(self.streams, np.cumsum(self.streams, 1), np.cumsum(~self.streams, 1)) - 1
        columns = (
            np.where(self.streams, ends[:, None], 0) + rank,
            np.where(self.streams, near[:, None], far[:, None]),
            np.where(self.streams, count, pages),
            self.streams,
        )
        self.lanes = np.stack(columns, -1).astype(np.int64)  # (L, Hkv, 4): first, step, pages, whether it streams
        every = list(zip(self.buffers, near, ends, strict=True))
        whole = [b[:end].reshape(pages, -1, size) for b, n, end in every if n < spec.kv_heads]
        whole += [a for c in self._companions for a in c.alloc(spec, pages, ops)]
        self._far = Arena("", whole)
        self._near = Arena("", [b[end : end + n * count].reshape(count, -1, size) for b, n, end in every if n])
        self.slots = np.full(pages, -1, np.int32)
        self._owner = np.full(count, -1, np.int32)  # the page that has a slot
        self._used = np.zeros(count, np.int64)  # when it was last needed
        self._now = 0
        self._free = list(range(count - 1, -1, -1))
        self._last: tuple[Array, Array] | None = None
        beside = "".join(f"+{c.layout}" for c in self._companions)
        shape = f"{spec.layers}x{spec.kv_heads}x{spec.head_dim}-{self.sink}.{self.window}"
        self.layout = f"streaming-{self.rows}-{shape}{beside}"
        self.bytes_per_token = (self._far.page_bytes + self.share * self._near.page_bytes) / PAGE

    def held(self, lease: Lease) -> tuple[int, int]:
        """Bytes that a lease's pages take: of heads that keep everything, with what lies beside them; of the others, in
        slots that nobody else may have."""
        near = self._window(lease.places, lease.units - STEP)
        return len(lease.places) * self._far.page_bytes, len(near) * self._near.page_bytes

    # ---- rooms

    @property
    def rooms(self) -> StreamingKV:
        return self

    @property
    def free(self) -> int:
        """Slots that nobody needs."""
        return len(self._owner) - int(self._needed().sum())

    def take(self, page: int) -> None:
        """This page will be written to."""
        if self.slots[page] < 0:
            if not self._free:
                self._reclaim()
            self.slots[page] = self._free.pop()
            self._owner[self.slots[page]] = page
        self._used[self.slots[page]] = self._now

    def give(self, page: int) -> None:
        """Nobody holds it any more."""
        if (slot := int(self.slots[page])) >= 0:
            self._free.append(slot)
            self.slots[page] = self._owner[slot] = -1

    def lacks(self, page: int) -> bool:
        return bool(self.slots[page] < 0)

    def wanted(self, data: Array) -> int:
        """Of packed pages, those that need a slot."""
        return int(data[8 : 8 + int(data[:8].view(np.int64)[0])].sum())

    def _window(self, pages: Sequence[int], units: int) -> list[int]:
        """Of a stream's pages, those that rows from ``units`` on look at."""
        return [*pages[: self.sink], *pages[max(units // PAGE - self.window, self.sink) :]]

    def _needed(self) -> Array:
        """Which slots will be looked at by those that hold pages now: (slots,) bool."""
        needed = np.zeros(len(self._owner), bool)
        for lease in self.leases:
            slots = self.slots[self._window(lease.places, lease.units - STEP)]
            needed[slots[slots >= 0]] = True
        return needed

    def _reclaim(self) -> None:
        """Take the slots of some pages that nobody needs, the longest unneeded."""
        idle = np.flatnonzero(~self._needed())
        order = idle[np.argsort(self._used[idle], kind="stable")]
        for slot in order[: max(len(self._owner) // 16, 1)]:
            self.give(int(self._owner[slot]))

    # ---- a stream's life

    def span(self, stream: Stream) -> int:
        return STEP

    def seal(self, stream: Stream, upto: int) -> None:
        """Note when slots are needed, page by page of an answer and step by step of a prompt."""
        if upto % PAGE == 0 or upto <= stream.given:
            self._now += 1
            slots = self.slots[self._window(stream.leases["kv"].places, upto)]
            self._used[slots[slots >= 0]] = self._now

    def shareable(self, stream: Stream, units: int) -> int:
        """Of a beginning that was found, as much as ends where the window before it is still there. A stream's own rows
        are as any prompt's, so far as it can tell."""
        places = stream.leases["kv"].places
        while not stream.done and units and (self.slots[self._window(places[: -(-units // PAGE)], units)] < 0).any():
            units = (units - 1) // PAGE * PAGE
        return units

    # ---- rows

    def ids(self, layer: int, pages: Array) -> Array:
        """By what heads know pages (..., n): (..., Hkv, n)."""
        near = self.streams[layer][:, None]
        found: Array = np.where(near, self.slots[pages][..., None, :], pages[..., None, :]).astype(np.int32)
        return found

    def lists(self, rows: Array) -> Array:
        """Rows (T,) of pages as heads that keep everything know them, and as those that stream do: (2, T) int64."""
        if self._last is None or self._last[0] is not rows:
            near = self.slots[rows // PAGE].astype(np.int64) * PAGE + rows % PAGE
            self._last = rows, np.stack([rows, near])
        return self._last[1]

    def _cells(self, layer: int, rows: Array) -> Array:
        """Where rows (T,) lie in the layer's array, head by head: (T, Hkv) int64; negative: nowhere."""
        first, step, _, near = self.lanes[layer].T
        own = self.lists(rows)[near].T
        cells: Array = np.where(own < 0, -1, (first + own // PAGE * step) * PAGE + own % PAGE)
        return cells

    def write(self, layer: int, rows: Array, k: Array, v: Array) -> None:
        at = self._cells(layer, rows).ravel()
        each = (len(at), 1, k.shape[2])
        self._ops.kv_write(self.buffers[layer], self.rows, at, k.reshape(each), v.reshape(each))

    def read(self, layer: int, rows: Array) -> tuple[Array, Array]:
        """Rows as stored, dequantised; zeros where a head keeps nothing any more."""
        cells = self._cells(layer, rows)
        k, v = np.zeros((2, *cells.shape, self._spec.head_dim), np.float32)
        there = cells >= 0
        own = np.empty((2, int(there.sum()), 1, k.shape[2]), np.float32)
        self._ops.kv_read(self.buffers[layer], self.rows, cells[there], own[0], own[1])
        k[there], v[there] = own[:, :, 0]
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
        """See ``KVStore.attend``. tables (B, P) of pages, lo and hi (T,); or, by heads, (V, Hkv, P) of what these know
        pages by, and (T, Hkv)."""
        if tables.ndim == 2:
            tables = self.ids(layer, tables)
            lo, hi = (np.repeat(bound[:, None], tables.shape[1], 1) for bound in (lo, hi))
        group = q.shape[1] // tables.shape[1]
        for g, (first, step, _, _) in enumerate(self.lanes[layer].tolist()):
            heads = slice(g * group, (g + 1) * group)
            seen, total = np.empty((len(q), group, q.shape[2]), np.float32), np.empty((len(q), group), np.float32)
            cells = np.where(tables[:, g] < 0, 0, first + tables[:, g] * step).astype(np.int32)
            low, high = (np.ascontiguousarray(bound[:, g]) for bound in (lo, hi))
            pages, own = self.buffers[layer], q[:, heads]
            self._ops.attend(own, pages, self.rows, cells, starts, low, high, scale, seen, total)
            out[:, heads] = seen
            if lse is not None:
                lse[:, heads] = total

    # ---- pages on the move

    def copy_page(self, src: int, dst: int) -> None:
        self._far.copy_page(src, dst)
        self._near.copy_page(self.slots[src], self.slots[dst])

    def pack(self, pages: Sequence[int]) -> Array:
        """Of all pages of a stream: which of them have a slot that it needs, a byte each; their whole parts; these."""
        at = np.asarray(pages, np.int64)
        needed = np.zeros(len(at), bool)
        needed[self._window(range(len(at)), (len(at) - 1) * PAGE - STEP)] = True
        needed &= self.slots[at] >= 0
        slots = self.slots[at[needed]].tolist()
        head = [np.array([len(at)], np.int64).view(np.uint8), needed.view(np.uint8)]
        return np.concatenate([*head, self._far.pack(pages).ravel(), self._near.pack(slots).ravel()])

    def unpack(self, pages: Sequence[int], data: Array) -> None:
        at = np.asarray(pages, np.int64)
        needed = data[8 : 8 + len(at)].astype(bool)
        for page, is_needed in zip(at.tolist(), needed, strict=True):
            (self.take if is_needed else self.give)(page)
        first = 8 + len(at)
        last = first + len(at) * self._far.page_bytes
        self._far.unpack(pages, data[first:last].reshape(len(at), -1))
        slots = self.slots[at[needed]].tolist()
        self._near.unpack(slots, data[last:].reshape(len(slots), -1))
