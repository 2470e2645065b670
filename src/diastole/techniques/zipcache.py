"""ZipCache: tokens that matter are kept in four bits, the others in two.

He, Zhang, Wu, Liu, Zhou, Zhuang: "ZipCache: Accurate and Efficient KV Cache Quantization with Salient Token
Identification", NeurIPS 2024, arXiv 2405.14256. A token's saliency is the attention that it receives, summed over the
query heads that share its key and divided by the number of queries that could see it, of which a few probe: the latest
and some at random. Keys are quantised by channel, values by token after their channels have been brought to one scale.
It needs a paged cache and a model all of whose layers see everything.

Ours: a page of 64 tokens is quantised by itself and once, so it can be shared, swapped and never drifts; each page and
head has the same number of four-bit tokens (``ratio`` of 64, rounded down to a multiple of 4) instead of a share of the
whole prompt; both classes share steps, and two-bit codes stand for 2, 6, 9 and 13 of the sixteen, which errs less than
the ends of the range do. A prompt is sealed every ``slice`` tokens and at its end, output every ``recompress_every``,
at positions that no chunk and no neighbour changes; later rows of a prompt already see what is sealed.

Bytes of a page of one head with 64 channels, 36 of its tokens in four bits: codes 2 x (36 x 32 + 28 x 16) = 3200; which
tokens 8; of keys center and step 2 x 64, of values scale 32 and, by token, step and center 64, their base 4: 3436 in
all, beside 16384 in bf16. A page that is not sealed yet takes these and 256 of saliency.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from diastole.slots import NO_END, Facts, View
from diastole.state.pages import PAGE
from diastole.stores.zip import ZipKV
from diastole.types import Array, Batch, Stream, UserError

NEEDS = frozenset({"paged_kv"})
_PAIRS = {(16, 16), (4, 4), (4, 2), (2, 2)}


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    hi: int = 4  # bits of salient tokens; hi and lo are 4 and 2, 4 and 4, 2 and 2, or 16 and 16: nothing is sealed
    lo: int = 2  # bits of the others
    ratio: float = 0.6  # of tokens that are salient
    probe_recent: float = 0.05  # of rows, the latest before each sealing, that probe
    probe_random: float = 0.05  # of rows, anywhere, that probe too
    slice: int = 256  # tokens of a prompt that are sealed at once, and that prompts share whole
    recompress_every: int = 64  # tokens of output that are sealed at once
    raw: float = 0.0625  # of all pages, so many may be in 16 bits at once


class Watched(NamedTuple):
    """What the probes of a batch look at."""

    which: Array  # (R,) int32: rows of the batch
    streams: list[Stream]  # that have probes
    slots: list[Array]  # pages in 16 bits of each of them
    tables: Array  # (B, P) int32: the same, padded
    starts: Array  # (B+1,) int32: probes of each
    hi: Array  # (R,) int32: tokens of these pages that a probe sees
    own: list[Array]  # positions of the last probes of each stream, those that it says itself: these may be guesses


class Added(NamedTuple):
    """What the probes of a stream have added up in one layer."""

    layer: int
    slots: Array
    sums: Array  # (n + 1, pages, Hkv, 64): without any of the last n probes, with the first of them, ...
    at: Array  # (n,) their positions

    def upto(self, end: int) -> Array:
        """What counts if the stream's rows before ``end`` are right."""
        found: Array = self.sums[int((self.at < end).sum())]
        return found


class ZipCache(ZipKV):
    """Slots ``kv`` and ``probe``."""

    def __init__(self, p: Params, facts: Facts) -> None:
        _check(p, facts)
        self.p = p
        fine = {4: PAGE, 2: int(p.ratio * PAGE) // 4 * 4}[p.lo] if p.hi == 4 else 0
        most = max(p.slice, p.recompress_every) // PAGE + 1
        super().__init__(None if p.hi == 16 else fine, most, p.raw)
        self._added: dict[Stream, list[Added]] = {}  # of a batch that is not settled yet

    # ---- where things happen, by position

    def span(self, stream: Stream) -> int:
        """Up to the end of a slice, of the prompt, or of a stretch of output."""
        if not self.seals:
            return NO_END
        if stream.done < stream.given:
            return min((stream.done // self.p.slice + 1) * self.p.slice, stream.given) - stream.done
        return self.p.recompress_every - stream.done % self.p.recompress_every

    def shareable(self, stream: Stream, units: int) -> int:
        """Whole slices of the prompt."""
        return min(units, stream.given) // self.p.slice * self.p.slice if self.seals else units

    def words(self, tokens: Array) -> Array:
        """Whole slices, the first two tokens of each replaced by a hash of them all: which tokens of a page keep four
        bits depends on what comes later in its slice."""
        if not self.seals:
            return tokens
        whole = len(tokens) // self.p.slice * self.p.slice
        found = tokens[: whole + 1].astype(np.int32)  # and one more, if there is one: the last is not looked up
        for at in range(0, whole, self.p.slice):
            digest = hashlib.blake2b(found[at : at + self.p.slice].tobytes(), digest_size=8).digest()
            found[at : at + 2] = np.frombuffer(digest, np.int32)
        return found

    def seal(self, stream: Stream, upto: int) -> None:
        """Seal the whole pages below ``upto`` that are not, if that is the end of a slice, of the prompt or of a
        stretch of output."""
        self._settle(stream, upto)
        every = self.p.slice if upto < stream.given else self.p.recompress_every
        if not self.seals or (upto % every and upto != stream.given):
            return
        places = stream.leases["kv"].places
        first = last = upto // PAGE
        while first and self.slots[places[first - 1]] >= 0:
            first -= 1
        if first < last:
            at = np.arange(first * PAGE, upto)
            seen = np.cumsum(self._probes(at, np.full(len(at), stream.given))[::-1])[::-1]
            self.compress(places[first:last], seen[: (last - first) * PAGE].reshape(-1, PAGE))

    def _probes(self, at: Array, given: Array) -> Array:
        """Whether rows at these positions probe, in streams whose prompts have ``given`` tokens."""
        p = self.p
        of_prompt = at < given
        last = given // p.slice * p.slice  # where the slice that the prompt's end cuts short begins
        short = of_prompt & (at >= last)
        every = np.where(short, given - last, np.where(of_prompt, p.slice, p.recompress_every))
        left = np.where(short, given - at, every - at % every)
        recent = left <= np.ceil(every * p.probe_recent)
        mixed = at.astype(np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )  # the same positions in all streams: pages are shared
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        drawn: Array = (mixed >> np.uint64(40)) < np.uint64(p.probe_random * 2**24)
        return recent | drawn

    # ---- saliency

    def need(self, layer: int, b: Batch) -> bool:
        if "zipcache" not in b.notes:
            self._added = {}  # of a batch that has failed
            b.notes["zipcache"] = self._watch(b) if self.seals else None
        return b.notes["zipcache"] is not None

    def _watch(self, b: Batch) -> Watched | None:
        owner = np.repeat(np.arange(len(b.grants), dtype=np.int32), np.diff(b.starts))
        given = np.array([s.given for s, _ in b.grants], np.int32)
        which = np.flatnonzero(self._probes(b.pos, given[owner])).astype(np.int32)
        if not len(which):
            return None
        streams, counts = np.unique(owner[which], return_counts=True)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        hi, slots, said = b.hi[which].copy(), [], []
        for i, first, last in zip(streams, starts[:-1], starts[1:], strict=True):
            own = self.slots[b.tables[i, : -(-int(b.hi[b.starts[i + 1] - 1]) // PAGE)]]
            sealed = int((own < 0).sum())  # always the first ones
            slots.append(own[sealed:])
            hi[first:last] -= sealed * PAGE
            at = b.pos[which[first:last]]
            said.append(at[at >= given[i]])
        tables = np.zeros((len(slots), max(map(len, slots))), np.int32)
        for row, own in zip(tables, slots, strict=True):
            row[: len(own)] = own
        return Watched(which, [b.grants[i].stream for i in streams], slots, tables, starts, hi, said)

    def see(self, view: View, q: Array, out: Array, lse: Array) -> None:
        """Add up the attention that tokens in 16 bits receive."""
        w: Watched = view.b.notes["zipcache"]
        s = np.empty((len(w.which), q.shape[1], w.tables.shape[1] * PAGE), np.float32)
        own, lo = np.ascontiguousarray(q[w.which]), np.zeros_like(w.hi)
        view.ops.scores(own, self.raw[view.layer], "bf16", w.tables, w.starts, lo, w.hi, view.scale, s)
        s -= lse[w.which][..., None]
        np.exp(s, out=s)
        weights = s.reshape(len(own), self._spec.kv_heads, -1, s.shape[2]).sum(2)
        for i, (stream, slots, own) in enumerate(zip(w.streams, w.slots, w.own, strict=True)):
            rows = weights[w.starts[i] : w.starts[i + 1], :, : len(slots) * PAGE]
            by_page = rows.reshape(len(rows), rows.shape[1], len(slots), PAGE).swapaxes(1, 2)
            sure = len(rows) - len(own)
            # One after the other, so that the sum is the same however they come.
            first = np.add.reduce(np.concatenate([self.saliency[view.layer, slots][None], by_page[:sure]]), axis=0)
            sums = np.add.accumulate(np.concatenate([first[None], by_page[sure:]]), axis=0)
            self._added.setdefault(stream, []).append(Added(view.layer, slots, sums, own))

    def _settle(self, stream: Stream, upto: int) -> None:
        """The batch has gone well: what it added counts, as far as the stream's rows were right."""
        for added in self._added.pop(stream, ()):
            self.saliency[added.layer, added.slots] = added.upto(upto)


def _check(p: Params, facts: Facts) -> None:
    if (p.hi, p.lo) not in _PAIRS:
        raise _wrong("hi and lo", f"are 4 and 2, 4 and 4, 2 and 2, or 16 and 16, not {p.hi} and {p.lo}")
    for knob in ("ratio", "probe_random"):
        if not 0 <= getattr(p, knob) <= 1:
            raise _wrong(knob, f"must lie between 0 and 1, not {getattr(p, knob)}")
    for knob in ("probe_recent", "raw"):
        if not 0 < getattr(p, knob) <= 1:
            raise _wrong(knob, f"must be above 0 and at most 1, not {getattr(p, knob)}")
    for knob in ("slice", "recompress_every"):
        if getattr(p, knob) < PAGE or getattr(p, knob) % PAGE:
            raise _wrong(knob, f"must be a multiple of {PAGE}, not {getattr(p, knob)}")
    if facts.windowed:
        raise _wrong("hi", "must be 16, for layers of this model see a window only, which would cut pages")


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"zipcache: {knob} {what}", param="use")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    zipcache = ZipCache(p, facts)
    return {"kv": zipcache, "probe": zipcache}
