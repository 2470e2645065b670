"""Verification: which guesses of a draft are kept, and the token that comes after the last of them.

``Coupled`` is the default and exact by construction: at every row that is reached the stream's own sampler chooses,
with the noise of that position, just as it would have without a draft; a guess is right if it is what was chosen. So
the text is the same, token for token, for any draft, greedy or sampled, with penalties, bias or a grammar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from diastole.sample import Chosen, Sampler, SomeFailed, choose_all, draw
from diastole.types import Array, Draft

FEW = 8  # rows that are chosen at once: a second call takes longer than as many choices in vain


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
        at_once = self._at_once(guesses, logits)
        return self._walked(guesses, logits) if at_once is None else at_once

    @staticmethod
    def _at_once(guesses: Sequence[Guess], logits: Array) -> Verdict | None:
        """The same for a few rows of chains, where no choice depends on the one before: one call chooses at all rows,
        also at those that are not reached. None: it is not so simple."""
        few = sum([len(g.rows) for g in guesses]) <= FEW
        if not few or not all([g.sampler.plain and g.draft.parents is None for g in guesses]):  # noqa: C419
            return None
        samplers: list[Sampler] = []
        positions: list[int] = []
        rows: list[int] = []
        for guess in guesses:
            n = len(guess.rows)
            samplers += [guess.sampler] * n
            positions += range(guess.position, guess.position + n)
            rows += guess.rows
        try:
            ids = draw(samplers, logits, positions, rows)
        except Exception:  # somebody's: who is told apart step by step
            return None
        verdict, first = Verdict([], [], {}), 0
        for guess in guesses:
            said = _reached(guess, ids[first : first + len(guess.rows)])
            first += len(guess.rows)
            verdict.chosen.append([Chosen(token) for token in said])
            verdict.nodes.append([*range(len(said) - 1)])
        return verdict

    def _walked(self, guesses: Sequence[Guess], logits: Array) -> Verdict:
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


def _reached(guess: Guess, ids: Sequence[int]) -> Sequence[int]:
    """Of what was chosen at every row of a chain, what comes before the text's end or a wrong guess."""
    for i, token in enumerate(guess.draft.tokens):
        if ids[i] != token or token in guess.stops or i + 1 >= guess.room:
            return ids[: i + 1]
    return ids


def ends(guess: Guess, chosen: Chosen, said: int) -> bool:
    """Whether the text ends with this token, the ``said``-th since its last known one."""
    guide = guess.sampler.guide
    return chosen.id in guess.stops or said >= guess.room or (guide is not None and guide.finish is not None)
