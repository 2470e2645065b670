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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diastole.kernels import grams
from diastole.kernels.draw import draw_key, stream_key
from diastole.slots import Facts
from diastole.spec.guesser import Guesser
from diastole.types import Draft, Stream, UserError
from diastole.weights.calibration import find

NEEDS = frozenset({"paged_kv"})
NAME = "aded"
NONE = "none"
MOST = 64  # guesses that one step may verify
PAIRS, SHARED_PAIRS = 1 << 14, 1 << 17  # that one text may change, and all texts of a scope together
TENANTS = 16  # whose changes are kept


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


class Aded(Guesser):
    """Slot ``draft``."""

    def __init__(self, p: Params, facts: Facts) -> None:
        _check(p)
        self.p, self.most = p, p.nodes
        self.table: Any = _table(p, facts)
        self._shared: dict[str, Any] = {}

    def draft(self, streams: Sequence[Stream], lengths: Sequence[int]) -> Sequence[Draft]:
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


def _table(p: Params, facts: Facts) -> Any:
    if p.table == NONE:
        return grams.table(
            np.empty(0, np.uint64), np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
        )
    found = find(NAME, facts, p.table).tensors
    try:
        return grams.table(*(found[name] for name in ("keys", "offsets", "words", "weights")))
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
    if p.scope not in {"request", "tenant", "server"}:
        raise _wrong("scope", f"must be request, tenant or server, not {p.scope!r:.40}")


def _wrong(knob: str, what: str) -> UserError:
    return UserError(f"{NAME}: {knob} {what}", param="use")


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"draft": Aded(p, facts)}
