"""The operators on lines in plain numpy: what the native ones are tested against."""

from __future__ import annotations

import numpy as np

from diastole.types import Array

PAGE = 64


class LineTwins:
    """See ``table.Ops``. Pages are of float32 rows, as ``ref.TorchOps`` keeps them."""

    def masses(
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
    ) -> None:
        share = q.shape[1] // out.shape[1]
        out[...] = 0
        for b in range(len(tables)):
            w = self._weights(q, buf, tables, starts, lo, hi, scale, b).sum(0)
            out[b, :, : w.shape[-1]] = w.reshape(-1, share, w.shape[-1]).sum(1)

    def choose_lines(
        self,
        q: Array,
        buf: Array,
        fmt: str,
        tables: Array,
        starts: Array,
        lo: Array,
        hi: Array,
        scale: float,
        share: float,
        first: Array,
        sink: int,
        bands: Array,
        columns: Array,
        counts: Array,
        covered: Array,
    ) -> None:
        bands[...] = 0
        for b in range(len(tables)):
            weights = self._weights(q, buf, tables, starts, lo, hi, scale, b)
            own = (hi[starts[b] : starts[b + 1], None] - 1) // PAGE - np.arange(weights.shape[-1]) // PAGE
            for h in range(q.shape[1]):
                choice = _Choice(weights[:, h], own, int(first[b]))
                choice.until(share, min(sink, int(first[b])), bands.shape[2])
                bands[b, h, choice.bands] = 1
                counts[b, h], covered[b, h] = len(choice.columns), choice.covered
                columns[b, h, : counts[b, h]] = sorted(choice.columns)

    def attend_lines(
        self,
        q: Array,
        buf: Array,
        fmt: str,
        tables: Array,
        starts: Array,
        hi: Array,
        scale: float,
        bands: Array,
        columns: Array,
        counts: Array,
        out: Array,
        lse: Array | None = None,
    ) -> None:
        pages, groups, _ = buf.shape
        cache = buf.view(np.float32).reshape(pages, groups, 2, PAGE, -1)
        share = q.shape[1] // groups
        for b, h in np.ndindex(len(tables), q.shape[1]):
            rows = slice(int(starts[b]), int(starts[b + 1]))
            at = np.arange(hi[rows].max(initial=0))
            pages_of, last = tables[b, at // PAGE], hi[rows, None]
            seen = bands[b, h, np.maximum((last - 1) // PAGE - at // PAGE, 0)] > 0
            seen[:, columns[b, h, : counts[b, h]]] = True
            k, v = (cache[pages_of, h // share, part, at % PAGE] for part in (0, 1))
            s = np.where(seen & (at < last), q[rows, h] @ k.T * np.float32(scale), -np.inf)
            w = np.exp(s - s.max(1, keepdims=True))
            total = w.sum(1, keepdims=True)
            out[rows, h] = w / total @ v
            if lse is not None:
                lse[rows, h] = (s.max(1, keepdims=True) + np.log(total))[:, 0]

    def _weights(
        self, q: Array, buf: Array, tables: Array, starts: Array, lo: Array, hi: Array, scale: float, b: int
    ) -> Array:
        """Softmax weights (rows, H, n) of a stream's rows."""
        rows = slice(int(starts[b]), int(starts[b + 1]))
        s = np.empty((rows.stop - rows.start, q.shape[1], int(hi[rows].max(initial=0))), np.float32)
        own = np.array([0, len(s)], np.int32)
        self.scores(q[rows], buf, "", tables[b : b + 1], own, lo[rows], hi[rows], scale, s)
        most = s.max(-1, keepdims=True, initial=-np.inf)
        w = np.exp(s - np.where(np.isfinite(most), most, 0))
        found: Array = w / np.maximum(w.sum(-1, keepdims=True), np.finfo(np.float32).tiny)
        return found

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
    ) -> None:
        raise NotImplementedError


class _Choice:
    """Lines of one head, chosen one after the other. weights (rows, n); own (rows, n): the distance in pages."""

    def __init__(self, weights: Array, own: Array, first: int) -> None:
        self.left, self.own, self.rows, self.first = weights.copy(), own, len(weights), first
        self.total = float(weights.sum())
        self.bands: list[int] = []
        self.columns: list[int] = []

    @property
    def covered(self) -> float:
        return (self.total - float(self.left.sum())) / self.rows

    def until(self, share: float, sink: int, reach: int) -> None:
        self._take_band(0)
        for column in range(sink):
            self._take_column(column)
        while self.covered < share:
            columns = self.left[:, : self.first].sum(0)
            bands = np.array([self.left[self.own == d].sum() / PAGE for d in range(reach)])
            if columns.max(initial=0) <= 0 and bands.max() <= 0:
                break
            if columns.max(initial=0) >= bands.max():
                self._take_column(int(columns.argmax()))
            else:
                self._take_band(int(bands.argmax()))
        for page in range(self.first // PAGE):
            here = range(page * PAGE, (page + 1) * PAGE)
            if len(missing := set(here) - set(self.columns)) <= PAGE // 2:
                for column in missing:
                    self._take_column(column)

    def _take_band(self, distance: int) -> None:
        self.left[self.own == distance] = 0
        self.bands.append(distance)

    def _take_column(self, column: int) -> None:
        self.left[:, column] = 0
        self.columns.append(column)
