"""Tables of successors and the trees that are searched in them: native beside the plain twin, and both by hand."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from diastole.calibrate.aded import count
from diastole.kernels import grams
from diastole.kernels.grams import SlowChanges, SlowTable
from diastole.types import Array

WORDS = 40


def text(n: int, seed: int = 0) -> Array:
    """Zipf-like, so that some pairs come often."""
    rng = np.random.default_rng(seed)
    return np.minimum(rng.zipf(1.5, n), WORDS - 1).astype(np.int32)


def tables(seed: int = 0) -> tuple[Any, SlowTable]:
    found = count(text(4000, seed).astype(np.int64))
    arrays = [found[name] for name in ("keys", "offsets", "words", "weights")]
    return grams.table(*arrays), SlowTable(*arrays)


def same(a: grams.Tree, b: grams.Tree) -> bool:
    return all(list(x) == list(y) for x, y in zip(a, b, strict=True))


def is_tree(tree: grams.Tree) -> bool:
    tokens, parents, odds = tree
    siblings = set(zip(parents, tokens, strict=True))
    fits = all(-1 <= p < i for i, p in enumerate(parents)) and all(0 < o <= 1 for o in odds)
    return fits and len(siblings) == len(tokens)


@pytest.mark.parametrize("levels", [1, 3, 5])
@pytest.mark.parametrize("changed", [False, True])
def test_native_trees_are_the_twin_s(levels: int, changed: bool) -> None:
    fast, slow = tables()
    more = (grams.changes(50), SlowChanges(50)) if changed else (None, None)
    rng = np.random.default_rng(1)
    grown = 0
    for case in range(60):
        if changed:
            ids = text(20, 100 + case)
            more[0].learn(fast, ids, 0.04, 3.0)
            more[1].learn(slow, ids, 0.04, 3.0)
            assert len(more[0]) == len(more[1])
            for mine, its in zip(more[0].entries(), more[1].entries(), strict=True):
                assert mine.dtype == its.dtype
                assert mine.tolist() == its.tolist()
        a, b = (int(x) for x in rng.integers(1, 8, 2))
        want = slow.search(more[1], a, b, 60, levels, 32.0, 8.0, case, 12)
        assert same(fast.search(more[0], a, b, 60, levels, 32.0, 8.0, case, 12), want)
        assert is_tree(want)
        wide = slow.widest(more[1], a, b, levels, 12)
        assert same(fast.widest(more[0], a, b, levels, 12), wide)
        assert is_tree(wide)
        assert same(fast.chain(more[0], a, b, 4), slow.chain(more[1], a, b, 4))
        grown += len(want[0])
    assert grown > 100


def test_counts_are_those_of_the_text() -> None:
    ids = text(2000)
    by_hand: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for a, b, c in zip(ids, ids[1:], ids[2:], strict=False):
        by_hand[int(a), int(b)][int(c)] += 1
    found = count(ids.astype(np.int64), top=3, least=2)
    keys = found["keys"].tolist()
    assert keys == sorted(keys)
    for (a, b), successors in by_hand.items():
        best = sorted(((n, -c) for c, n in successors.items() if n >= 2), reverse=True)[:3]
        if not best:
            assert (a << 32 | b) not in keys
            continue
        i = keys.index(a << 32 | b)
        part = slice(found["offsets"][i], found["offsets"][i + 1])
        assert found["words"][part].tolist() == [-c for _, c in best]
        total = sum(successors.values())
        assert np.allclose(found["weights"][part], [n / total for n, _ in best])


def test_what_a_text_says_weighs_more_each_time() -> None:
    fast, _ = tables()
    changes = grams.changes(10)
    before = dict(zip(*fast.widest(None, 1, 1, 1, 40)[::2], strict=True))
    assert 30 not in before
    for _ in range(200):
        changes.learn(fast, np.array([1, 1, 30], np.int32), 0.04, 3.0)
    tokens, _, odds = fast.widest(changes, 1, 1, 1, 40)
    assert tokens[0] == 30
    assert odds[0] == pytest.approx(3 / (3 + 1), abs=0.05)  # capped; what was there before weighs nearly 1
    assert set(before) <= set(tokens)


def test_the_oldest_pairs_are_forgotten() -> None:
    fast, _ = tables()
    changes = grams.changes(3)
    for word in range(10):
        changes.learn(fast, np.array([100 + word, 905, 6], np.int32), 0.04, 3.0)
    assert len(changes) == 3
    assert fast.widest(changes, 100, 905, 1, 4)[0] == []
    assert fast.widest(changes, 109, 905, 1, 4)[0] == [6]


def test_an_unknown_pair_has_no_tree() -> None:
    for table in tables():
        assert same(table.search(None, 900, 901, 50, 3, 32.0, 8.0, 0, 8), ([], [], []))
        assert same(table.widest(None, 900, 901, 3, 8), ([], [], []))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keys", np.array([2, 1], np.uint64)),
        ("offsets", np.array([0, 1, 3], np.int64)),
        ("offsets", np.array([0, 2, 2], np.int32)),
        ("words", np.zeros(1, np.int32)),
        ("weights", np.array([1, 0], np.float32)),
        ("weights", np.array([1, np.nan], np.float32)),
    ],
)
def test_wrong_tables_are_refused(name: str, value: Array) -> None:
    arrays = {
        "keys": np.array([1, 2], np.uint64),
        "offsets": np.array([0, 1, 2], np.int64),
        "words": np.zeros(2, np.int32),
        "weights": np.ones(2, np.float32),
    }
    grams.table(*arrays.values())
    with pytest.raises(ValueError, match=name):
        grams.table(*(arrays | {name: value}).values())


def test_of_an_unknown_pair_what_follows_its_second_token_is_taken() -> None:
    ids = np.array([1, 2, 3, 7, 2, 3, 8, 2, 4, 9, 2, 3], np.int64)
    found = count(ids, least=1)
    arrays = [found[name] for name in ("keys", "offsets", "words", "weights")]
    for table in (grams.table(*arrays), SlowTable(*arrays)):
        assert table.widest(None, 8, 2, 1, 8)[0] == [4]  # known
        tokens, parents, odds = table.widest(None, 5, 2, 1, 8)
        assert list(tokens) == [3, 4]
        assert list(parents) == [-1, -1]
        assert list(odds) == [0.75, 0.25]
        assert list(table.chain(None, 5, 2, 2)[0]) == [3, 7]
