"""Rings: hidden states between two processes of one machine, through shared memory, each side waiting asleep.

    memory   counters of the far side (seconds, messages) | slot 0 | slot 1 | ...
    slot     layer, rows | states (rows, width) float32, or bfloat16 as uint16

Two event counters say what has come and what has been done. Messages are worked off in order, and there are never more
of them than slots, so nobody can wait for the other for ever.
"""

from __future__ import annotations

import mmap
import os
import select
from typing import Literal

import msgspec
import numpy as np

from diastole.types import Array

HEAD = 64  # bytes before the states of a slot, and of the counters
STOP = -1  # in place of a layer
Transfer = Literal["f32", "bf16"]


class Gone(ConnectionError):
    """The other side has ended."""


class Split(msgspec.Struct):
    """That the services of an engine have their FFNs apart, and how."""

    micro_batches: int = 3
    transfer: Transfer = "f32"


class Shape(msgspec.Struct):
    """What both sides agree on."""

    slots: int
    rows: int  # of a slot
    width: int
    transfer: Transfer = "f32"

    @property
    def item(self) -> int:
        return 4 if self.transfer == "f32" else 2

    @property
    def slot(self) -> int:
        """Bytes."""
        return HEAD + self.rows * self.width * self.item

    @property
    def size(self) -> int:
        """Bytes of all."""
        return HEAD + self.slots * self.slot


class Ring:
    """One side's view.

    Args:
        memory: descriptor of ``shape.size`` bytes.
        hear: event counter that the other side raises.
        tell: that this side raises.
        other: descriptor of the other side's process, readable once it has ended; -1: its end is told by a hang-up.
    """

    def __init__(self, shape: Shape, memory: int, hear: int, tell: int, other: int) -> None:
        self.shape, self._hear, self._tell = shape, hear, tell
        self._map = mmap.mmap(memory, shape.size)
        self._all = np.frombuffer(self._map, np.uint8)
        self.busy = self._all[:16].view(np.float64)  # the far side's: seconds of work, messages
        self._poll = select.poll()
        self._poll.register(hear, select.POLLIN)
        self._other = other
        if other >= 0:
            self._poll.register(other, select.POLLIN)

    def _slot(self, nth: int) -> Array:
        at = HEAD + nth % self.shape.slots * self.shape.slot
        return self._all[at : at + self.shape.slot]

    def put(self, nth: int, layer: int, x: Array) -> None:
        """Message number ``nth``: x (T, d) float32."""
        slot = self._slot(nth)
        slot[:16].view(np.int64)[:] = layer, len(x)
        self._states(slot, len(x))[:] = x if self.shape.transfer == "f32" else rounded(x)
        os.eventfd_write(self._tell, 1)

    def take(self, nth: int, x: Array) -> int:
        """Wait for message number ``nth``; its states go to x, whose first rows are theirs. Its layer.

        Raises:
            Gone: the other side has ended.
        """
        self.wait()
        slot = self._slot(nth)
        layer, rows = slot[:16].view(np.int64).tolist()
        if layer == STOP:
            return STOP
        if not 0 <= rows <= min(self.shape.rows, len(x)):
            raise Gone(f"a message of {rows} rows is none of ours")
        states = self._states(slot, rows)
        if self.shape.transfer == "f32":
            x[:rows] = states
        else:
            x[:rows].view(np.uint32)[:] = states.astype(np.uint32) << 16
        self.rows = rows
        return int(layer)

    def _states(self, slot: Array, rows: int) -> Array:
        kind = np.float32 if self.shape.transfer == "f32" else np.uint16
        end = HEAD + rows * self.shape.width * self.shape.item
        return slot[HEAD:end].view(kind).reshape(rows, self.shape.width)

    def wait(self) -> None:
        """Until the other side has raised its counter once more.

        Raises:
            Gone: it has ended.
        """
        while True:
            ready = dict(self._poll.poll())
            if self._hear in ready:
                os.eventfd_read(self._hear)
                return
            if self._other in ready:
                raise Gone("the other side has ended")

    def stop(self, nth: int) -> None:
        """Tell the other side to end."""
        self._slot(nth)[:16].view(np.int64)[:] = STOP, 0
        os.eventfd_write(self._tell, 1)


def rounded(x: Array) -> Array:
    """float32 -> bfloat16 as uint16, to nearest even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
