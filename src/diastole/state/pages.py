"""PagePool: key/value rows in pages, shared by reference count and copied on write.

    a lease of 150 units with 64-unit pages        page table  [7, 3, 9]
    unit   0 ........ 63 | 64 ....... 127 | 128 ... 149 | 150 .. 191
    page         7       |       3        |            9
                                            held          writable after grow(192)

A page may be held by several leases (forks, prefix hits) and by the prefix cache; whoever wants to write into a page
that others hold gets a copy first. A lease may give back its first pages and keep the others in their places
(``vacate``): what those held is kept in another form elsewhere, or looked at by nobody any more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import Protocol

import numpy as np

from diastole.slots import Rooms
from diastole.state.lease import Blob, Lease
from diastole.state.prefix import Key, PrefixCache
from diastole.types import Array, UserError

PAGE = 64  # units per page: what the native kernels read
GONE = -1  # in the place of a page that was given back


class Store(Protocol):
    """The bytes behind the pages."""

    layout: str

    def copy_page(self, src: int, dst: int) -> None: ...

    def pack(self, pages: Sequence[int]) -> Array: ...

    def unpack(self, pages: Sequence[int], data: Array) -> None: ...


class PagePool:
    """A fixed number of pages.

    Args:
        pages: how many.
        store: holds their bytes.
        prefix: keeps finished prefixes for reuse; None: no reuse. A page that it is offered needs no room any more, or
            its rooms can do without telling when such a page is had by others (``Rooms.leases``).
        rooms: where pages need room to be written to; None: they do not.
    """

    def __init__(self, pages: int, store: Store, prefix: PrefixCache | None = None, rooms: Rooms | None = None) -> None:
        self.pages, self.rooms = pages, rooms
        self.store = store
        self.prefix = prefix
        self.refs = [0] * pages
        self._open: set[Lease] = set()
        if rooms is not None:
            rooms.leases = self._open
        self._free = list(range(pages - 1, -1, -1))

    # ---- room

    @property
    def free(self) -> int:
        """Pages that a lease could get now: unused ones and those that only the prefix cache holds."""
        return len(self._free) + (self.prefix.idle if self.prefix else 0)

    @property
    def used(self) -> int:
        return self.pages - self.free

    # ---- the verbs

    def lease(self, key: Key | None = None) -> Lease:
        """An empty lease, or one that starts with the longest known prefix of ``key``."""
        if self.prefix is None or key is None:
            return self._lease([], 0)
        hit = self.prefix.match(key)
        lease = self._shared(hit.pages, hit.units)
        lease.published, lease.node = hit.whole, hit.node
        return lease

    def _shared(self, places: Sequence[int], units: int) -> Lease:
        for page in _held(places):
            self._take(page)
        return self._lease(list(places), units)

    def _lease(self, places: list[int], units: int) -> Lease:
        lease = Lease(self, places, units)
        self._open.add(lease)
        return lease

    def shorten(self, lease: Lease, units: int) -> None:
        """Let go of what a fresh lease has beyond ``units``, whole pages: they will be computed again."""
        keep = units // PAGE
        for page in lease.places[keep:]:
            self._drop(page)
        del lease.places[keep:]
        while lease.published > keep:
            lease.published, lease.node = lease.published - 1, lease.node.parent
        if not keep:
            lease.node = None
        lease.units = units

    def fits(self, lease: Lease, units: int) -> bool:
        """Whether ``grow`` would find room."""
        shared, missing = self._demand(lease, units)
        # A page that only the cache shares becomes evictable as soon as this lease has its own copy.
        returned = sum(self.refs[lease.places[i]] == 2 and self._cached(lease.places[i]) for i in shared)
        room = self.rooms is None or min(len(shared) + missing, self.rooms.most) <= self.rooms.free
        return room and len(shared) - returned + missing <= self.free

    def grow(self, lease: Lease, units: int) -> bool:
        places, refs = lease.places, self.refs
        pages, last = len(places), lease.units // PAGE
        if units <= pages * PAGE and last == pages - 1 and refs[places[last]] == 1:
            lease.units = max(lease.units, units)  # the usual case of a decode step
            return True
        if not self.fits(lease, units):
            return False
        shared, missing = self._demand(lease, units)
        for i in shared:
            self._own(lease, i)
        lease.places.extend(self._room() for _ in range(missing))
        lease.units = max(lease.units, units)
        return True

    def _room(self) -> int:
        """A new page that may be written to."""
        page = self._alloc()
        if self.rooms is not None:
            self.rooms.take(page)
        return page

    def _demand(self, lease: Lease, units: int) -> tuple[list[int], int]:
        """Which held pages would be written although others hold them too, and how many new pages are needed."""
        shared = [i for i in range(lease.units // PAGE, len(lease.places)) if self.refs[lease.places[i]] > 1]
        return shared, max(-(-units // PAGE) - len(lease.places), 0)

    def _own(self, lease: Lease, i: int) -> None:
        old = lease.places[i]
        if self.free == 0:  # then only the cache shares it: it forgets the page, and no copy is needed
            self._forget(old)
            return
        lease.places[i] = self._room()
        self.store.copy_page(old, lease.places[i])
        self._drop(old)

    def vacate(self, lease: Lease, upto: int) -> None:
        """Give back the pages whose units are all below ``upto``; the lease stays as long as it is."""
        for i, page in enumerate(lease.places[: upto // PAGE]):
            if page != GONE:
                lease.places[i] = GONE
                self._drop(page)

    def truncate(self, lease: Lease, units: int) -> None:
        keep = -(-units // PAGE)
        for page in _held(lease.places[keep:]):
            self._drop(page)
        del lease.places[keep:]
        lease.units = units
        if lease.published > units // PAGE:
            raise ValueError("published pages cannot be rolled back")

    def fork(self, lease: Lease) -> Lease:
        twin = self._shared(lease.places, lease.units)
        twin.published, twin.node = lease.published, lease.node
        return twin

    def publish(self, lease: Lease, key: Key, upto: int) -> None:
        """Offer the pages whose units are all below ``upto`` (final rows) to the prefix cache."""
        if self.prefix is None or lease.published >= upto // PAGE or lease.places[lease.published] == GONE:
            return
        for i in range(lease.published, upto // PAGE):
            page = lease.places[i]
            lease.node, kept = self.prefix.insert(lease.node, key, i, page)
            if kept != page and self.rooms is not None and self.rooms.lacks(kept):
                self.prefix.idle -= self._only_cached(kept)
                self.prefix.replace(lease.node, page)
                self._drop(kept)
                kept = page
            if kept == page:
                self.refs[page] += 1  # the cache's own hold; this lease holds it too, so it is not idle
            else:  # somebody computed the same page first: rows are batch-invariant, so hold theirs and free ours
                self._take(kept)
                lease.places[i] = kept
                self._drop(page)
        lease.published = upto // PAGE

    def close(self, lease: Lease) -> None:
        self._open.discard(lease)
        for page in _held(lease.places):
            self._drop(page)
        lease.places.clear()
        lease.units = 0

    def pack(self, lease: Lease) -> Blob:
        at = np.flatnonzero(np.array(lease.places, np.int64) != GONE)
        return Blob(self.store.layout, lease.units, {"pages": self.store.pack(_held(lease.places)), "at": at})

    def vet(self, blob: Blob, known: int) -> None:
        """See ``Trusting``. Only streams that hold all their pages can come from outside.

        Raises:
            UserError: another layout, or arrays that are not those of so many units.
        """
        blob.expect(self.store.layout)
        count = -(-blob.units // PAGE)
        like = self.store.pack([0])
        wanted = {"pages": (like.dtype, (count, *like.shape[1:])), "at": (np.dtype(np.int64), (count,))}
        found = {name: (a.dtype, a.shape) for name, a in blob.data.items()}
        if not 0 < blob.units < known or found != wanted or (blob.data["at"] != np.arange(count)).any():
            message = f"packed state of {blob.units} tokens with {found} is none of a stream of {known} tokens here"
            raise UserError(f"{message:.400}", param="state", code="state_mismatch")

    def unpack(self, blob: Blob) -> Lease | None:
        blob.expect(self.store.layout)
        at: Array = blob.data["at"]
        data = blob.data["pages"]
        if len(at) > self.free or (self.rooms is not None and self.rooms.wanted(data) > self.rooms.free):
            return None
        lease = self._lease([GONE] * -(-blob.units // PAGE), blob.units)
        for i in at.tolist():
            lease.places[i] = self._alloc()
        self.store.unpack(_held(lease.places), data)
        return lease

    # ---- for kernels

    @staticmethod
    def rows(tables: Array, owner: Array, unit: Array) -> Array:
        """Physical rows of units: tables (B, P) of ``tables``, owner (T,) rows of it, unit (T,) int32 -> (T,) int64."""
        return tables[owner, unit // PAGE].astype(np.int64) * PAGE + unit % PAGE

    @staticmethod
    def tables(leases: Sequence[Lease]) -> Array:
        """Page ids of several leases, padded with zeros: (B, P) int32."""
        longest = max((len(x.places) for x in leases), default=0)
        rows = [x.places + [0] * (longest - len(x.places)) for x in leases]
        return np.array(rows, np.int32).reshape(len(leases), longest)

    # ---- reference counts

    def _alloc(self) -> int:
        if not self._free:
            self._evict()
        page = self._free.pop()
        self.refs[page] = 1
        return page

    def _evict(self) -> None:
        assert self.prefix is not None  # grow() saw that there is room
        try:
            page = self.prefix.evict(self._only_cached)
        except LookupError:  # whoever holds what continues an idle page has vacated that one
            self._forget(next(p for p in self.prefix.pages() if self._only_cached(p)))
            return
        self.refs[page] = 0
        self._free.append(page)

    def _forget(self, page: int) -> None:
        """Let the cache forget a page and all that continue it."""
        assert self.prefix is not None
        for gone in self.prefix.forget(page):
            self.refs[gone] -= 1
            if self.refs[gone] == 0:
                self.prefix.idle -= 1
                self._free.append(gone)

    def _only_cached(self, page: int) -> bool:
        return self.refs[page] == 1

    def _take(self, page: int) -> None:
        if self.refs[page] == 1 and self.prefix is not None and self._cached(page):
            self.prefix.idle -= 1
        self.refs[page] += 1

    def _drop(self, page: int) -> None:
        self.refs[page] -= 1
        if self.refs[page] == 0:
            self._free.append(page)
            if self.rooms is not None:
                self.rooms.give(page)
        elif self.refs[page] == 1 and self.prefix is not None and self._cached(page):
            self.prefix.idle += 1

    def _cached(self, page: int) -> bool:
        return self.prefix is not None and page in self.prefix

    def check(self, leases: Collection[Lease], fail: Callable[[str], None]) -> None:
        """Compare the reference counts with what is really held; call ``fail`` with each difference."""
        held = [0] * self.pages
        cached = self.prefix.pages() if self.prefix else ()
        for page in chain(cached, *(_held(lease.places) for lease in leases)):
            held[page] += 1
        if self._open != set(leases):
            fail(f"{len(self._open)} leases are open, and {len(set(leases))} known")
        for page, (have, want) in enumerate(zip(self.refs, held, strict=True)):
            if have != want:
                fail(f"page {page} counts {have} owners but has {want}")
        if sorted(self._free) != [p for p, n in enumerate(held) if n == 0]:
            fail("the free list is not the set of pages without owner")
        if self.prefix and self.prefix.idle != sum(held[p] == 1 for p in self.prefix.pages()):
            fail("the count of idle cached pages is wrong")


def _held(places: Sequence[int]) -> list[int]:
    return [p for p in places if p != GONE]
