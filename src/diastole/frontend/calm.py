"""Short pauses of the garbage collector: what an engine has loaded is not looked through again and again.

A full collection looks at every object there is. That takes 16 to 19 ms in an engine's process with one small language
model (``gc.collect()`` there), in which no step runs, and nearly all of these objects live as long as the engine.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Asked = TypeVar("Asked")
Loaded = TypeVar("Loaded")


@contextmanager
def calm() -> Iterator[None]:
    """Of a process that is an engine's own: leave out what is there already, for as long."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def stirring(load: Callable[[Asked], Loaded]) -> Callable[[Asked], Loaded]:
    """Who loads a model anew lets an old one go, which must be found then: from there on all is looked at again."""

    def loading(asked: Asked) -> Loaded:
        gc.unfreeze()
        return load(asked)

    return loading
