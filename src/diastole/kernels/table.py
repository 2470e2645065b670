"""The operators by one face, native or not.

Arrays are numpy, float32 unless said otherwise, last axes contiguous; "row stride" means that the first axis may have
any stride, as views into a wider buffer do. Wrong shapes and indices out of range raise ``ValueError`` naming the
argument; nothing outside the arrays is ever touched.
"""

from __future__ import annotations

import os
import platform
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np

from diastole.kernels.cgroup import processors
from diastole.kernels.picking import Picking
from diastole.kernels.shadows import Shadowed, Shadows
from diastole.types import Array, UserError

Format = Literal["f32", "bf16", "q8", "q4", "q4s", "q4b"]
# "int8/16": to 127 steps of the largest of 16 columns. "bf16/32": to bfloat16, then to multiples of 2^(e - 11) where
# the largest of 32 columns lies between 2^e and 2^(e + 1).
Rounding = Literal["int8/16", "bf16/32"]


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight matrix (n, k) in the layout that the operators read: data (bytes,) uint8."""

    fmt: Format
    n: int
    k: int
    data: Array

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)


class Ops(Picking, Protocol):
    """What runs a model. T rows, H heads of dimension D, Hkv key/value heads, pages of 64 tokens."""

    name: str
    layout: str  # of packed matrices; operators with the same read each other's. "": nobody else does
    rounding: Rounding  # of x before it meets weights in whole numbers
    invariant: bool  # a row's result never depends on what else is in the call, to the bit

    def fuse(self) -> Any | None:
        """The class of a whole decoder in one call (see nn.fused), where there is one."""
        ...

    def pack_q4(self, q: Array, d: Array, m: Array) -> Packed:
        """w = d q + m per 32 columns: q (N, K) uint8 of 0..15; d, m (N, K/32), kept as float16. Where m = -8 d, it
        may be left out."""
        ...

    def pack_q4b(self, q: Array, both: Array, scales: Array) -> Packed:
        """w = s/255 (a (q - 8) + 4 (b + z)): q (N, K) uint8 of 0..15; both (N, K/32 · 2) uint8, a and b in turns;
        scales (N, 2), s and z, kept as float16."""
        ...

    def pack_q8(self, q: Array, d: Array) -> Packed:
        """w = d q per 32 columns: q (N, K) int8; d (N, K/32), kept as float16."""
        ...

    def pack_bf16(self, w: Array) -> Packed:
        """w (N, K) rounded to bfloat16."""
        ...

    def pack_f32(self, w: Array) -> Packed:
        """w (N, K) as it is."""
        ...

    def packed_bytes(self, fmt: str, n: int, k: int) -> int:
        """Bytes of a packed matrix.

        Raises:
            ValueError: there is no such format, or none of this shape.
        """
        ...

    def linear(self, x: Array, w: Packed, out: Array, bias: Array | None = None, accumulate: bool = False) -> None:
        """out (T, N) = or += x (T, K) Wᵀ + bias (N,). x and out with row stride. q8 and q4 round x as
        ``rounding`` says, bf16 rounds it to bfloat16."""
        ...

    def embed(self, w: Packed, ids: Array, out: Array) -> None:
        """out (T, K), row stride = rows ids (T,) int32 of W."""
        ...

    def rmsnorm(self, x: Array, weight: Array, eps: float, out: Array) -> None:
        """out = x / sqrt(mean(x²) + eps) · weight over the last axis; x (T, K) or (T, H, D), row stride; may be x."""
        ...

    def rope(self, x: Array, pos: Array, table: Array) -> None:
        """Rotate x (T, H, D), row stride, in place: pos (T,) int32, table (P, R) of nn.rope, first R dimensions."""
        ...

    def gated(self, gu: Array, kind: str, out: Array) -> None:
        """out (T, F) = act(gate) · up, gu (T, 2F) = gate then up; kind "silu" or "gelu_tanh"."""
        ...

    def groupnorm(self, x: Array, w: Array, groups: int, eps: float, out: Array, add: Array | None, silu: bool) -> None:
        """out (B, H, W, C) = x + add (B, C), each picture's groups of channels brought to mean 0 and deviation 1, times
        w[0] (C,), plus w[1]; then y sigmoid(y) with ``silu``. x and out with any strides; out may be x."""
        ...

    def kv_page_bytes(self, fmt: str, dim: int) -> int:
        """Bytes of one page of one key/value head."""
        ...

    def alloc(self, size: int) -> Array:
        """(size,) uint8, zeroed, taken from the system only as it is touched."""
        ...

    def kv_write(self, buf: Array, fmt: str, rows: Array, k: Array, v: Array) -> None:
        """Store k, v (T, Hkv, D), row stride, at rows (T,) int64 = page · 64 + slot of buf (pages, Hkv, bytes)."""
        ...

    def kv_read(self, buf: Array, fmt: str, rows: Array, k: Array, v: Array) -> None:
        """The inverse of kv_write, dequantised."""
        ...

    def attend(
        self,
        q: Array,
        buf: Array,
        fmt: str,
        tables: Array,
        starts: Array,
        lo: Array,
        hi: Array,
        scale: float,
        out: Array,
        lse: Array | None = None,
    ) -> None:
        """Softmax attention of q (T, H, D), row stride, over paged keys and values.

        Row t of stream b (starts[b] <= t < starts[b+1]) sees that stream's tokens lo[t] <= j < hi[t], which lie on the
        pages tables[b] (B, P) int32. Heads may look at pages of their own: tables (B, Hkv, P), and lo and hi (T, Hkv),
        which count the tokens of these pages. out (T, H, D); lse (T, H): log of the sum of exponentials. A row that
        sees nothing gives zeros and -inf.
        """
        ...

    def attend_by(
        self,
        q: Array,
        buf: Array,
        fmt: str,
        tables: Array,
        starts: Array,
        lo: Array,
        hi: Array,
        scale: float,
        out: Array,
        lse: Array | None,
        schedule: str,
        split: int,
        workers: int,
        parts: int = 1,
        spent: Array | None = None,
    ) -> None:
        """The same, spread by a schedule over ``workers``: 0 for one per thread; more than threads take turns.

        The context of each row is cut every ``split`` tokens, a multiple of 64, and split after split is merged:
        results depend on ``split`` in their last bits, and on neither schedule nor workers. ``attend`` is "lean", 512.

        "lean": all work in one list, cut into equal shares by cost, and who is done helps others; "shares": nobody
        helps; "heads": the rows of a tile over one key/value head are one worker's, dealt out in turns; "queue": the
        same, who is free takes the next; "fixed": all contexts are cut into so many ``parts``, dealt out in turns and
        merged in a second pass. What is too large to be kept in parts is one worker's in all of them.

        spent (workers, 3) float64: seconds that each worker took, seconds of these for merging, splits.
        """
        ...


LAYOUT = "2"  # of the compiled operators, all instruction sets alike: to be counted up when kernels.hpp changes it
_AS_THEY_ARE = """rmsnorm rope gated groupnorm packed_bytes kv_page_bytes alloc kv_write kv_read attend attend_by
    attend_tokens scores keys_write choose page_scores pick_pages tops masses choose_lines attend_lines zip_page_bytes
    zip_seal zip_open zip_attend"""  # operators of the compiled module that need nothing from Python


class Native:
    """The compiled operators."""

    def __init__(self, module: Any) -> None:
        self._n = module
        self.name = f"native-{module.isa()}"
        self.layout = LAYOUT
        self.invariant = True
        self.rounding: Rounding = module.rounding()
        for name in _AS_THEY_ARE.split():
            setattr(self, name, getattr(module, name))

    def fuse(self) -> Any | None:
        return self._n.Fused

    def recall(self, q: Array, state: Shadows, rows: Shadowed, scale: float, at: Array, missed: Array) -> None:
        s, r = state, rows
        self._n.recall(
            q, scale, r.which, r.tables, r.pages, r.records, r.buffers, s.marks, s.a, s.values, s.basis, s.outliers,
            s.rope, s.buf, s.held, s.first, at, missed,
        )  # fmt: skip

    def pack_q4(self, q: Array, d: Array, m: Array) -> Packed:
        fmt: Format = "q4s" if np.array_equal(m, -8 * d) else "q4"
        return Packed(fmt, q.shape[0], q.shape[1], self._n.pack_q4(fmt, q, d, m))

    def pack_q4b(self, q: Array, both: Array, scales: Array) -> Packed:
        return Packed("q4b", q.shape[0], q.shape[1], self._n.pack_q4b(q, both, scales))

    def pack_q8(self, q: Array, d: Array) -> Packed:
        return Packed("q8", q.shape[0], q.shape[1], self._n.pack_q8(q, d))

    def pack_bf16(self, w: Array) -> Packed:
        return Packed("bf16", w.shape[0], w.shape[1], self._n.pack_float(np.ascontiguousarray(w, np.float32), "bf16"))

    def pack_f32(self, w: Array) -> Packed:
        return Packed("f32", w.shape[0], w.shape[1], self._n.pack_float(np.ascontiguousarray(w, np.float32), "f32"))

    def linear(self, x: Array, w: Packed, out: Array, bias: Array | None = None, accumulate: bool = False) -> None:
        self._n.linear(x, w.fmt, w.n, w.k, w.data, out, bias, accumulate)

    def embed(self, w: Packed, ids: Array, out: Array) -> None:
        self._n.embed(w.fmt, w.n, w.k, w.data, ids, out)


_INSTRUCTION_SETS = ("amx", "avx512bf16", "avx512", "avx2", "scalar")


def load(threads: int | None = None, prefer: str = "auto") -> Ops:
    """The operators to use.

    Args:
        threads: of the native pool, shared by the whole process; None: one per physical core.
        prefer: "auto" takes the native ones if they are built; "native" insists; "amx", "avx512bf16", "avx512", "avx2"
            and "scalar" insist on an instruction set; "torch" takes the slow, obvious ones.

    Raises:
        UserError: what is insisted on is not to be had.
    """
    module = None if prefer == "torch" else compiled()
    if module is None:
        if prefer not in {"auto", "torch"}:
            raise UserError(
                f"kernels = {prefer!r} needs the native operators, which are not built: install with a C++17 compiler",
                param="kernels",
            )
        if prefer == "auto":
            warnings.warn("native operators are not built: running on torch, which is slow", stacklevel=2)
        from diastole.kernels.ref import TorchOps

        return TorchOps()
    if prefer in _INSTRUCTION_SETS:
        if prefer not in module.isas():
            raise UserError(
                f"this machine does not run {prefer!r} kernels; it runs {', '.join(module.isas())}", param="kernels"
            )
        module.set_isa(prefer)
    elif prefer not in {"auto", "native"}:
        known = ", ".join(("auto", "native", *_INSTRUCTION_SETS, "torch"))
        raise UserError(f"unknown kernels {prefer!r}; there are {known}", param="kernels")
    module.set_threads(threads or physical_cores())
    return cast(Ops, Native(module))  # which has what it takes from the module


def compiled() -> Any | None:
    """The compiled module, None where it is not built."""
    try:
        return import_module("diastole.kernels._native")
    except ImportError:
        return None


def physical_cores() -> int:
    """Cores that this process may use, counting two hardware threads of one core once; no more than a container or
    service gives it time for, since threads beyond that would only be stopped in the middle of a step."""
    share = processors()
    cores = _allowed_cores()
    return cores if share is None else max(1, min(cores, int(share)))


def _allowed_cores() -> int:
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    places = [Path(f"/sys/devices/system/cpu/cpu{cpu}/topology") for cpu in allowed]
    try:
        cores = {((at / "physical_package_id").read_text(), (at / "core_id").read_text()) for at in places}
    except OSError:
        return len(allowed)
    return max(len(cores), 1)


def processor() -> str:
    """The processor's name, as its maker gives it."""
    lines = told.read_text().splitlines() if (told := Path("/proc/cpuinfo")).exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
