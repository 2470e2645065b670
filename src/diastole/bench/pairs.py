"""Which techniques go together: each alone and every pair, built as a service of a tiny model and run.

A run reads a prompt of a thousand tokens in chunks and speaks, alone; then once more in a crowd in which two streams
are aborted, one while it reads and one while it speaks. What it says must be the same both times, to the bit where the
operators allow it, everybody must come to an end, and nothing may be left in the pools. What paces drafts has a
drafter beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from diastole import registry
from diastole.bench.tiny import Remembered, TinyLlama
from diastole.clock import FakeClock
from diastole.config import ServiceConfig
from diastole.engine.assemble import assemble
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.engine.executor import Simulated
from diastole.engine.service import Service
from diastole.kernels.table import load
from diastole.nn.linear import Loader
from diastole.params import SamplingParams
from diastole.sample import Chosen
from diastole.types import Request, UserError

NAME = "tiny"
CHUNK = 256  # most tokens of one step, so that prompts come in several
SPOKEN = 10  # tokens of each answer
MOST_STEPS = 400
MEMORY = 32 << 20  # bytes for pages
DRAFTERS = ("ngram", "longspec")  # beside what paces, ends or verifies drafts


class Trial(NamedTuple):
    """How techniques fare in one service."""

    techniques: tuple[str, ...]
    answer: Literal["yes", "refused", "FAILED"]
    why: str = ""
    beside: str = ""  # what stands beside them, without which they mean nothing

    def __str__(self) -> str:
        return f"{' + '.join(self.techniques)}: {self.answer}" + (f": {self.why}" if self.why else "")


class Sameness(NamedTuple):
    """When two texts count as the same."""

    tokens: int  # the first so many are compared
    logprob: float  # may differ by so much

    def alike(self, one: Sequence[Chosen], other: Sequence[Chosen]) -> bool:
        """Whether they say the same tokens, as likely."""
        return all(
            a.id == b.id and abs((a.logprob or 0.0) - (b.logprob or 0.0)) <= self.logprob
            for a, b in list(zip(one, other, strict=False))[: self.tokens]
        )


EXACT = Sameness(SPOKEN, 0.0)
ROUNDED = Sameness(1, 0.05)  # after the first token a rounding error may have chosen another way


class Workbench:
    """Builds and runs services of one tiny model, on one thread.

    Args:
        kernels: operators to run on, as in ``diastole serve``.
    """

    def __init__(self, kernels: str = "auto") -> None:
        self._load = Loader(load(1, kernels), TinyLlama(), "auto", Remembered())
        rng = np.random.default_rng(0)
        self._sameness = EXACT if self._load.ops.invariant else ROUNDED
        lengths = {"reader": 400, "kept": 1200, "other": 300, "speaker": 150}  # past where sparse attention begins
        self._prompts = {id: rng.integers(0, 256, n).tolist() for id, n in lengths.items()}

    def trial(self, *techniques: str) -> Trial:
        """Build and run them together, each with its default knobs."""
        beside = DRAFTERS[-1]
        try:
            try:
                beside, service = "", self._build(techniques)
            except UserError as e:
                if e.code != "no_drafter":
                    raise
                beside, service = self._beside_a_drafter(techniques)
        except UserError as e:
            return Trial(techniques, "refused", e.message, beside)
        except Exception as e:  # a defect of theirs, whatever it is
            return Trial(techniques, "FAILED", f"when built: {_said(e)}")
        try:
            wrong = "; ".join(_Run(service, self._prompts, self._sameness).problems())
        except Exception as e:
            wrong = f"when run: {_said(e)}"
        return Trial(techniques, "FAILED" if wrong else "yes", wrong, beside)

    def _beside_a_drafter(self, techniques: Sequence[str]) -> tuple[str, Service]:
        """With the first drafter that goes together with them, or refused by the last."""
        for drafter in DRAFTERS[:-1]:
            try:
                return drafter, self._build([drafter, *techniques])
            except UserError:
                continue
        return DRAFTERS[-1], self._build([DRAFTERS[-1], *techniques])

    def _build(self, techniques: Sequence[str]) -> Service:
        config = ServiceConfig(model=NAME, step_tokens=CHUNK, max_streams=8, use=tuple(techniques))
        return assemble(NAME, self._load, config, frozenset(), MEMORY, swap=0)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


class _Run:
    """The life of a service from its first request until it is idle again."""

    def __init__(self, service: Service, prompts: dict[str, list[int]], sameness: Sameness) -> None:
        self._service, self._prompts, self._sameness = service, prompts, sameness
        clock = FakeClock()
        self._engine = Engine([service], clock, LeastSlack(), Simulated(clock))
        self._said: dict[str, list[Chosen]] = {}  # with log probabilities

    def problems(self) -> Iterator[str]:
        """What went wrong, in words."""
        self._ask("kept", salt="alone")
        if not self._until_idle():
            yield f"a stream alone has not ended after {MOST_STEPS} steps"
            return
        alone = self._said.pop("kept", [])
        for id in self._prompts:
            self._ask(id, salt="crowd")
        self._hear()
        self._engine.abort("reader")  # while it reads
        for _ in range(MOST_STEPS):
            if len(self._said.get("speaker", ())) >= 2 or not self._engine.busy:
                break
            self._hear()
        self._engine.abort("speaker")  # while it speaks
        if not self._until_idle():
            yield f"streams in a crowd have not ended after {MOST_STEPS} steps"
            return
        crowd, other = self._said.get("kept", []), self._said.get("other", [])
        for said in (alone, crowd, other):
            if len(said) != SPOKEN:
                yield f"a stream said {len(said)} tokens instead of {SPOKEN}"
        if not self._sameness.alike(crowd, alone):
            yield "a stream says something else in a crowd than alone"
        yield from self._left()

    def _ask(self, id: str, salt: str) -> None:
        params = SamplingParams(max_tokens=SPOKEN, temperature=0, ignore_eos=True, logprobs=1)
        self._engine.add(Request(id, NAME, tuple(self._prompts[id]), params, salt=salt))

    def _hear(self) -> None:
        for event in self._engine.step() or ():
            self._said.setdefault(event.id, []).extend(event.data.chosen)

    def _until_idle(self) -> bool:
        for _ in range(MOST_STEPS):
            if not self._engine.busy:
                return True
            self._hear()
        return not self._engine.busy

    def _left(self) -> Iterable[str]:
        """What is still held although nobody is there."""
        found: list[str] = []
        self._service.ledger.check(found.append)
        for pool in self._service.ledger.pools.values():
            pool.check((), found.append)
        used, _ = self._service.pages()
        return [*found, f"{used} pages are still in use"] if used else found


def singles(bench: Workbench) -> list[Trial]:
    """Every technique by itself. Those that a language model cannot carry are refused here, and make no pairs."""
    return [bench.trial(t.name) for t in registry.techniques()]


def pairs(bench: Workbench, alone: Sequence[Trial]) -> Iterator[Trial]:
    """Every pair of those that work alone. A pair must work, or be refused in words that name both."""
    for pair in combinations([t.techniques[0] for t in alone if t.answer == "yes"], 2):
        trial = bench.trial(*pair)
        unnamed = [name for name in pair if name not in trial.why]
        if len(unnamed) == 1 and trial.beside and trial.beside in trial.why:
            unnamed = []  # it is named by what stands beside it
        if trial.answer == "refused" and unnamed:
            trial = Trial(pair, "FAILED", f"the refusal does not name both: {trial.why}")
        yield trial
