"""Lexical unit decoding on small models of its own: how much faster texts come, and what that costs them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from diastole.bench.drafts import PLAIN, Bench, Cell
from diastole.bench.quality import log_softmax
from diastole.bench.rig import Rig
from diastole.llm import LLM
from diastole.params import SamplingParams
from diastole.recipes import lexical_units as recipe
from diastole.recipes.llama import LlamaShape
from diastole.reproduce.must import at_least, at_most, between, equal_to, more_than
from diastole.reproduce.study import Study
from diastole.reproduce.unit_tasks import KINDS, Task, documents, tasks
from diastole.text import Tokenizer
from diastole.types import Array, UserError

PAPER = (
    "LUD: Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs (arXiv 2405.15208)"
)

MODELS = Path("lexical-units")  # where `diastole train lexical-units` puts them
UNTUNED = "untuned"
TEXT, CODE = ("arithmetic", "entries"), ("code",)
ROOM = 256  # tokens of a beginning, at most
LOSS = {TEXT: 1.0, CODE: 3.0}  # points of quality that may go

# For quick runs where no models are: seconds teach little more than a few phrases.
TINY = recipe.Plan(
    160, 40, window=256, room=128, library=1_200_000, pages=1_500,
    shape=LlamaShape(512, layers=4, hidden=128, inner=256, heads=4, kv_heads=2, context=384),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sizes:
    confidences: tuple[float, ...]
    lookaheads: tuple[int, ...]
    verified: tuple[float, ...]  # confidences of the lossless mode
    count: Mapping[str, int]  # of texts of a kind
    tokens: Mapping[str, int]  # of each
    stretches: int  # of text as it comes, of 64 tokens
    sampled: int  # texts of each kind that are drawn by chance


FULL = Sizes(
    (0.7, 0.8, 0.9, 0.95, 0.99),
    (1, 2, 3, 5),
    (0.7, 0.9),
    {"arithmetic": 120, "entries": 120, "code": 128},
    {"arithmetic": 36, "entries": 24, "code": 48},
    80,
    32,
)
QUICK = Sizes(
    (0.7, 0.9, 0.99),
    (2, 5),
    (0.9,),
    {"arithmetic": 8, "entries": 8, "code": 8},
    {"arithmetic": 36, "entries": 28, "code": 48},
    12,
    3,
)


class Setting(NamedTuple):
    """One way to decode."""

    confidence: float
    lookahead: int
    verify: bool = False

    @property
    def use(self) -> str:
        """As users write it."""
        knobs = f"confidence={self.confidence:g},lookahead={self.lookahead},verify={str(self.verify).lower()}"
        return f"lexical-unit-decoding:{knobs}"

    def __str__(self) -> str:
        return f"{'verified' if self.verify else 'at once'}, {self.confidence:g}, {self.lookahead}"


@dataclass(slots=True)
class Heard:
    """A model whose texts of so many tokens are noted: shorter ones only warm it up, or absorb a prompt."""

    llm: LLM
    tokens: int
    said: list[list[int]] = field(default_factory=list)

    def generate(self, prompts: Sequence[Any], params: SamplingParams | None = None) -> list[list[Any]]:
        done = self.llm.generate(prompts, params)
        if params is not None and params.max_tokens == self.tokens:
            self.said += [choices[0].ids for choices in done]
        return done

    def counters(self) -> Mapping[str, int]:
        return self.llm.counters()


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of one kind of work."""

    cell: Cell
    right: Mapping[str, float]  # percent of the texts, by side
    perplexity: Mapping[str, float]  # of the texts, under the untuned model
    doubled: Mapping[str, tuple[int, int]]  # tokens that repeat the one before them, of so many


def run(study: Study) -> None:
    sizes = QUICK if study.quick else FULL
    at_once = [Setting(c, k) for c in sizes.confidences for k in sizes.lookaheads]
    verified = [Setting(c, k, True) for c in sizes.verified for k in sizes.lookaheads]
    with ExitStack() as stack:
        place, figures, own = _models(study, stack)
        tuned = str(place / "tuned")
        engines = {PLAIN: stack.enter_context(LLM(tuned, max_streams=1))}
        engines[UNTUNED] = stack.enter_context(LLM(str(place / "untuned"), max_streams=1))
        for setting in (*at_once, *verified):
            engines[str(setting)] = stack.enter_context(LLM(tuned, use=(setting.use,), max_streams=1))
        ids, reader = recipe.unseen(place), engines[PLAIN].voice.tokenizer
        asked = _asked(study, sizes, documents(ids, reader), reader, engines[PLAIN].context)
        with Rig(str(place / "untuned")) as judge:
            found = {kind: _judged(study, judge, engines, reader, each, sizes, kind) for kind, each in asked.items()}
        drawn = [task.prompt for each in asked.values() for task in each[: sizes.sampled]]
        lossless = {name: engines[name] for name in (PLAIN, *map(str, verified))}
        different = _sampled(study, lossless, drawn)
        per_pass = _as_it_comes(study, tuned, figures, ids, sizes)
    why = "these models were trained in this run, for seconds" if own else ""
    _speed(study, found, at_once, why)
    _monotone(study, found, at_once, asked, why)
    _length(study, figures, per_pass, why)
    _repetition(study, found, at_once, why)
    _lossless(study, found, verified, different, why)
    _tables(study, found, at_once)
    _notes(study, figures, asked, own)


# ---- measuring


def _models(study: Study, stack: ExitStack) -> tuple[Path, dict[str, Any], bool]:
    """Where the two models are, what is known of them, and whether they were made here.

    Raises:
        UserError: they are missing, and the run is a full one.
    """
    figures = recipe.made(MODELS)
    if figures is not None:
        return MODELS, figures, False
    if not study.quick:
        raise UserError(f"the models are not in ./{MODELS} yet: diastole train lexical-units", param="model")
    place = Path(stack.enter_context(TemporaryDirectory()))
    with study.progress("training small models", TINY.steps + TINY.tune_steps) as told:
        return place, recipe.train(TINY, place, lambda p: told()), True


def _asked(study: Study, sizes: Sizes, texts: Sequence[str], reader: Tokenizer, context: int) -> dict[str, list[Task]]:
    rng = Random(study.seed)
    room = {kind: min(ROOM, context - sizes.tokens[kind]) for kind in KINDS}
    return {kind: tasks(kind, texts, reader, sizes.count[kind], room[kind], rng) for kind in KINDS}


def _judged(
    study: Study,
    judge: Rig,
    engines: Mapping[str, LLM],
    reader: Tokenizer,
    asked: Sequence[Task],
    sizes: Sizes,
    kind: str,
) -> Judged:
    """Each text in all engines, taking turns."""
    heard = {name: Heard(llm, sizes.tokens[kind]) for name, llm in engines.items()}
    params = SamplingParams(max_tokens=sizes.tokens[kind], temperature=0, ignore_eos=True)
    with study.progress(kind, len(asked) * len(engines)) as told:
        cell = Bench(heard, params).cell(kind, [task.prompt for task in asked], 1, 1, told)
    surprise: dict[tuple[int, ...], Array] = {}  # most ways say the same
    right, perplexity, doubled = {}, {}, {}
    with study.progress(f"{kind}: judging", len(heard)) as told:
        for name, llm in heard.items():
            pairs = list(zip(asked, llm.said, strict=True))
            right[name] = (
                100 * sum(task.right(reader.decode(_whole(said, reader))) for task, said in pairs) / len(pairs)
            )
            for task, said in pairs:
                if (*task.prompt, *said) not in surprise:
                    surprise[*task.prompt, *said] = _surprise(judge, task.prompt, said)
            each = [surprise[*task.prompt, *said] for task, said in pairs]
            perplexity[name] = float(np.exp(np.concatenate(each).mean()))
            doubled[name] = (
                sum(a == b for said in llm.said for a, b in pairwise(said)),
                sum(len(said) - 1 for said in llm.said),
            )
            told()
    return Judged(cell, right, perplexity, doubled)


def _whole(ids: Sequence[int], reader: Tokenizer) -> list[int]:
    """Up to where the text ends."""
    end = next((i for i, token in enumerate(ids) if token in reader.eos_ids), len(ids))
    return list(ids[:end])


def _surprise(judge: Rig, prompt: Sequence[int], said: Sequence[int]) -> Array:
    """Nats of each token that was said: (n,)."""
    with judge.stream([*prompt, *said]) as stream:
        rows = log_softmax(judge.absorb_all(stream)[len(prompt) - 1 : -1])
    found: Array = -rows[np.arange(len(said)), list(said)]
    return found


def _sampled(study: Study, engines: Mapping[str, LLM], prompts: Sequence[Sequence[int]]) -> int:
    """Texts drawn at a seed that are not the plain engine's."""
    params = SamplingParams(max_tokens=48, temperature=1, seed=study.seed, ignore_eos=True)
    with study.progress("sampled", len(prompts) * len(engines)) as told:
        cell = Bench(engines, params).cell("sampled", prompts, 1, 1, told)
    return sum(side.different for side in cell.sides.values())


def _as_it_comes(study: Study, tuned: str, figures: Mapping[str, Any], ids: Array, sizes: Sizes) -> float:
    """Tokens per pass on text of all kinds as the training mixed them, as sure and as far as units were marked."""
    rng, params = Random(study.seed), SamplingParams(max_tokens=64, temperature=0, ignore_eos=True)
    starts = [rng.randrange(len(ids) - 128) for _ in range(sizes.stretches)]
    setting = Setting(figures["alpha"], figures["max_unit"] - 1)
    with LLM(tuned, use=(setting.use,), max_streams=1) as llm, study.progress("as it comes", len(starts)) as told:
        cell = Bench({PLAIN: llm}, params).cell("", [ids[s : s + 128].tolist() for s in starts], 1, 1, told)
    return cell.sides[PLAIN].per_step


# ---- what must hold


def _pass(cell: Cell, name: str) -> float:
    """How many times as long as a step of plain decoding one of this way takes."""
    plain, own = (cell.sides[n] for n in (PLAIN, name))
    return (sum(own.seconds) / max(own.steps, 1)) / (sum(plain.seconds) / max(plain.steps, 1))


def _dear(cell: Cell, name: str) -> str:
    brings = cell.sides[name].per_step
    return f"a pass takes {_pass(cell, name):.2f} times as long as plain's and brings {brings:.2f} tokens"


def _lost(found: Mapping[str, Judged], kinds: Sequence[str], name: str) -> float:
    """Points of quality that a way to decode loses beside plain decoding of the same model, in the kind where that is
    most."""
    return max(found[kind].right[PLAIN] - found[kind].right[name] for kind in kinds)


def _speed(study: Study, found: Mapping[str, Judged], settings: Sequence[Setting], why: str) -> None:
    good = [s for s in map(str, settings) if all(_lost(found, kinds, s) <= most for kinds, most in LOSS.items())]
    best = max(good, key=found["code"].cell.speedup, default=None)
    careful = str(max(settings, key=lambda s: (s.confidence, -s.lookahead)))
    lost = f"{careful}, the most careful, loses {_lost(found, TEXT, careful):.0f} % of the answers"
    study.check(
        f"code, {best or 'no way'}, the fastest that loses at most 1 % of answers, 3 % of code: times as fast as plain",
        math.nan if best is None else found["code"].cell.speedup(best),
        at_least(1.2),
        unit="x",
        claim="1.33x, on code 1.30x with 3 % less quality",
        headline=True,
        why=why or f"{lost}; on code {_dear(found['code'].cell, careful)}",
    )


def falls(by_confidence: Mapping[float, float]) -> float:
    """The most that a figure falls from one confidence to the next."""
    values = [by_confidence[c] for c in sorted(by_confidence)]
    return max((a - b for a, b in pairwise(values)), default=0.0)


def _monotone(
    study: Study,
    found: Mapping[str, Judged],
    settings: Sequence[Setting],
    asked: Mapping[str, Sequence[Task]],
    why: str,
) -> None:
    far = sorted({s.lookahead for s in settings})
    for what, kinds in (("right answers", TEXT), ("code that parses", CODE)):
        mean = {
            c: fmean(found[kind].right[str(Setting(c, k))] for kind in kinds for k in far)
            for c in sorted({s.confidence for s in settings})
        }
        one = 100 / (len(far) * sum(len(asked[kind]) for kind in kinds))
        study.check(
            f"{what}, all look-aheads: the most that is lost from one confidence to the next higher one",
            falls(mean),
            at_most(one, "one text"),
            unit="%",
            claim="confidence trades speed for quality",
            why=why,
        )
        study.curve(what, [*mean], [*mean.values()], label="at once", xlabel="confidence", ylabel="%")


def _length(study: Study, figures: Mapping[str, Any], per_pass: float, why: str) -> None:
    units = figures["mean_unit"]
    study.check(
        f"tokens per pass, confidence {figures['alpha']:g}, look-ahead {figures['max_unit'] - 1}, on unseen text",
        per_pass,
        between(0.8 * units, 1.2 * units),
        baseline=units,
        claim="as long as the units that were marked",
        why=why
        or f"units are marked in known text; of placeholders {100 * figures['right']:.0f} % are right on new text, "
        "whether or not they are sure enough to be taken",
    )


def _repetition(study: Study, found: Mapping[str, Judged], settings: Sequence[Setting], why: str) -> None:
    def rate(name: str) -> float:
        counts = [judged.doubled[name] for judged in found.values()]
        return 100 * sum(n for n, _ in counts) / sum(n for _, n in counts)

    worst = max(map(str, settings), key=rate)
    near = max(map(str, (s for s in settings if s.lookahead == min(t.lookahead for t in settings))), key=rate)
    study.check(
        f"tokens that repeat the one before, most of all ways ({worst})",
        rate(worst),
        at_most(rate(PLAIN) + 0.2, "plain + 0.2 %"),
        baseline=rate(PLAIN),
        unit="%",
        why=why
        or f"none sees what is guessed at once before it; guessing one at a time it is {rate(near):.1f} % ({near})",
    )


def _lossless(study: Study, found: Mapping[str, Judged], settings: Sequence[Setting], different: int, why: str) -> None:
    names = [str(s) for s in settings]
    greedy = sum(judged.cell.sides[name].different for judged in found.values() for name in names)
    study.check("verified: greedy texts that differ from plain", greedy, equal_to(0), claim="lossless")
    study.check("verified: sampled texts that differ from plain", different, equal_to(0), claim="lossless")
    best = max(names, key=found["code"].cell.speedup)
    study.check(
        f"code, {best}: times as fast as plain",
        found["code"].cell.speedup(best),
        more_than(1.0),
        unit="x",
        claim="the same cost per pass",
        why=why or _dear(found["code"].cell, best),
    )


# ---- what was measured


def _tables(study: Study, found: Mapping[str, Judged], settings: Sequence[Setting]) -> None:
    for kind, judged in found.items():
        rows = []
        for name, side in judged.cell.sides.items():
            again, of = judged.doubled[name]
            rows.append((name, side.per_step, side.tokens / sum(side.seconds), judged.cell.speedup(name),
                         _pass(judged.cell, name),
                         judged.right[name], judged.perplexity[name], 100 * again / of, side.different))  # fmt: skip
        study.table(
            f"{kind}: confidence and look-ahead",
            ("way", "tokens per pass", "tokens/s", "times as fast", "a pass beside plain's", "right, %",
             "perplexity, untuned", "repeated, %", "texts unlike plain"),
            rows,
        )  # fmt: skip
    speed: Callable[[Setting], float] = lambda s: found["code"].cell.speedup(str(s))  # noqa: E731
    for k in sorted({s.lookahead for s in settings}):
        own = [s for s in settings if s.lookahead == k]
        study.curve("code: times as fast as plain decoding", [s.confidence for s in own], [speed(s) for s in own],
                    label=f"look-ahead {k}", xlabel="confidence", ylabel="times")  # fmt: skip


def _notes(study: Study, figures: Mapping[str, Any], asked: Mapping[str, Sequence[Task]], own: bool) -> None:
    if own:
        study.note(
            f"no models are in ./{MODELS} (diastole train lexical-units): much smaller ones were trained in this run, "
            "which shows that all works, and nothing of the paper's figures"
        )
    study.note(
        f"models of {figures['parameters']:,} parameters, {figures['steps']} steps on text and "
        f"{figures['tune_steps']} on units of {figures['mean_unit']:.2f} tokens, marked at {figures['alpha']:g}; other "
        "marks need another training. Not shown: 13B models, instruction data, adapters on a model as it is"
    )
    study.note("asked for: " + ", ".join(f"{len(each)} of {kind}" for kind, each in asked.items()))
    study.note("problems of arithmetic are of two numbers below 100: most of them, though not their pages, were learnt")
    study.note("code is right while Python can read it: that is no proof that it does anything")
    study.note("what is lost is counted beside plain decoding of the same weights; tables have the untuned model's too")
