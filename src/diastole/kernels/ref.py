"""The operators in plain torch: slow, obvious, and what the native ones are tested against.

``exact`` makes it the oracle of arithmetic: weights and activations are then not rounded to the packed formats'
precision of activations, so a result is that of the dequantised weights in float32.
"""

from __future__ import annotations

import numpy as np
import torch

from diastole.kernels.ref_lines import LineTwins
from diastole.kernels.table import Format, Packed, Rounding
from diastole.types import Array

PAGE = 64


class TorchOps(LineTwins):
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

    def pack_q8(self, q: Array, d: Array) -> Packed:
        groups = q.reshape(len(q), -1, 32).astype(np.float32)
        return _keep("q8", (_f16(d)[..., None] * groups).reshape(q.shape))

    def pack_bf16(self, w: Array) -> Packed:
        return _keep("bf16", _tensor(w).bfloat16().float().numpy())

    def pack_f32(self, w: Array) -> Packed:
        return _keep("f32", w)

    def packed_bytes(self, fmt: str, n: int, k: int) -> int:
        return n * k * 4

    def linear(self, x: Array, w: Packed, out: Array, bias: Array | None = None, accumulate: bool = False) -> None:
        rows = _tensor(x)
        if not self.exact:
            rows = _rounded(rows, w.fmt, self.rounding)
        y = rows @ _weights(w).T
        if bias is not None:
            y += _tensor(bias)
        out[...] = out + y.numpy() if accumulate else y.numpy()

    def embed(self, w: Packed, ids: Array, out: Array) -> None:
        if len(ids) and not (ids.min() >= 0 and ids.max() < w.n):
            raise ValueError("ids: an id is out of range")
        out[...] = _weights(w)[_tensor(ids).long()].numpy()

    # ---- row-wise

    def rmsnorm(self, x: Array, weight: Array, eps: float, out: Array) -> None:
        v = _tensor(x)
        out[...] = (v / (v.square().mean(-1, keepdim=True) + eps).sqrt() * _tensor(weight)).numpy()

    def rope(self, x: Array, pos: Array, table: Array) -> None:
        if len(pos) and not (pos.min() >= 0 and pos.max() < len(table)):
            raise ValueError("pos: a position is outside the table")
        half = table.shape[1] // 2
        at = _tensor(table)[_tensor(pos).long()][:, None]
        cos, sin = at[..., :half], at[..., half:]
        a, b = _tensor(x)[..., :half].clone(), _tensor(x)[..., half : 2 * half].clone()
        x[..., :half] = (a * cos - b * sin).numpy()
        x[..., half : 2 * half] = (b * cos + a * sin).numpy()

    def gated(self, gu: Array, kind: str, out: Array) -> None:
        gate, up = _tensor(gu).chunk(2, dim=1)
        silu = torch.nn.functional.silu
        act = silu(gate) if kind == "silu" else torch.nn.functional.gelu(gate, approximate="tanh")
        out[...] = (act * up).numpy()

    # ---- keys and values: pages of float32 rows, rounded to the format's precision when written

    def kv_page_bytes(self, fmt: str, dim: int) -> int:
        return 2 * PAGE * dim * 4

    def alloc(self, size: int) -> Array:
        return np.zeros(size, np.uint8)

    def kv_write(self, buf: Array, fmt: str, rows: Array, k: Array, v: Array) -> None:
        cache = _cache(buf)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(buf) * PAGE):
            raise ValueError("rows: a row is outside the pages")
        for i, part in enumerate((k, v)):
            cache[rows // PAGE, :, i, rows % PAGE] = _stored(_tensor(part), fmt).numpy()

    def kv_read(self, buf: Array, fmt: str, rows: Array, k: Array, v: Array) -> None:
        cache = _cache(buf)
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
        cache = _cache(buf)
        groups = cache.shape[1]
        share = q.shape[1] // groups
        own, low, high = (_by_head(x, groups, axes) for x, axes in ((tables, 2), (lo, 1), (hi, 1)))
        for b, g in np.ndindex(len(tables), groups):
            span, heads, table = slice(int(starts[b]), int(starts[b + 1])), slice(g * share, (g + 1) * share), own[b, g]
            n = int(high[span, g].max(initial=0))
            at = np.arange(n)
            if n > len(table) * PAGE or (n and not 0 <= table[: -(-n // PAGE)].max() < len(buf)):
                raise ValueError("tables: a row looks beyond its stream's pages")
            pages = table[at // PAGE]
            seen = (at >= low[span, g, None]) & (at < high[span, g, None])
            k, v = cache[pages, g, 0, at % PAGE], cache[pages, g, 1, at % PAGE]
            out[span, heads], total = _softmax(q[span, heads], k, v, seen[:, None], scale)
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

    def attend_tokens(
        self,
        q: Array,
        buf: Array,
        fmt: str,
        which: Array,
        at: Array,
        counts: Array,
        scale: float,
        out: Array,
        lse: Array | None = None,
    ) -> None:
        cache = _cache(buf)
        sets = at.shape[1]
        share = q.shape[1] // sets
        for i, s in np.ndindex(len(which), sets):
            row, heads, rows = which[i], slice(s * share, (s + 1) * share), at[i, s, : counts[i, s]]
            k, v = (cache[rows // PAGE, s * cache.shape[1] // sets, part, rows % PAGE] for part in (0, 1))
            seen = np.ones((1, 1, len(rows)), bool)
            out[row : row + 1, heads], total = _softmax(q[row : row + 1, heads], k, v, seen, scale)
            if lse is not None:
                lse[row : row + 1, heads] = total

    def scores(
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
        less: Array | None = None,
    ) -> None:
        keys = _wide(_keys(buf, q.shape[2])) if fmt == "keys" else _cache(buf)[:, :, 0]
        groups = keys.shape[1]
        share, per = q.shape[1] // groups, out.shape[1] // groups
        own, low, high = (_by_head(x, groups, axes) for x, axes in ((tables, 2), (lo, 1), (hi, 1)))
        out[...] = -np.inf
        for b, g in np.ndindex(len(tables), groups):
            for t in range(int(starts[b]), int(starts[b + 1])):
                at = np.arange(low[t, g], high[t, g])
                heads = slice(g * share, (g + 1) * share)
                s = q[t, heads] @ keys[own[b, g][at // PAGE], g, at % PAGE].T * np.float32(scale)
                if less is not None:
                    s -= less[t, heads, None]
                out[t, g * per : (g + 1) * per, low[t, g] : high[t, g]] = s if per > 1 or share == 1 else s.max(0)

    def keys_write(self, buf: Array, rows: Array, k: Array, channels: Array | None = None) -> None:
        dim = buf.shape[2] // (2 * PAGE)
        rounded = _tensor(k if channels is None else _some(k, channels, dim)).bfloat16().float().numpy()
        _keys(buf, dim)[rows // PAGE, :, rows % PAGE] = rounded.view(np.uint32) >> 16

    def choose(
        self,
        q: Array,
        buf: Array,
        channels: Array,
        which: Array,
        tables: Array,
        lo: Array,
        hi: Array,
        most: Array,
        sink: int,
        recent: int,
        at: Array,
        counts: Array,
    ) -> None:
        groups, dim = buf.shape[1], buf.shape[2] // (2 * PAGE)
        own = _some(q[which], channels.repeat(q.shape[1] // groups, 0), dim)
        s = np.empty((len(which), groups, max(int(hi.max(initial=0)), 1)), np.float32)
        self.scores(own, buf, "keys", tables, np.arange(len(which) + 1, dtype=np.int32), lo, hi, 1.0, s)
        at[...] = 0
        for i, g in np.ndindex(len(which), groups):
            s[i, g, lo[i] : min(lo[i] + sink, hi[i])] = s[i, g, max(lo[i], hi[i] - recent) : hi[i]] = np.inf
            places = np.empty((1, at.shape[2]), np.int32)
            self.tops(s[i, g : g + 1], most[i : i + 1], places, counts[i, g : g + 1])
            found = places[0, : counts[i, g]]
            at[i, g, : len(found)] = tables[i, found // PAGE].astype(np.int64) * PAGE + found % PAGE

    def page_scores(self, q: Array, index: Array, tables: Array, starts: Array, n: Array, out: Array) -> None:
        _, heads, e = q.shape
        groups = index.shape[1]
        rows, share = _wide(index.view(np.uint16)).reshape(len(index), groups, -1, e), heads // groups
        out[...] = -np.inf
        for b in range(len(tables)):
            for i in range(int(starts[b]), int(starts[b + 1])):
                own = rows[tables[b, : n[i]]]  # (n, groups, per, E)
                found = np.einsum("gse,ngpe->gnps", q[i].reshape(groups, share, e), own).max(-1, initial=-np.inf)
                whole = out.shape[2] != tables.shape[1]
                out[i, :, : n[i] * (found.shape[2] if whole else 1)] = (
                    found.reshape(groups, -1) if whole else found.max(-1)
                )

    def pick_pages(
        self,
        q: Array,
        index: Array,
        per: int,
        tables: Array,
        blocks: Array,
        heads: Array,
        first: int,
        recent: int,
        places: Array,
        runs: Array,
        pages: Array,
    ) -> None:
        dim, step = q.shape[2], 32 // per
        groups, k = places.shape[1:]
        bounds = _wide(index.view(np.uint16)).reshape(len(index), groups, -1, per, step).swapaxes(2, 3)
        most, least = np.split(bounds.reshape(len(index), groups, per, 2 * dim), 2, -1)
        for i, g in np.ndindex(len(q), groups):
            if not heads[g]:
                continue
            own, last = q[i].reshape(groups, -1, 1, 1, dim)[g], int(blocks[i])
            page = tables[i, : last + 1]
            s = np.maximum(own * most[page, g], own * least[page, g]).sum(-1).max((0, 2))
            s[:first] = s[last + 1 - recent :] = np.inf
            places[i, g] = np.sort(np.argsort(-s, kind="stable")[:k])
            pages[runs[i], g, :k] = page[places[i, g]]

    def tops(self, x: Array, k: Array, places: Array, counts: Array) -> None:
        places[...] = -1
        for i, row in enumerate(x):
            order = np.argsort(-np.where(np.isnan(row), -np.inf, row), kind="stable")[: k[i]]
            best = np.sort(order[row[order] > -np.inf])
            places[i, : len(best)], counts[i] = best, len(best)


def _by_head(x: Array, groups: int, axes: int) -> Array:
    """What is given once for all key/value heads, or for each: with an axis for them behind the first."""
    return x if x.ndim > axes else np.repeat(x[:, None], groups, 1)


def _keys(buf: Array, dim: int) -> Array:
    """Pages of keys alone: bits of bfloat16 (pages, Hkv, 64, dim)."""
    return buf.view(np.uint16).reshape(len(buf), buf.shape[1], PAGE, dim)


def _some(x: Array, channels: Array, dim: int) -> Array:
    """Of x (T, H, D) the channels (H, C) of each head, then zeros: (T, H, dim)."""
    some = np.zeros((*x.shape[:2], dim), np.float32)
    some[..., : channels.shape[1]] = np.take_along_axis(x, channels[None].astype(np.int64), 2)
    return some


def _wide(bits: Array) -> Array:
    """Bits of bfloat16 as float32."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def _softmax(q: Array, k: Array, v: Array, seen: Array, scale: float) -> tuple[Array, Array]:
    """q (T, H, D); k, v (n, D); seen (T, 1, n): out (T, H, D), and the log of the sum of exponentials (T, H)."""
    scores = torch.einsum("thd,nd->thn", _tensor(q), _tensor(k)) * scale
    scores = scores.masked_fill(~_tensor(seen), -torch.inf)
    total = scores.logsumexp(-1) if k.shape[0] else torch.full(scores.shape[:2], -torch.inf)
    weights = torch.nan_to_num((scores - total[..., None]).exp())
    return torch.einsum("thn,nd->thd", weights, _tensor(v)).numpy(), total.numpy()


def _share(part: Array, whole: Array) -> Array:
    """Of a softmax's sum of exponentials, by logarithms; 0 of nothing: (T, H, 1)."""
    seen = np.isfinite(part)
    return np.exp(np.where(seen, part, 0) - np.where(seen, whole, np.inf))[..., None]


def _tensor(a: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(a))


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
    scale = x.abs().amax(-1, keepdim=True) / 127
    return torch.where(scale > 0, (x / scale).round() * scale, 0)


def _cache(buf: Array) -> Array:
    pages, heads, _ = buf.shape
    return buf.view(np.float32).reshape(pages, heads, 2, PAGE, -1)
