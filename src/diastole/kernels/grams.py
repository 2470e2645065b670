"""Tables of what follows pairs of tokens, and trees of guesses grown over them.

A table maps a pair (a, b) to its successors c with weights. It never changes; what a text in progress adds is kept
beside it, for a bounded number of pairs. A pair that has changed has a copy of the table's successors there. Of a pair
that nobody knows, what follows its second token is taken, if the table says that of (``ALONE``, b).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from diastole.kernels.draw import mix
from diastole.types import Array

Tree = tuple[Sequence[int], Sequence[int], Sequence[float]]  # tokens; parents, -1: the root; share among siblings
Successors = list[tuple[int, float]]
ALONE = 0xFFFFFFFF  # in the place of a pair's first token


class GramChanges(Protocol):
    """What texts add, for at most ``most`` pairs: the oldest are forgotten first. Made with ``changes(most)``."""

    def learn(self, table: GramTable, ids: Array, step: float, cap: float) -> None:
        """Every three tokens in a row of ids (n,) int32 weigh ``step`` more, up to ``cap``."""
        ...

    def entries(self) -> tuple[Array, Array, Array, Array]:
        """All that has changed, as a table is made of: keys, offsets, words, weights."""
        ...

    def __len__(self) -> int: ...


class GramTable(Protocol):
    """Made with ``table(keys, offsets, words, weights)``: keys (n,) uint64, a << 32 | b, ascending; the successors of
    pair i are words (m,) int32 with weights (m,) float32 at offsets[i]..offsets[i + 1], offsets (n + 1,) int64."""

    def search(
        self,
        changes: GramChanges | None,
        a: int,
        b: int,
        iterations: int,
        levels: int,
        c1: float,
        c2: float,
        seed: int,
        most: int,
    ) -> Tree:
        """What may follow (a, b), found by trying paths of ``levels`` tokens (Monte Carlo tree search with PUCT): up to
        ``most`` nodes, those visited most first; ends of paths go on with their likeliest successor."""
        ...

    def widest(self, changes: GramChanges | None, a: int, b: int, levels: int, most: int) -> Tree:
        """The ``most`` nodes with the largest products of shares, the largest first."""
        ...

    def chain(self, changes: GramChanges | None, a: int, b: int, most: int) -> Tree:
        """Up to ``most`` tokens, each the heaviest successor of the two before it."""
        ...


class SlowChanges:
    """The plain twin of native ``GramChanges``."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.entries_by_key: dict[int, Successors] = {}

    def __len__(self) -> int:
        return len(self.entries_by_key)

    def learn(self, table: SlowTable, ids: Array, step: float, cap: float) -> None:
        tokens = ids.tolist()
        for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False):
            key = a << 32 | b
            if key not in self.entries_by_key:
                if self.most == 0:
                    return
                if len(self.entries_by_key) >= self.most:
                    del self.entries_by_key[next(iter(self.entries_by_key))]
                self.entries_by_key[key] = table.base(key)
            found = self.entries_by_key[key]
            for i, (word, weight) in enumerate(found):
                if word == c:
                    more = float(np.float32(weight) + np.float32(step))
                    found[i] = word, min(more, max(float(np.float32(cap)), weight))
                    break
            else:
                found.append((c, float(np.float32(min(step, cap)))))

    def entries(self) -> tuple[Array, Array, Array, Array]:
        keys = sorted(self.entries_by_key)
        found = [s for key in keys for s in self.entries_by_key[key]]
        offsets = np.cumsum([0, *(len(self.entries_by_key[key]) for key in keys)], dtype=np.int64)
        words, weights = np.array([w for w, _ in found], np.int32), np.array([x for _, x in found], np.float32)
        return np.array(keys, np.uint64), offsets, words, weights


class _Node:
    __slots__ = ("children", "depth", "key", "parent", "share", "visits", "weight", "word", "worth")

    def __init__(self, word: int, parent: _Node | None, key: int, weight: float, share: float) -> None:
        self.word, self.parent, self.key, self.weight, self.share = word, parent, key, weight, share
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: list[_Node] | None = None  # None: not looked at yet
        self.visits, self.worth = 0, 0.0


class _Dice:
    def __init__(self, seed: int) -> None:
        self.state = seed

    def pick(self, found: Successors) -> int:
        """Which of these, in proportion to their weights."""
        self.state = mix(self.state)
        left = (self.state >> 11) * 2.0**-53 * _weight(found)
        for i, (_, weight) in enumerate(found):
            left -= weight
            if left < 0:
                return i
        return len(found) - 1


class SlowTable:
    """The plain twin of native ``GramTable``."""

    def __init__(self, keys: Array, offsets: Array, words: Array, weights: Array) -> None:
        self.keys, self.offsets, self.words, self.weights = keys, offsets, words, weights

    def base(self, key: int) -> Successors:
        """The table's own successors of a pair."""
        i = int(np.searchsorted(self.keys, np.uint64(key)))
        if i == len(self.keys) or int(self.keys[i]) != key:
            return []
        part = slice(self.offsets[i], self.offsets[i + 1])
        return list(zip(self.words[part].tolist(), self.weights[part].tolist(), strict=True))

    def _of(self, changes: SlowChanges | None, key: int) -> Successors:
        if changes is not None and key in changes.entries_by_key:
            return changes.entries_by_key[key]
        return self.base(key) or self.base(ALONE << 32 | key & 0xFFFFFFFF)

    def _unfold(self, changes: SlowChanges | None, node: _Node) -> list[_Node]:
        found = self._of(changes, node.key)
        sum = _weight(found)
        node.children = [_Node(w, node, _next(node.key, w), x, float(np.float32(x / sum))) for w, x in found]
        return node.children

    def search(
        self,
        changes: SlowChanges | None,
        a: int,
        b: int,
        iterations: int,
        levels: int,
        c1: float,
        c2: float,
        seed: int,
        most: int,
    ) -> Tree:
        root, dice = _Node(b, None, a << 32 | b, 0.0, 1.0), _Dice(seed)
        nodes = [root]
        for _ in range(iterations):
            node, sum = root, 0.0
            while node.children:
                node = _select(node, c1, c2)
                sum += node.weight
            if node.depth < levels and node.children is None:
                found = self._of(changes, node.key)
                drawn = dice.pick(found) if found else 0
                nodes += self._unfold(changes, node)
                if node.children:
                    node = node.children[drawn]
                    sum += node.weight
            key = node.key
            for _ in range(node.depth, levels):
                found = self._of(changes, key)
                if not found:
                    break
                word, weight = found[dice.pick(found)]
                sum += weight
                key = _next(key, word)
            at: _Node | None = node
            while at is not None:
                at.visits, at.worth, at = at.visits + 1, at.worth + 1 + sum, at.parent
        ranks = [(float(n.visits), n) for n in nodes[1:] if n.visits]
        for _, node in ranks[:]:
            found = self._of(changes, node.key) if node.depth >= 2 and not node.children else []
            if found:
                word, weight = max(found, key=lambda s: s[1])
                share = float(np.float32(weight / _weight(found)))
                ranks.append((node.visits * share, _Node(word, node, 0, weight, share)))
        order = sorted(range(len(ranks)), key=lambda i: -ranks[i][0])  # of equals, parents come first
        return _tree([ranks[i][1] for i in order[:most]], root)

    def widest(self, changes: SlowChanges | None, a: int, b: int, levels: int, most: int) -> Tree:
        root = _Node(b, None, a << 32 | b, 0.0, 1.0)
        open = [(-n.share, i, n) for i, n in enumerate(self._unfold(changes, root))]
        taken: list[_Node] = []
        count = len(open)
        while open and len(taken) < most:
            least = min(open, key=lambda o: o[:2])
            open.remove(least)
            taken.append(least[2])
            if least[2].depth < levels:
                further = self._unfold(changes, least[2])
                open += [(least[0] * n.share, count + i, n) for i, n in enumerate(further)]
                count += len(further)
        return _tree(taken, root)

    def chain(self, changes: SlowChanges | None, a: int, b: int, most: int) -> Tree:
        tokens: list[int] = []
        odds: list[float] = []
        key = a << 32 | b
        while len(tokens) < most and (found := self._of(changes, key)):
            word, weight = max(found, key=lambda s: s[1])
            tokens.append(word)
            odds.append(float(np.float32(weight / _weight(found))))
            key = _next(key, word)
        return tokens, range(-1, len(tokens) - 1), odds


def slow_longest_match(ids: Array, most: int) -> tuple[int, int]:
    """The plain twin of ``longest_match``: where ids (n,) int32 went on after the longest earlier match of their last
    tokens, and how many of these match, up to ``most``; of equally long ones the latest; (n, 0): none does."""
    n = len(ids)
    ends = np.flatnonzero(ids[: n - 1] == ids[n - 1]) if n else np.empty(0, np.int64)
    if not len(ends):
        return n, 0
    length = 1
    while length < min(most, n - 1):
        further = ends[ends >= length]
        further = further[ids[further - length] == ids[n - 1 - length]]
        if not len(further):
            break
        ends, length = further, length + 1
    return int(ends[-1]) + 1, length


def _weight(found: Successors) -> float:
    sum = 0.0
    for _, weight in found:
        sum += weight
    return sum


def _next(key: int, word: int) -> int:
    return (key & 0xFFFFFFFF) << 32 | word


def _select(parent: _Node, c1: float, c2: float) -> _Node:
    assert parent.children
    tried, wish = math.sqrt(parent.visits), c1 + math.log((parent.visits + c2 + 1) / c2)
    best, highest = None, 0.0
    for child in parent.children:
        if not child.visits:
            return child
        value = child.worth / child.visits + wish * child.weight * tried / (1 + child.visits)
        if best is None or value > highest:
            best, highest = child, value
    assert best is not None
    return best


def _tree(nodes: Sequence[_Node], root: _Node) -> Tree:
    place = {id(n): i for i, n in enumerate(nodes)}
    parents = [-1 if n.parent is root else place[id(n.parent)] for n in nodes]
    return [n.word for n in nodes], parents, [n.share for n in nodes]


def _native() -> tuple[Any, Any, Any]:
    try:
        module = import_module("diastole.kernels._native")
    except ImportError:
        return SlowTable, SlowChanges, slow_longest_match
    return module.GramTable, module.GramChanges, module.longest_match


table, changes, longest_match = _native()
