"""The operators of ``picking.Picking`` that choose tokens and pages, in plain torch and numpy."""

from __future__ import annotations

import numpy as np

from diastole.kernels.ref_labels import label_scores, labels_write
from diastole.kernels.ref_parts import PAGE, by_head, cells, keys_alone, softmax, some_channels, tensor, wide
from diastole.types import Array


class PickingTwins:
    """See there. Pages are of float32 rows, as ``ref.TorchOps`` keeps them."""

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
        cache = cells(buf)
        sets = at.shape[1]
        share = q.shape[1] // sets
        for i, s in np.ndindex(len(which), sets):
            row, heads, rows = which[i], slice(s * share, (s + 1) * share), at[i, s, : counts[i, s]]
            k, v = (cache[rows // PAGE, s * cache.shape[1] // sets, part, rows % PAGE] for part in (0, 1))
            seen = np.ones((1, 1, len(rows)), bool)
            out[row : row + 1, heads], total = softmax(q[row : row + 1, heads], k, v, seen, scale)
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
        keys = wide(keys_alone(buf, q.shape[2])) if fmt == "keys" else cells(buf)[:, :, 0]
        groups = keys.shape[1]
        share, per = q.shape[1] // groups, out.shape[1] // groups
        own, low, high = (by_head(x, groups, axes) for x, axes in ((tables, 2), (lo, 1), (hi, 1)))
        out[...] = -np.inf
        for b, g in np.ndindex(len(tables), groups):
            for t in range(int(starts[b]), int(starts[b + 1])):
                at = np.arange(low[t, g], high[t, g])
                heads = slice(g * share, (g + 1) * share)
                s = q[t, heads] @ keys[own[b, g][at // PAGE], g, at % PAGE].T * np.float32(scale)
                if less is not None:
                    s -= less[t, heads, None]
                out[t, g * per : (g + 1) * per, low[t, g] : high[t, g]] = s if per > 1 or share == 1 else s.max(0)

    def keys_write(self, buf: Array, rows: Array, k: Array, channels: Array | None = None, bits: int = 16) -> None:
        if bits == 4:
            own = k if channels is None else some_channels(k, channels, channels.shape[1])
            labels_write(buf, rows, own)
            return
        dim = buf.shape[2] // (2 * PAGE)
        rounded = tensor(k if channels is None else some_channels(k, channels, dim)).bfloat16().float().numpy()
        keys_alone(buf, dim)[rows // PAGE, :, rows % PAGE] = rounded.view(np.uint32) >> 16

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
        bits: int = 16,
    ) -> None:
        groups, count = buf.shape[1], channels.shape[1]
        dim = buf.shape[2] // (2 * PAGE) if bits == 16 else count
        own = some_channels(q[which], channels.repeat(q.shape[1] // groups, 0), dim)
        s = np.empty((len(which), groups, max(int(hi.max(initial=0)), 1)), np.float32)
        if bits == 16:
            self.scores(own, buf, "keys", tables, np.arange(len(which) + 1, dtype=np.int32), lo, hi, 1.0, s)
        else:
            label_scores(own, buf, tables, lo, hi, s)
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
        rows, share = wide(index.view(np.uint16)).reshape(len(index), groups, -1, e), heads // groups
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
        bounds = wide(index.view(np.uint16)).reshape(*index.shape[:2], -1, per, step).swapaxes(2, 3)
        most, least = np.split(bounds.reshape(*index.shape[:2], per, 2 * dim), 2, -1)
        for i, g in np.ndindex(len(q), groups):
            if not heads[g]:
                continue
            own, last = q[i].reshape(groups, -1, 1, 1, dim)[g], int(blocks[i])
            page, kept = tables[i, : last + 1], heads[g] - 1
            s = np.maximum(own * most[page, kept], own * least[page, kept]).sum(-1).max((0, 2))
            s[:first] = s[last + 1 - recent :] = np.inf
            places[i, g] = np.sort(np.argsort(-s, kind="stable")[:k])
            pages[runs[i], g, :k] = page[places[i, g]]

    def tops(self, x: Array, k: Array, places: Array, counts: Array) -> None:
        places[...] = -1
        for i, row in enumerate(x):
            order = np.argsort(-np.where(np.isnan(row), -np.inf, row), kind="stable")[: k[i]]
            best = np.sort(order[row[order] > -np.inf])
            places[i, : len(best)], counts[i] = best, len(best)
