"""Hardware: a GPU's published figures, what is assumed of them, and iterations that others measured on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from diastole.sim.latency import Decode, Line, Prefill
from diastole.sim.reading import folder, names, read
from diastole.types import UserError

Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=1e20)]
Coefficient = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Three = tuple[Coefficient, Coefficient, Coefficient]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
Tokens = Annotated[int, msgspec.Meta(ge=16, le=10_000_000_000)]


class Assumptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What nobody publishes: shares of the peaks that are reached, and constant costs."""

    compute: Share = 0.6  # of peak FLOP/s, in matrix products
    bandwidth: Share = 0.7  # of peak memory bandwidth
    link: Share = 0.7  # of the peak between GPUs
    memory: Share = 0.9  # of the memory for weights and caches
    layer_us: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 20.0  # microseconds of launching per layer
    reduce_us: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 10.0  # of each of two sums per layer between GPUs


class Times(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Published coefficients in milliseconds, in the form of ``sim.latency``."""

    prefill: Three
    decode: Three
    decode_many: Three | None = None

    def engines(self, bound: int) -> tuple[Prefill, Decode]:
        """In seconds."""
        few = Line(*(x / 1e3 for x in self.decode))
        many = few if self.decode_many is None else Line(*(x / 1e3 for x in self.decode_many))
        return Prefill(*(x / 1e3 for x in self.prefill)), Decode(few, many, bound)


class Fitted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What somebody measured of one model."""

    source: Text
    bound: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 95  # streams from which ``decode_many`` holds
    kv_tokens: dict[str, Tokens]  # by number of GPUs that hold the weights once
    tensor: dict[str, Times]  # by GPUs that share every layer


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of GPU."""

    name: Text
    sources: Annotated[list[Text], msgspec.Meta(min_length=1, max_length=20)]
    memory: Rate  # bytes
    flops: Rate  # peak dense bf16 or fp16 operations per second
    bandwidth: Rate  # bytes per second of its memory
    link: Rate  # bytes per second, one way, to a GPU of the same node
    network: Rate  # bytes per second, one way, to one of another node
    assumptions: Assumptions = Assumptions()
    fitted: dict[str, Fitted] = {}


def hardware(name: str) -> Hardware:
    """By its name, or of a TOML file.

    Raises:
        UserError: there is none, or a key of it is wrong.
    """
    if name.endswith(".toml"):
        found = read(Path(name), Hardware, "hardware")
    elif name in names():
        found = read(folder() / f"{name}.toml", Hardware, "hardware")
    else:
        known = ", ".join(names())
        message = f"--hardware {name!r:.80} is not known: give a TOML file, or one of {known}"
        raise UserError(message, param="hardware")
    for model, fitted in found.fitted.items():
        for table, keys in (("kv_tokens", fitted.kv_tokens), ("tensor", fitted.tensor)):
            for key in keys:
                if not (key.isascii() and key.isdigit() and 1 <= int(key) <= 4096 and str(int(key)) == key):
                    message = f"--hardware {name}: fitted.{model}.{table}: {key!r:.20} must be a number of GPUs"
                    raise UserError(message, param="hardware")
    return found
