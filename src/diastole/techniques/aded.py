"""ADED: a table of three tokens in a row that keeps learning from the text, and a tree of guesses searched in it.

Liu, Lei, and others: "Adaptive Draft-Verification for Efficient Large Language Model Decoding", AAAI 2025,
arXiv 2407.12021. What the model itself says is counted once (``diastole calibrate aded``); while a text is written, its
own last tokens weigh more and more; Monte Carlo tree search picks the tree of guesses. No second model.

After the published code where the paper is silent: weights are not normalised again after they were raised, and a
path's reward is 1 + the sum of its weights. Ours: the tree is a trie whose nodes are ranked by visits (the published
pruning drops the longest paths first); verification is the engine's, one draw per node, so texts are exactly the
model's; what a text adds is its own unless ``scope`` says otherwise, so nobody's words show in another's speed; all of
a prompt is learned when its answer begins.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any
from weakref import finalize

import numpy as np

from diastole.kernels import grams
from diastole.kernels.draw import draw_key, stream_key
from diastole.slots import Facts
from diastole.spec.guesser import Guesser
from diastole.types import Array, Draft, Stream, UserError
from diastole.weights.calibration import Calibration, about, find

NEEDS = frozenset({"paged_kv"})
NAME = "aded"
NONE = "none"
MOST = 64  # guesses that one step may verify
PAIRS, SHARED_PAIRS = 1 << 14, 1 << 17  # that one text may change, and all texts of a scope together
TENANTS = 16  # whose changes are kept
FIELDS = ("keys", "offsets", "words", "weights")  # of a table
TOP, MOST_KEPT = 12, 1 << 20  # successors of a pair, and pairs, that are kept in a file
KEEP_SECONDS = 300.0  # between two writings
Tensors = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Params:
    """Knobs."""

    table: str = ""  # file of counts; empty: beside the model, or Diastole's own; none: nothing is known beforehand
    nodes: int = 8  # guesses of one tree, at most
    depth: int = 3  # tokens of a searched path; its end goes on by one
    search: str = "mcts"  # or widest: the nodes with the largest products of shares; chain: the likeliest path alone
    iterations: int = 150  # of the search
    adapt: bool = True
    adapt_step: float = 0.04
    adapt_window: int = 16  # last tokens of the text, learned anew before each draft
    adapt_cap: float = 3.0
    prompt: bool = True  # all of a prompt is learned once
    scope: str = "request"  # who shares what texts add: request, tenant (requests of one cache salt), server
    keep: str = ""  # file that what texts have added is kept in, with scope=server: read at start, written at the end


class Aded(Guesser):
    """Slot ``draft``."""

    def __init__(self, p: Params, facts: Facts) -> None:
        _check(p)
        self.p, self.most = p, p.nodes
        tensors = _tensors(p, facts)
        self.table: Any = _table(tensors)
        self._shared: dict[str, Any] = {}
        self._kept: _Kept | None = None
        if p.keep:
            self._kept = _Kept(Path(p.keep).expanduser(), tensors, about(NAME, facts), self._fresh(""))
            finalize(self, self._kept.write)

    def draft(self, streams: Sequence[Stream], lengths: Sequence[int]) -> Sequence[Draft]:
        if self._kept is not None:
            self._kept.now_and_then()
        return [self._guess(s, n) for s, n in zip(streams, lengths, strict=True)]

    def _guess(self, stream: Stream, n: int) -> Draft:
        p, known = self.p, stream.known
        ids = stream.own.ids
        if known < 2 or n < 1:
            return Draft(())
        changes = self._changes(stream) if p.adapt else None
        if changes is not None:
            changes.learn(self.table, ids[max(known - p.adapt_window, 0) : known], p.adapt_step, p.adapt_cap)
        a, b = ids[known - 2 : known].tolist()
        if p.search == "chain":
            tokens, _, odds = self.table.chain(changes, a, b, min(n, p.depth + 1))
            return Draft(tokens, None, None, odds)
        if p.search == "mcts":
            seed = draw_key(stream_key(stream.req.params.seed or 0, stream.index), known)
            found = self.table.search(changes, a, b, p.iterations, p.depth, 32.0, 8.0, seed, n)
        else:
            found = self.table.widest(changes, a, b, p.depth + 1, n)
        tokens, parents, odds = found
        return Draft(tokens, parents, None, odds)

    def _changes(self, stream: Stream) -> Any:
        own: _Own | None = stream.scratch.get(NAME)
        if own is None:
            own = stream.scratch[NAME] = _Own(self._fresh(stream.req.salt))
            if self.p.prompt:
                own.changes.learn(self.table, stream.own.ids[: stream.known], self.p.adapt_step, self.p.adapt_cap)
        return own.changes

    def _fresh(self, salt: str) -> Any:
        """What a text adds to."""
        if self.p.scope == "request":
            return grams.changes(PAIRS)
        scope = salt if self.p.scope == "tenant" else ""
        if scope not in self._shared:
            if len(self._shared) >= TENANTS:
                del self._shared[next(iter(self._shared))]
            self._shared[scope] = grams.changes(SHARED_PAIRS)
        return self._shared[scope]


class _Own:
    """What one text has added."""

    def __init__(self, changes: Any) -> None:
        self.changes = changes

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Another choice of the request begins anew."""


class _Kept:
    """What all texts have added, and the file for it: a table like those that are counted, which the next start takes.

    Args:
        tensors: of the table that it was added to.
    """

    def __init__(self, path: Path, tensors: Tensors, about: Mapping[str, str], changes: Any) -> None:
        self.path, self.tensors, self.about, self.changes = path, tensors, about, changes
        self.told = False  # that it cannot be written
        self._last = time.monotonic()

    def now_and_then(self) -> None:
        """Write, without making anybody wait for the disk, if it is time."""
        if time.monotonic() - self._last >= KEEP_SECONDS:
            self._last = time.monotonic()
            Thread(target=self._write, args=(self.changes.entries(),), daemon=True).start()

    def write(self) -> None:
        self._write(self.changes.entries())

    def _write(self, entries: Sequence[Array]) -> None:
        if not len(entries[0]):
            return
        try:
            Calibration(merged(self.tensors, entries), self.about).write(self.path)
        except UserError as e:
            if not self.told:
                warnings.warn(f"{NAME}: what was learned is not kept: {e.message}", stacklevel=1)
            self.told = True


def merged(tensors: Tensors, entries: Sequence[Array]) -> dict[str, Array]:
    """A table in which pairs that have changed have what they have now: their heaviest successors, and no more pairs
    than ``MOST_KEPT``, the lightest of which are left out."""
    old = [tensors[name] for name in FIELDS]
    stays = ~np.isin(old[0], entries[0])
    owner = np.repeat(stays, np.diff(old[1]))
    keys = np.concatenate([old[0][stays], entries[0]])
    counts = np.concatenate([np.diff(old[1])[stays], np.diff(entries[1])])
    words, weights = (np.concatenate([old[i][owner], entries[i]]) for i in (2, 3))
    whose = np.repeat(np.arange(len(keys)), counts)
    mass = np.bincount(whose, weights, len(keys))
    rank = np.argsort(-mass, kind="stable")[:MOST_KEPT]
    order = np.lexsort((-weights, keys[whose]))
    order = order[np.isin(whose[order], rank)]
    first = np.concatenate([[True], np.diff(whose[order]) != 0]) if len(order) else np.empty(0, bool)
    place = np.arange(len(order)) - np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    order = order[place < TOP]
    left, each = np.unique(keys[whose[order]], return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(each)]).astype(np.int64)
    return dict(zip(FIELDS, (left, offsets, words[order], weights[order]), strict=True))


def _tensors(p: Params, facts: Facts) -> Tensors:
    kept = Path(p.keep).expanduser()
    if p.keep and kept.exists():
        return find(NAME, facts, str(kept)).tensors
    if p.table == NONE:
        kinds: tuple[type, ...] = (np.uint64, np.int64, np.int32, np.float32)
        return {name: np.zeros(int(name == "offsets"), kind) for name, kind in zip(FIELDS, kinds, strict=True)}
    return find(NAME, facts, p.table).tensors


def _table(tensors: Tensors) -> Any:
    try:
        return grams.table(*(tensors[name] for name in FIELDS))
    except (KeyError, ValueError) as e:
        raise _wrong("table", f"holds no counts ({e}): make it anew") from None


def _check(p: Params) -> None:
    if not 1 <= p.nodes <= MOST:
        raise _wrong("nodes", f"must be between 1 and {MOST}, not {p.nodes}")
    if not 1 <= p.depth <= 16:
        raise _wrong("depth", f"must be between 1 and 16, not {p.depth}")
    if p.search not in {"mcts", "widest", "chain"}:
        raise _wrong("search", f"must be mcts, widest or chain, not {p.search!r:.40}")
    if not 1 <= p.iterations <= 100_000:
        raise _wrong("iterations", f"must be between 1 and 100000, not {p.iterations}")
    if not 0 < p.adapt_step <= p.adapt_cap:
        raise _wrong("adapt_step", f"must be above 0 and at most adapt_cap = {p.adapt_cap}, not {p.adapt_step}")
    if p.adapt_window < 3:
        raise _wrong("adapt_window", f"must be at least 3, not {p.adapt_window}")
    if p.keep and p.scope != "server":
        raise _wrong("keep", f"needs scope=server, which shares what texts add; scope is {p.scope!r:.40}")
    if p.scope not in {"request", "tenant", "server"}:
        raise _wrong("scope", f"must be request, tenant or server, not {p.scope!r:.40}")


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"{NAME}: {knob} {what}", param="use")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"draft": Aded(p, facts)}
