"""Trees of guesses, taken apart into branches.

A branch is a path from the root to a leaf. It has pages of its own behind the stream's known tokens, in which all its
tokens stand in their places, so that a row sees exactly what it would have seen if the tokens had come one by one, in
the same order and to the same bits. A node that several branches share is computed once, for the first of them.

    draft     0 --- 2          branches  [0, 2]  [0, 3]  [1]
            /   \\ - 3         computed  [0, 2]     [3]  [1]
     root  - 1
"""

from __future__ import annotations

from collections.abc import Sequence

from diastole.types import Draft


def branches(draft: Draft) -> list[list[int]]:
    """The nodes of each branch from the root on; those with the first nodes first. At least one, which may be empty."""
    n = len(draft.tokens)
    if draft.parents is None:
        return [list(range(n))]
    paths: list[list[int]] = []
    for leaf in sorted(set(range(n)) - set(draft.parents)):
        path = [leaf]
        while (parent := draft.parents[path[-1]]) >= 0:
            path.append(parent)
        paths.append(path[::-1])
    return paths or [[]]


def straightened(draft: Draft) -> Draft:
    """Its first branch, as a chain."""
    if draft.parents is None:
        return draft
    return part(draft, branches(draft)[0])._replace(parents=None)


def part(draft: Draft, nodes: Sequence[int]) -> Draft:
    """These nodes of a draft, ascending, none without its parent."""
    if len(nodes) == len(draft.tokens):
        return draft
    place = {node: i for i, node in enumerate(nodes)} | {-1: -1}
    return Draft(
        [draft.tokens[i] for i in nodes],
        None if draft.parents is None else [place[draft.parents[i]] for i in nodes],
        None if draft.q is None else draft.q[list(nodes)],
        None if draft.odds is None else [draft.odds[i] for i in nodes],
    )


def outcomes(draft: Draft, nodes: Sequence[int]) -> list[tuple[int, bool]]:
    """The nodes whose parent was right, and whether they were, given the path of those that were right."""
    path = {-1, *nodes}
    parents = range(-1, len(draft.tokens) - 1) if draft.parents is None else draft.parents
    return [(i, i in path) for i, parent in enumerate(parents) if parent in path]
