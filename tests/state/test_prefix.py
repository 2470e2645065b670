"""The prefix cache against a slow twin, and its eviction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.state.prefix import MIN_PARTIAL, Key, PrefixCache

PAGE = 16


def fill(cache: PrefixCache, key: Key, first_page: int) -> list[int]:
    node, pages = None, []
    for i in range(len(key.tokens) // PAGE):
        node, page = cache.insert(node, key, i, first_page + i)
        pages.append(page)
    return pages


tokens = st.lists(st.integers(0, 1), min_size=0, max_size=90).map(lambda x: np.array(x, np.int32))


@given(st.lists(tokens, max_size=6), tokens)
@settings(max_examples=200, deadline=None)
def test_match_is_the_longest_common_prefix(known: list[np.ndarray], wanted: np.ndarray) -> None:
    cache = PrefixCache(PAGE)
    spelled: dict[int, np.ndarray] = {}
    for n, text in enumerate(known):
        for i, page in enumerate(fill(cache, Key("s", text), 100 * n)):
            spelled[page] = text[: (i + 1) * PAGE]
    hit = cache.match(Key("s", wanted))
    best = 0
    for text in known:
        whole = text[: len(text) // PAGE * PAGE]
        limit = min(len(whole), max(len(wanted) - 1, 0))
        same = 0
        while same < limit and whole[same] == wanted[same]:
            same += 1
        # a partial page must save enough to be worth its copy
        best = max(best, same if same % PAGE >= MIN_PARTIAL else same // PAGE * PAGE)
    assert hit.units == best
    assert len(hit.pages) == -(-best // PAGE)
    for i, page in enumerate(hit.pages):
        end = min((i + 1) * PAGE, best)
        np.testing.assert_array_equal(spelled[page][:end], wanted[:end])


def test_spaces_are_apart() -> None:
    cache = PrefixCache(PAGE)
    text = np.zeros(40, np.int32)
    fill(cache, Key("a", text), 0)
    assert cache.match(Key("a", text)).units == 39 - 39 % PAGE
    assert cache.match(Key("b", text)).units == 0


def test_eviction_takes_leaves_least_recently_used_first() -> None:
    cache = PrefixCache(PAGE)
    a = np.arange(48, dtype=np.int32)
    b = np.arange(100, 148, dtype=np.int32)
    fill(cache, Key("s", a), 0)
    fill(cache, Key("s", b), 10)
    cache.match(Key("s", np.append(a, 0)))  # now a is fresher than b
    assert [cache.evict(lambda page: page != 2) for _ in range(3)] == [12, 11, 10]
    assert [cache.evict(lambda page: True) for _ in range(3)] == [2, 1, 0]
    assert len(cache) == 0
    with pytest.raises(LookupError):
        cache.evict(lambda page: True)


def test_pages_in_use_are_not_evicted_and_keep_their_parents() -> None:
    cache = PrefixCache(PAGE)
    fill(cache, Key("s", np.arange(48, dtype=np.int32)), 0)
    with pytest.raises(LookupError):
        cache.evict(lambda page: page != 2)
    assert cache.match(Key("s", np.arange(49, dtype=np.int32))).units == 48
