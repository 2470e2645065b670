"""Fashion-MNIST: 70,000 grey pictures of clothes in ten classes (MIT), made smaller."""

from __future__ import annotations

import gzip
import tarfile
from functools import cache
from typing import NamedTuple

import numpy as np

from diastole.assets import pull
from diastole.types import Array

LABELS = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
SIDE = 16  # pixels, of 28 with a rim of two and then two by two made one


class Set(NamedTuple):
    """x (N, SIDE, SIDE) float32 from -1 to 1, y (N,) int64."""

    x: Array
    y: Array


@cache
def fashion() -> tuple[Set, Set]:
    """To train with, and to judge by.

    Raises:
        UserError: the asset cannot be had.
    """
    with tarfile.open(pull("fashion-mnist")) as archive:
        files = {m.name.rpartition("/")[2]: archive.extractfile(m) for m in archive if m.isfile()}

        def read(name: str, head: int) -> Array:
            stream = files[name]
            assert stream is not None
            return np.frombuffer(gzip.decompress(stream.read()), np.uint8, offset=head)

        sets = []
        for name in ("train", "t10k"):
            raw = read(f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
            sets.append(Set(smaller(raw), read(f"{name}-labels-idx1-ubyte.gz", 8).astype(np.int64)))
    return sets[0], sets[1]


def smaller(raw: Array) -> Array:
    """raw (N, 28, 28) uint8 -> (N, SIDE, SIDE) float32 from -1 to 1."""
    x = np.pad(raw.astype(np.float32), ((0, 0), (2, 2), (2, 2))).reshape(-1, SIDE, 2, SIDE, 2).mean((2, 4))
    found: Array = x / 127.5 - 1
    return found
