"""How much the C library keeps of what is given back to it.

Packed states of preempted streams come and go by the megabyte: without a fixed threshold the library begins to keep
what they leave, tens of megabytes that never come back. But with one, it also gives the end of its heap back after
every array of a step, and each of the next step's pages has to be cleared anew: 15 % of the time of a step of
pictures. So pieces of a megabyte and more go at once, and of the smaller ones' heap so much stays.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

PIECE, HEAP = 2**20, 32 * 2**20  # bytes
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(PIECE), "MALLOC_TRIM_THRESHOLD_": str(HEAP)}  # of a process to come
_TRIM, _MMAP = -1, -3  # glibc's numbers


def settle() -> None:
    """The same in this process, where the library is glibc."""
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP, PIECE)
        library.mallopt(_TRIM, HEAP)
