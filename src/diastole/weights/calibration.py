"""Calibrations: what was measured of one model, once, for one technique, kept as a safetensors file.

A technique looks for its calibration at the place that the user names, else beside the model's file, else among those
that come with Diastole. ``diastole calibrate`` makes them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from diastole.slots import Facts
from diastole.types import Array, UserError

VERSION = "1"  # of what the files mean
LARGEST = 64 << 20  # bytes
SHIPPED = Path(__file__).parent / "calibrations"


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured, and of what."""

    tensors: Mapping[str, Array]
    about: Mapping[str, str]  # technique, fingerprint, heads, version; for people: rope, texts, tokens

    @property
    def id(self) -> str:
        """Changes with the numbers."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            digest.update(name.encode() + np.ascontiguousarray(self.tensors[name]).tobytes())
        return digest.hexdigest()[:12]

    def write(self, path: Path) -> None:
        """Keep it, whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(save(dict(self.tensors), dict(self.about)))
            part.replace(path)
        except OSError as e:
            raise UserError(
                f"{path} cannot be written ({e.strerror}): name another place with --out", param="out"
            ) from None


def geometry(facts: Facts) -> str:
    """The head layout in words: 30 layers of 9 query and 3 key/value heads of 64."""
    return f"{facts.layers} layers of {facts.heads} query and {facts.kv_heads} key/value heads of {facts.head_dim}"


def about(technique: str, facts: Facts) -> dict[str, str]:
    """What a calibration must say of itself to be taken for this model."""
    return {
        "technique": technique,
        "fingerprint": facts.fingerprint,
        "heads": geometry(facts),
        "version": VERSION,
    }


def beside(technique: str, facts: Facts) -> Path:
    """Its place beside the model's file or in the model's directory."""
    assert facts.source is not None
    name = f"{technique}.safetensors"
    return facts.source / name if facts.source.is_dir() else facts.source.with_name(f"{facts.source.stem}.{name}")


def shipped(technique: str, facts: Facts) -> Path:
    """Its place among those that come with Diastole."""
    return SHIPPED / f"{technique}-{facts.fingerprint[:12]}.safetensors"


def find(technique: str, facts: Facts, given: str = "", recipe: str = "") -> Calibration:
    """A technique's calibration of this model.

    Args:
        given: its place; empty: beside the model, or among those that come with Diastole.
        recipe: of ``diastole train``, which makes one; empty: ``diastole calibrate`` does.

    Raises:
        UserError: there is none, or it is of something else.
    """
    command = f"make one with: diastole calibrate {technique} {facts.source}"
    if recipe:
        command = f"make one with: diastole train {recipe} --model {facts.source} --own FILE"
    places = [Path(given)] if given else [p for p in _places(technique, facts) if p.exists()]
    if not places:
        raise UserError(f"{technique} needs a calibration of this model, and there is none; {command}", param="use")
    found = _read(places[0], command)
    for key, wanted in about(technique, facts).items():
        if found.about.get(key) != wanted:
            has = found.about.get(key, "nothing")
            raise UserError(
                f"{technique}: the calibration {places[0]} has {key} {has!r:.80}, not {wanted!r}; {command}",
                param="use",
            )
    return found


def _places(technique: str, facts: Facts) -> list[Path]:
    own = [] if facts.source is None else [beside(technique, facts)]
    return [*own, shipped(technique, facts)]


def _read(path: Path, command: str) -> Calibration:
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise UserError(f"{path} has {size:,} bytes, which no calibration has; {command}", param="use")
        with safe_open(path, "np") as file:
            names = file.keys()
            return Calibration({name: file.get_tensor(name) for name in names}, file.metadata() or {})
    except (OSError, SafetensorError, ValueError, TypeError) as e:
        raise UserError(f"the calibration {path} cannot be read: {e}; {command}", param="use") from None
