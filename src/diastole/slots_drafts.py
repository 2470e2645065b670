"""The slots of guessing ahead: ``draft``, ``halt``, ``verify`` and ``pace``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from diastole.slots import CostModel, KVStore
from diastole.types import Array, Ask, Batch, Draft, Grant, Stream

if TYPE_CHECKING:
    from diastole.sample import Chosen
    from diastole.spec.verify import Guess, Verdict
    from diastole.state.lease import Pool


Span = Callable[[Stream], int]  # of a stream: how many units may come in one step if all but the first may be guesses


class Drafter(Protocol):
    """Slot ``draft``: guesses what follows. Guesses change how fast an answer comes, never the answer."""

    most: int  # nodes of one draft, at most
    looks: bool  # at keys and values itself, where the model has written them

    def settle(self, kv: KVStore, streams: int, spans: Sequence[Span]) -> Mapping[str, Pool]:
        """Before the first draft: whose keys and values may be looked at, how many streams there are at most, and how
        many rows one may have in a step. Where it keeps something of streams itself, by the name under which they lease
        it."""
        ...

    def draft(self, streams: Sequence[Stream], lengths: Sequence[int]) -> Sequence[Draft]:
        """For each stream, which lacks its last known token alone, a draft of at most so many nodes."""
        ...

    def ready(self, batch: Batch) -> Batch:
        """The batch of this step: it may be given a way of its own through the model (``Batch.relay``)."""
        ...

    def verified(self, stream: Stream, draft: Draft, nodes: Sequence[int], chosen: Sequence[Chosen]) -> None:
        """Of a draft, also an empty one, these nodes were right, and these tokens came. The stream's records are still
        those of before the step."""
        ...


@runtime_checkable
class Haltable(Protocol):
    """A drafter that asks after each guess whether to go on."""

    halts: Sequence[Halt]


class Halt(Protocol):
    """Slot ``halt``: when to stop guessing. It may look at the drafter's side only: whoever looks at the target bends
    the law of sampled texts."""

    width: int  # numbers in the drafter's hidden states that it reads

    def stop(self, streams: Sequence[Stream], drafted: Sequence[int], hidden: Array) -> Sequence[bool]:
        """For streams with so many guesses in this round, of which the last one has been fed to the drafter and gave
        these hidden states (S, width)."""
        ...


class Verifier(Protocol):
    """Slot ``verify``: which guesses are kept, and what comes after the last of them."""

    ahead: bool  # it may say several tokens after the last guess that is kept, and is asked without guesses too

    def accept(self, guesses: Sequence[Guess], logits: Array) -> Verdict:
        """logits (R, V) float32: the target's, of the rows that the guesses name."""
        ...


class Pacer(Protocol):
    """Slot ``pace``: how much is guessed."""

    foresees: bool  # it must know what steps cost before it has seen any
    blind: bool  # it never looks at what was guessed: a law that guesses were drawn from holds for those it lets pass

    def lengths(self, asks: Sequence[Ask], cost: CostModel) -> Sequence[int]:
        """How many units each ask may run at most, 1 or more, of those that it would: before anything is guessed."""
        ...

    def trim(
        self, grants: Sequence[Grant], drafts: Mapping[Stream, Draft], cost: CostModel
    ) -> Mapping[Stream, Sequence[int]]:
        """Of each draft, the nodes that are to be verified, ascending, none without its parent.

        Args:
            grants: of the whole step.
            drafts: those that guess anything.
        """
        ...

    def learn(self, stream: Stream, draft: Draft, nodes: Sequence[int]) -> None:
        """These nodes of what was verified of a draft were right."""
        ...

    def stepped(self, streams: int, tokens: int, seconds: float, asked: bool) -> None:
        """A step in which all streams decoded is done.

        Args:
            streams: that ran.
            tokens: that they said.
            seconds: from before guessing until after verification.
            asked: whether anybody was asked for guesses.
        """
        ...
