"""Ledger: the streams of one service from arrival to end, and who holds state.

A stream waits (no leases), runs (leases), or is parked (its state packed on the host tier). Admission takes one after
the other, by a policy, and stops at the first that finds no room. When pages run out the youngest running stream gives
way, so the oldest always gets on and every stream ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count

from diastole.engine.admission import Admission, InOrder
from diastole.engine.deadlines import Deadlines
from diastole.engine.peak import Now, Room
from diastole.loops.base import Loop
from diastole.metrics import Meter
from diastole.slots import CostModel
from diastole.state.host import HostTier
from diastole.state.lease import Blob, Lease, Pool, Trusting
from diastole.types import Ended, Event, Grant, Outcome, Stream, UserError

SWAP_BYTES_PER_SECOND = 4e9  # packing plus unpacking; only its size against recomputation matters


class Ledger:
    """Streams of one service.

    Args:
        pools: by the name under which the loop leases from them.
        host: shelf for preempted state; None: preempted streams are always recomputed.
        most: streams that may hold state at once.
        admission: who of those who wait comes next.
        room: whether there is memory enough to let one more in.
    """

    def __init__(
        self,
        loop: Loop,
        pools: dict[str, Pool],
        cost: CostModel,
        meter: Meter,
        host: HostTier | None,
        most: int,
        admission: Admission | None = None,
        room: Room | None = None,
    ) -> None:
        self.loop, self.pools, self.cost, self.meter, self.host, self.most = loop, pools, cost, meter, host, most
        self.admission, self.room = admission or InOrder(), room or Now()
        self.running: list[Stream] = []  # both lists in order of arrival
        self.waiting: list[Stream] = []
        self.held: dict[str, Stream] = {}  # by request: these have said something and wait to go on elsewhere
        self._leaving: set[str] = set()  # requests whose streams are to be held once they have
        self._alive: dict[str, int] = {}  # request id -> choices that have not ended
        self._deadlines = Deadlines()
        self._serial = count()
        self._pressed = False  # somebody starves: nobody else is let in

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting) + len(self.held)

    def __contains__(self, id: str) -> bool:
        return id in self._alive

    @property
    def streams(self) -> Iterable[Stream]:
        return (*self.running, *self.waiting, *self.held.values())

    # ---- arrival

    def add(self, stream: Stream, now: float, hold: bool = False) -> None:
        """A new stream; it waits until ``admit``.

        Args:
            hold: once it has said something it is held, with its state, until it is ``released``.
        """
        self._take_in(stream)
        self.meter.arrived(stream.req.id, now, stream.given, stream.req.slo)
        self.meter.count("prompt_tokens", stream.given)
        if hold:
            self._leaving.add(stream.req.id)

    def take_over(self, stream: Stream, now: float, state: Mapping[str, Blob]) -> None:
        """A stream that comes from elsewhere, with the state that it had there; if there is no shelf for this, it is
        computed again."""
        self._take_in(stream)
        self.meter.taken_over(stream.req.id, now, now - stream.req.arrival, stream.req.slo)
        stream.emitted_at = now
        if state and self.host is not None and self.host.put(stream.serial, state):
            stream.done = state["kv"].units

    def vet(self, state: Mapping[str, Blob], known: int) -> None:
        """Look at state that comes from outside, of a stream that knows so many units.

        Raises:
            UserError: it is not such as streams have here, or it cannot be told.
        """
        pool = self.pools.get("kv")
        if not (state.keys() == {"kv"} and isinstance(pool, Trusting)):
            raise UserError(f"state in the forms {', '.join(state)} cannot be taken over here", param="state")
        pool.vet(state["kv"], known)

    def _take_in(self, stream: Stream) -> None:
        stream.serial = next(self._serial)
        self._alive[stream.req.id] = 1
        self._deadlines.add(stream.req)
        self.waiting.append(stream)

    def admit(self, now: float) -> None:
        """Give state to those who wait, one after the other, while there is room."""
        if self._pressed and self.running:
            return
        while self.waiting and len(self.running) < self.most:
            index = self.admission.next(self.waiting, now)
            stream = self.waiting[index]
            if (self.running and not self.room.has(self.running, stream)) or not self._settle_in(stream):
                return
            self.waiting.pop(index)
            _insert(self.running, stream)
            self.meter.admitted(stream.req.id, now)

    def _settle_in(self, stream: Stream) -> bool:
        if self.host is None or stream.serial not in self.host:
            fresh = self.loop.admit(stream)
            if fresh and stream.speaks:  # who only reads does not look for a cached beginning
                self.meter.count("prefix_cache_queries", stream.known)
                self.meter.count("prefix_cache_hits", stream.done)
            return fresh
        leases: dict[str, Lease] = {}
        for name, blob in self.host.get(stream.serial).items():
            lease = self.pools[name].unpack(blob)
            if lease is None:
                for taken in leases.values():
                    taken.close()
                return False
            leases[name] = lease
        stream.leases = leases
        self.host.drop(stream.serial)
        return True

    # ---- after a step

    def settle(self, outcome: Outcome, now: float) -> list[Event]:
        """Take in what a commit brought; returns its events."""
        for stream in outcome.born:
            stream.serial = next(self._serial)
            self._alive[stream.req.id] += 1
            if not stream.finished:
                _insert(self.running, stream)
        self.meter.emitted([(e.id, e.units) for e in outcome.events if e.speaks], now)
        over = [e for e in outcome.events if e.final]
        for event in over:
            self._end(event.id, now, getattr(event.data, "finish", None) or "stop")
        if over:
            for stream in self.running:
                if stream.finished:
                    self.room.ended(stream)
            self.running = [s for s in self.running if not s.finished]
        if self._leaving:
            self._hold(outcome.events)
        return outcome.events

    def _hold(self, events: Sequence[Event]) -> None:
        spoken = {e.id for e in events if not e.final} & self._leaving
        self._leaving -= {e.id for e in events}
        for stream in [s for s in self.running if s.req.id in spoken]:
            self.running.remove(stream)
            self.held[stream.req.id] = stream

    def packed(self, id: str) -> Mapping[str, Blob]:
        """The state of a stream that is held, as bytes.

        Raises:
            KeyError: it is not.
        """
        return {name: lease.pool.pack(lease) for name, lease in self.held[id].leases.items()}

    def release(self, id: str) -> bool:
        """A held stream goes on elsewhere: give its state back. False: none is held by this name."""
        stream = self.held.pop(id, None)
        if stream is None:
            return False
        stream.finished = True
        self.loop.close(stream)
        del self._alive[id]
        self._deadlines.discard(id)
        self.meter.handed_over(id)
        return True

    def _end(self, id: str, now: float, reason: str) -> None:
        self._alive[id] -= 1
        if self._alive[id] == 0:
            del self._alive[id]
            self._leaving.discard(id)
            self._deadlines.discard(id)
            self.meter.ended(id, now, reason)

    # ---- leaving early

    def abort(self, id: str, now: float, reason: str = "abort", choice: int | None = None) -> list[Stream]:
        """End all streams of a request now, or one of its choices. Returns them; empty when unknown or over."""
        gone = [s for s in self.streams if s.req.id == id and choice in (None, s.index)]
        for stream in gone:
            stream.finished = True
            self.loop.close(stream)
            if self.host is not None:
                self.host.drop(stream.serial)
        if gone:
            self.running = [s for s in self.running if not s.finished]
            self.waiting = [s for s in self.waiting if not s.finished]
            self.held.pop(id, None)
            for _ in gone:
                self._end(id, now, reason)
        return gone

    def end(self, id: str, now: float, why: Ended) -> list[Event]:
        """End a request now because the engine wills it; the last events of its streams."""
        gone = self.abort(id, now, why.finish)
        return [Event(id, stream.index, why, True, now, stream.speaks) for stream in gone]

    def overdue(self, now: float) -> list[Event]:
        """End the requests whose promise for the whole has passed, running, waiting or parked; their last events."""
        return [e for id in self._deadlines.passed(now) for e in self.end(id, now, Ended("deadline"))]

    @property
    def next_deadline(self) -> float:
        """When ``overdue`` has something to do next, in seconds; infinite: not at all, as things are."""
        return self._deadlines.next

    def relieve(self, starved: Sequence[Stream]) -> None:
        """Make room for the oldest starved stream by preempting the youngest that holds state, or itself if it is that.

        Called after every step; while somebody starves nobody is admitted.
        """
        self._pressed = bool(starved)
        if not starved:
            return
        oldest = min(starved, key=lambda s: s.serial)
        holders = [s for s in self.running if s is oldest or any(x.places for x in s.leases.values())]
        if holders != [oldest]:  # otherwise the step that just ended made the room
            self.preempt(holders[-1])

    def preempt(self, stream: Stream) -> None:
        """Take a stream's state away: packed if that is predicted cheaper than computing it again and there is room."""
        swapped = self.host is not None and stream.done > 0 and self._swap_out(stream, self.host)
        self.loop.close(stream)
        if not swapped:
            self.loop.rewind(stream)
        self.running.remove(stream)
        _insert(self.waiting, stream)
        self.meter.count("preemptions")
        self.meter.count("swaps", int(swapped))

    def _swap_out(self, stream: Stream, host: HostTier) -> bool:
        blobs = {name: self.pools[name].pack(lease) for name, lease in stream.leases.items()}
        redo = self.cost.predict([Grant(Stream(stream.req, stream.index, stream.known), stream.done)])
        if sum(b.nbytes for b in blobs.values()) / SWAP_BYTES_PER_SECOND > redo:
            return False
        return host.put(stream.serial, blobs)

    def check(self, fail: Callable[[str], None]) -> None:
        """Compare with what the pools say when nothing runs; call ``fail`` with each difference."""
        for stream in self.waiting:
            if stream.leases:
                fail(f"stream {stream.serial} waits but holds leases")
        if set(self._alive) != {s.req.id for s in self.streams}:
            fail("the requests that are alive are not those that have streams")
        if self.host is not None and len(self.host) > len(self.waiting):
            fail("the host tier holds state of streams that are gone")


def _insert(streams: list[Stream], stream: Stream) -> None:
    """Keep the order of arrival."""
    at = len(streams)
    while at and streams[at - 1].serial > stream.serial:
        at -= 1
    streams.insert(at, stream)
