"""PrefixCache: a radix tree over pages of tokens, so that a prompt which begins like an earlier one is not recomputed.

An edge is one full page of tokens, compared token by token (no hashes, so no collisions). The root is chosen by the
key's ``space``: the stack's fingerprint and the request's salt, because the same tokens under another stack or another
owner are other state. A hit may end inside a page: the lease then shares that page and copies it on its first write.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import numpy as np

from diastole.types import Array

MIN_PARTIAL = 8  # copying a page to save fewer tokens than this is not worth it
_HEAD = MIN_PARTIAL * 4  # bytes


class Key(NamedTuple):
    """What a prefix is found by. tokens (n,) int32."""

    space: str
    tokens: Array


@dataclass(eq=False, slots=True)
class Node:
    """One cached page; its path from the root spells the tokens before it."""

    tokens: bytes
    page: int
    parent: Node | None
    children: dict[bytes, Node] = field(default_factory=dict)
    heads: dict[bytes, list[Node]] = field(default_factory=dict)  # children by their first MIN_PARTIAL tokens
    used: int = 0


class Hit(NamedTuple):
    """The longest known prefix: ``units`` tokens on ``pages``, the first ``whole`` of them complete, up to ``node``."""

    pages: list[int]
    units: int
    whole: int
    node: Node | None


class PrefixCache:
    """Pages of finished prefixes, evicted least recently used first, leaves first.

    Args:
        page: tokens per page.
        block: a page's rows depend on all tokens of the block of whole pages that it lies in: then an edge is that
            block, and a hit may still end within one. Up to a page: they depend on no later token.
    """

    def __init__(self, page: int, block: int = 1) -> None:
        self.page = page
        self._block = max(page, block)
        self.idle = 0  # cached pages that nobody else holds; kept by the pool
        self._roots: dict[str, Node] = {}
        self._by_page: dict[int, Node] = {}
        self._tick = count(1)
        self._heap: list[tuple[int, int, Node]] = []  # leaves by ``used``; entries that are no longer true are skipped

    def __contains__(self, page: int) -> bool:
        return page in self._by_page

    def __len__(self) -> int:
        return len(self._by_page)

    def pages(self) -> Iterator[int]:
        return iter(self._by_page)

    def match(self, key: Key) -> Hit:
        """Find the longest known prefix that is shorter than the key: the last token always has to run."""
        node = self._roots.get(key.space)
        hit = Hit([], 0, 0, None)
        if node is None:
            return hit
        size = self.page
        tokens = key.tokens[: len(key.tokens) - 1]
        pages: list[int] = []
        while (len(pages) + 1) * size <= len(tokens):
            edge = self._edge(tokens, len(pages))
            child = node.children.get(edge.tobytes()) if len(edge) == self._block else None
            if child is None:
                break
            node = child
            pages.append(node.page)
            self._touch(node)
        whole, units = len(pages), len(pages) * size
        partial, shared = self._partial(node, tokens[units : units + size])
        if partial is not None:
            self._touch(partial)
            pages.append(partial.page)
            units += shared
        return Hit(pages, units, whole, node if whole else None)

    def _edge(self, tokens: Array, index: int) -> Array:
        """The tokens that page ``index`` is known by, fewer at the end."""
        first = index * self.page // self._block * self._block
        return tokens[first : first + self._block]

    def insert(self, node: Node | None, key: Key, index: int, page: int) -> tuple[Node, int]:
        """Add page ``index`` of the key below ``node``. Returns its node and the page kept there, which is another than
        ``page`` if these tokens were cached already."""
        parent = node if node is not None else self._roots.setdefault(key.space, Node(b"", -1, None))
        edge = self._edge(key.tokens, index).tobytes()
        child = parent.children.get(edge)
        if child is None:
            child = Node(edge, page, parent)
            parent.children[edge] = child
            parent.heads.setdefault(edge[:_HEAD], []).append(child)
            self._by_page[page] = child
        self._touch(child)
        return child, child.page

    def replace(self, node: Node, page: int) -> None:
        """Know the tokens of a node by another page."""
        del self._by_page[node.page]
        node.page = page
        self._by_page[page] = node

    def evict(self, may: Callable[[int], bool]) -> int:
        """Forget the least recently used leaf that ``may`` be taken, and return its page.

        Raises:
            LookupError: there is none.
        """
        kept: list[tuple[int, int, Node]] = []
        try:
            while self._heap:
                entry = heapq.heappop(self._heap)
                used, _, node = entry
                if node.children or node.used != used or self._by_page.get(node.page) is not node:
                    continue
                if not may(node.page):
                    kept.append(entry)
                    continue
                self._remove(node)
                self.idle -= 1
                return node.page
        finally:
            for entry in kept:
                heapq.heappush(self._heap, entry)
        raise LookupError("no cached page can be evicted")

    def forget(self, page: int) -> list[int]:
        """Stop knowing a page and all that continue it; returns them. Who holds any of them keeps it."""
        node = self._by_page[page]
        gone = [p for child in list(node.children.values()) for p in self.forget(child.page)]
        self._remove(node)
        return [*gone, page]

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[node.tokens]
        same = parent.heads[node.tokens[:_HEAD]]
        same.remove(node)
        if not same:
            del parent.heads[node.tokens[:_HEAD]]
        del self._by_page[node.page]
        if parent.children:
            return
        if parent.parent is not None:  # now a leaf itself
            heapq.heappush(self._heap, (parent.used, parent.page, parent))
        else:
            self._roots = {space: root for space, root in self._roots.items() if root is not parent}

    def _partial(self, node: Node, tokens: Array) -> tuple[Node | None, int]:
        best, longest = None, 0
        if self._block > self.page:
            return best, longest
        for child in node.heads.get(tokens[:MIN_PARTIAL].tobytes(), ()):
            other = np.frombuffer(child.tokens, np.int32)[: len(tokens)]
            differ = np.flatnonzero(other != tokens[: len(other)])
            shared = int(differ[0]) if len(differ) else len(other)
            if shared > longest:
                best, longest = child, shared
        return best, longest

    def _touch(self, node: Node) -> None:
        node.used = next(self._tick)
        if not node.children:
            heapq.heappush(self._heap, (node.used, node.page, node))
        if len(self._heap) > 64 + 4 * len(self._by_page):
            self._heap = [(n.used, n.page, n) for n in self._by_page.values() if not n.children]
            heapq.heapify(self._heap)
