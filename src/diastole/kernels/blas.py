"""numpy's linear algebra on the caller's thread alone: its own pool of threads would fight with ours for the cores, and
a product of microseconds would then take milliseconds."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def one_thread() -> AbstractContextManager[object]:
    """While inside, in the whole process."""
    limited: AbstractContextManager[object] = _controller().limit(limits=1, user_api="blas")
    return limited
