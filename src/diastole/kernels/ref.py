"""The operators in plain torch: slow, obvious, and what the native ones are tested against.

``exact`` makes it the oracle of arithmetic: weights and activations are then not rounded to the packed formats'
precision of activations, so a result is that of the dequantised weights in float32.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from diastole.kernels.ref_codes import CodeTwins
from diastole.kernels.ref_lines import LineTwins
from diastole.kernels.ref_parts import PAGE, by_head, cells, softmax, tensor
from diastole.kernels.ref_picking import PickingTwins
from diastole.kernels.ref_shadow import recall
from diastole.kernels.shadows import Shadowed, Shadows
from diastole.kernels.table import Format, Packed, Rounding
from diastole.types import Array


class TorchOps(PickingTwins, LineTwins, CodeTwins):
    """See ``table.Ops`` for shapes. Weights are kept dequantised, pages as float32 rows."""

    name = "torch"
    layout = ""
    invariant = False  # torch's products add in an order that depends on the number of rows

    def __init__(self, exact: bool = False, rounding: Rounding = "int8/16") -> None:
        self.exact, self.rounding = exact, rounding

    def fuse(self) -> None:
        return None

    # ---- weights

    def pack_q4(self, q: Array, d: Array, m: Array) -> Packed:
        groups = q.reshape(len(q), -1, 32).astype(np.float32)
        return _keep("q4", (_f16(d)[..., None] * groups + _f16(m)[..., None]).reshape(q.shape))

    def pack_q4b(self, q: Array, both: Array, scales: Array) -> Packed:
        s, z = (_f16(x)[:, None, None] for x in scales.T)
        a, b = both.reshape(len(q), -1, 2, 1).astype(np.float32).transpose(2, 0, 1, 3)
        groups = q.reshape(len(q), -1, 32).astype(np.float32)
        return _keep("q4b", (s / 255 * (a * (groups - 8) + 4 * (b + z))).reshape(q.shape))

    def pack_q8(self, q: Array, d: Array) -> Packed:
        groups = q.reshape(len(q), -1, 32).astype(np.float32)
        return _keep("q8", (_f16(d)[..., None] * groups).reshape(q.shape))

    def pack_bf16(self, w: Array) -> Packed:
        return _keep("bf16", tensor(w).bfloat16().float().numpy())

    def pack_f32(self, w: Array) -> Packed:
        return _keep("f32", w)

    def packed_bytes(self, fmt: str, n: int, k: int) -> int:
        return n * k * 4

    def linear(self, x: Array, w: Packed, out: Array, bias: Array | None = None, accumulate: bool = False) -> None:
        rows = tensor(x)
        if not self.exact:
            rows = _rounded(rows, w.fmt, self.rounding)
        y = rows @ _weights(w).T
        if bias is not None:
            y += tensor(bias)
        out[...] = out + y.numpy() if accumulate else y.numpy()

    def embed(self, w: Packed, ids: Array, out: Array) -> None:
        if len(ids) and not (ids.min() >= 0 and ids.max() < w.n):
            raise ValueError("ids: an id is out of range")
        out[...] = _weights(w)[tensor(ids).long()].numpy()

    # ---- row-wise

    def rmsnorm(self, x: Array, weight: Array, eps: float, out: Array) -> None:
        v = tensor(x)
        out[...] = (v / (v.square().mean(-1, keepdim=True) + eps).sqrt() * tensor(weight)).numpy()

    def rope(self, x: Array, pos: Array, table: Array) -> None:
        if len(pos) and not (pos.min() >= 0 and pos.max() < len(table)):
            raise ValueError("pos: a position is outside the table")
        half = table.shape[1] // 2
        at = tensor(table)[tensor(pos).long()][:, None]
        cos, sin = at[..., :half], at[..., half:]
        a, b = tensor(x)[..., :half].clone(), tensor(x)[..., half : 2 * half].clone()
        x[..., :half] = (a * cos - b * sin).numpy()
        x[..., half : 2 * half] = (b * cos + a * sin).numpy()

    def gated(self, gu: Array, kind: str, out: Array) -> None:
        gate, up = tensor(gu).chunk(2, dim=1)
        act = functional.silu(gate) if kind == "silu" else functional.gelu(gate, approximate="tanh")
        out[...] = (act * up).numpy()

    def groupnorm(self, x: Array, w: Array, groups: int, eps: float, out: Array, add: Array | None, silu: bool) -> None:
        y = (tensor(x) if add is None else tensor(x) + tensor(add)[:, None, None]).movedim(-1, 1)
        y = functional.group_norm(y, groups, tensor(w[0]), tensor(w[1]), eps).movedim(1, -1)
        out[...] = (functional.silu(y) if silu else y).numpy()

    # ---- keys and values: pages of float32 rows, rounded to the format's precision when written

    def kv_page_bytes(self, fmt: str, dim: int) -> int:
        return 2 * PAGE * dim * 4

    def alloc(self, size: int) -> Array:
        return np.zeros(size, np.uint8)

    def kv_write(self, buf: Array, fmt: str, rows: Array, k: Array, v: Array) -> None:
        cache = cells(buf)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(buf) * PAGE):
            raise ValueError("rows: a row is outside the pages")
        for i, part in enumerate((k, v)):
            cache[rows // PAGE, :, i, rows % PAGE] = _stored(tensor(part), fmt).numpy()

    def kv_read(self, buf: Array, fmt: str, rows: Array, k: Array, v: Array) -> None:
        cache = cells(buf)
        k[...], v[...] = cache[rows // PAGE, :, 0, rows % PAGE], cache[rows // PAGE, :, 1, rows % PAGE]

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
        cache = cells(buf)
        groups = cache.shape[1]
        share = q.shape[1] // groups
        own, low, high = (by_head(x, groups, axes) for x, axes in ((tables, 2), (lo, 1), (hi, 1)))
        for b, g in np.ndindex(len(tables), groups):
            span, heads, table = slice(int(starts[b]), int(starts[b + 1])), slice(g * share, (g + 1) * share), own[b, g]
            n = int(high[span, g].max(initial=0))
            at = np.arange(n)
            if n > len(table) * PAGE or (n and not 0 <= table[: -(-n // PAGE)].max() < len(buf)):
                raise ValueError("tables: a row looks beyond its stream's pages")
            pages = table[at // PAGE]
            seen = (at >= low[span, g, None]) & (at < high[span, g, None])
            k, v = cache[pages, g, 0, at % PAGE], cache[pages, g, 1, at % PAGE]
            out[span, heads], total = softmax(q[span, heads], k, v, seen[:, None], scale)
            if lse is not None:
                lse[span, heads] = total

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
        """One worker does all of it, split after split."""
        most, total = np.full(q.shape[:2], -np.inf, np.float32), np.empty(q.shape[:2], np.float32)
        part, whole = np.empty_like(out), np.zeros_like(out)
        splits = range(0, int(hi.max(initial=0)), split)
        for s in splits:
            self.attend(q, buf, fmt, tables, starts, np.maximum(lo, s), np.minimum(hi, s + split), scale, part, total)
            both = np.logaddexp(most, total)
            a, b = (_share(x, both) for x in (most, total))
            whole, most = a * whole + b * part, both
        out[...] = whole
        if lse is not None:
            lse[...] = most
        if spent is not None:
            spent[...] = 0
            spent[0, 2] = len(splits) * buf.shape[1]

    def recall(self, q: Array, state: Shadows, rows: Shadowed, scale: float, at: Array, missed: Array) -> None:
        recall(self, q, state, rows, scale, at, missed)


def _share(part: Array, whole: Array) -> Array:
    """Of a softmax's sum of exponentials, by logarithms; 0 of nothing: (T, H, 1)."""
    seen = np.isfinite(part)
    return np.exp(np.where(seen, part, 0) - np.where(seen, whole, np.inf))[..., None]


def _f16(a: Array) -> Array:
    return a.astype(np.float16).astype(np.float32)


def _keep(fmt: Format, w: Array) -> Packed:
    data = np.ascontiguousarray(w, np.float32)
    return Packed(fmt, data.shape[0], data.shape[1], data.reshape(-1).view(np.uint8))


def _weights(w: Packed) -> torch.Tensor:
    return torch.from_numpy(w.data.view(np.float32).reshape(w.n, w.k))


def _rounded(x: torch.Tensor, fmt: Format, rounding: Rounding) -> torch.Tensor:
    """Activations as the packed format's kernels see them."""
    if fmt == "f32":
        return x
    if fmt == "bf16":
        return x.bfloat16().float()
    return _int8(x) if rounding == "int8/16" else _grid(x)


def _int8(x: torch.Tensor) -> torch.Tensor:
    groups = x.reshape(len(x), -1, 16)
    most = groups.abs().amax(-1, keepdim=True)
    limit = torch.tensor(127.0)  # a tensor: a plain number / x would be taken as that times the reciprocal
    q = (groups * torch.where(most > 0, limit / most, 0)).round()
    return (q * (most / limit)).reshape(x.shape)


def _grid(x: torch.Tensor) -> torch.Tensor:
    groups = x.bfloat16().float().reshape(len(x), -1, 32)
    most = groups.abs().amax(-1, keepdim=True)
    unit = torch.ldexp(torch.ones_like(most), torch.frexp(most).exponent - 12)
    rounded = torch.where(most >= 2.0**-90, (groups / unit).round() * unit, 0)
    return torch.where(most.isfinite(), rounded, torch.nan).reshape(x.shape)


def _stored(x: torch.Tensor, fmt: str) -> torch.Tensor:
    if fmt == "f32":
        return x
    if fmt in {"bf16", "rows"}:
        return x.bfloat16().float()
    if fmt == "rows8":
        return _row8(x)
    scale = x.abs().amax(-1, keepdim=True) / 127
    return torch.where(scale > 0, (x / scale).round() * scale, 0)


_STEPS = np.float32(2.0 ** (np.arange(8) / 8)) * np.float32(2.0) ** np.arange(-20, 12)[:, None].astype(np.float32)


def _row8(x: torch.Tensor) -> torch.Tensor:
    """Rows in int8 whose first eight numbers end with the bits of the number of their step; see ``rows.inl``."""
    steps = torch.from_numpy(_STEPS.reshape(-1)[:-1].astype(np.float32))
    number = torch.searchsorted(steps * 127, x.abs().amax(-1, keepdim=True).contiguous())
    step = steps[number.clamp(max=254)]
    scaled = x * (1 / step)
    bit = number >> torch.arange(8) & 1
    first = ((scaled[..., :8] - bit) / 2).round() * 2 + bit
    first = torch.where(first > 127, first - 2, first)
    q = torch.cat([first, scaled[..., 8:].round()], -1)
    return torch.where(number < 255, (q + 0.0) * step, torch.nan)  # no zero is negative
