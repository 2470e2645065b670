"""Verification: which guesses of a draft are kept, and the token that comes after the last of them.

``Coupled`` is the default and exact by construction: at every row that is reached the stream's own sampler chooses,
with the noise of that position, just as it would have without a draft; a guess is right if it is what was chosen. So
the text is the same, token for token, for any draft, greedy or sampled, with penalties, bias or a grammar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from diastole.sample import Chosen, Sampler, SomeFailed, choose_all
from diastole.types import Array, Draft


class Guess(NamedTuple):
    """A stream's draft, and what its verification needs."""

    sampler: Sampler
    draft: Draft
    rows: Sequence[int]  # (1 + n,) of the logits: of the last known token, and of each node
    position: int  # of the token that comes next
    room: int  # tokens that the text may still have
    stops: frozenset[int]  # ids that end it


class Verdict(NamedTuple):
    """By guess: the tokens that come next, and the nodes of the draft that the first of them are: all but the last, or
    fewer where a verifier says more than was guessed (``Verifier.ahead``). By its index also the error of each that
    could not be verified; what it says besides counts for nothing."""

    chosen: list[list[Chosen]]
    nodes: list[list[int]]
    errors: dict[int, Exception]


def descent(draft: Draft) -> Callable[[int, int], int | None]:
    """From a node (-1: the last known token) and the token that came, the child that guessed it; None: none did."""
    tokens = draft.tokens
    if draft.parents is None:
        return lambda node, token: node + 1 if node + 1 < len(tokens) and tokens[node + 1] == token else None
    children = {(p, t): i for i, (p, t) in reversed([*enumerate(zip(draft.parents, tokens, strict=True))])}
    return lambda node, token: children.get((node, token))


class Coupled:
    """Slot ``verify``."""

    ahead = False

    def accept(self, guesses: Sequence[Guess], logits: Array) -> Verdict:
        verdict = Verdict([[] for _ in guesses], [[] for _ in guesses], {})
        down = [descent(g.draft) for g in guesses]
        at = [-1] * len(guesses)
        walking = list(range(len(guesses)))
        while walking:
            found = self._choose(guesses, verdict, at, walking, logits)
            walking = []
            for i, chosen in found.items():
                said = verdict.chosen[i]
                said.append(chosen)
                if ends(guesses[i], chosen, len(said)):
                    continue
                node = down[i](at[i], chosen.id)
                if node is not None:
                    at[i] = node
                    verdict.nodes[i].append(node)
                    walking.append(i)
        return verdict

    @staticmethod
    def _choose(
        guesses: Sequence[Guess], verdict: Verdict, at: Sequence[int], walking: Sequence[int], logits: Array
    ) -> dict[int, Chosen]:
        """The next token of those who walk on, by their index."""
        samplers = [guesses[i].sampler for i in walking]
        positions = [guesses[i].position + len(verdict.chosen[i]) for i in walking]
        rows = [guesses[i].rows[1 + at[i]] for i in walking]
        try:
            return dict(zip(walking, choose_all(samplers, logits, positions, rows), strict=True))
        except SomeFailed as e:
            verdict.errors.update({walking[i]: error for i, error in e.errors.items()})
            return {walking[i]: chosen for i, chosen in e.chosen.items()}


def ends(guess: Guess, chosen: Chosen, said: int) -> bool:
    """Whether the text ends with this token, the ``said``-th since its last known one."""
    guide = guess.sampler.guide
    return chosen.id in guess.stops or said >= guess.room or (guide is not None and guide.finish is not None)
