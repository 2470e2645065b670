"""Trees of guesses: taken apart, walked down, refused."""

from __future__ import annotations

from diastole.spec.tree import branches, outcomes, straightened
from diastole.spec.verify import descent
from diastole.types import Draft

#        0 --- 2, 3
# root <
#        1
TREE = Draft([10, 11, 12, 13], [-1, -1, 0, 0], None, [0.5, 0.2, 0.9, 0.1])
CHAIN = Draft([1, 2, 3])


def test_branches() -> None:
    assert branches(TREE) == [[1], [0, 2], [0, 3]]
    assert branches(CHAIN) == [[0, 1, 2]]
    assert branches(Draft([])) == [[]]
    assert branches(Draft([], [])) == [[]]


def test_every_node_is_in_a_branch_behind_its_ancestors() -> None:
    for path in branches(TREE):
        assert TREE.parents is not None
        assert [TREE.parents[i] for i in path] == [-1, *path[:-1]]
    assert {i for path in branches(TREE) for i in path} == {0, 1, 2, 3}


def test_straightened() -> None:
    assert straightened(CHAIN) is CHAIN
    flat = straightened(Draft([10, 11, 12, 13], [-1, 0, 1, 0], None, [0.5, 0.2, 0.9, 0.1]))
    assert list(flat.tokens) == [10, 11, 12]
    assert flat.odds == [0.5, 0.2, 0.9]


def test_descent() -> None:
    down = descent(TREE)
    assert [down(-1, 10), down(-1, 11), down(-1, 12), down(0, 13), down(1, 12)] == [0, 1, None, 3, None]
    down = descent(CHAIN)
    assert [down(-1, 1), down(-1, 2), down(0, 2), down(2, 4)] == [0, None, 1, None]
    assert descent(Draft([]))(-1, 0) is None


def test_only_nodes_whose_parent_was_right_were_tested() -> None:
    assert outcomes(TREE, [0, 3]) == [(0, True), (1, False), (2, False), (3, True)]
    assert outcomes(TREE, []) == [(0, False), (1, False)]
    assert outcomes(CHAIN, [0]) == [(0, True), (1, False)]
