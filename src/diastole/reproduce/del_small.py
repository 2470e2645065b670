"""DEL on the small model that was trained for early exits: beside every static pair of an exit and a length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

from diastole.bench.drafts import PLAIN, Bench, Cell, Side
from diastole.llm import LLM
from diastole.params import SamplingParams
from diastole.recipes.layerskip import SHAPE
from diastole.reproduce.del_model import PROMPT, Small, small
from diastole.reproduce.del_rounds import Round, accepted, by_request, drafter_of, estimated, hold, watch
from diastole.reproduce.must import at_least, less_than, more_than
from diastole.reproduce.study import Study
from diastole.reproduce.timing import Spread
from diastole.types import Array

BARE = "del:adapters=none"
ALL = "+".join(map(str, range(1, SHAPE.layers)))
DEL, SPARSE, EAGER = "del", "del, a look every 4th round", "del that never rests"
DELE, LITERAL = "dele", "del, costs in layers"
SIDES = {
    DEL: BARE,
    SPARSE: f"{BARE},shadow_every=4",
    EAGER: f"{BARE},rest=0",
    DELE: f"{BARE},controller=dele",
    LITERAL: f"{BARE},cost=layers,exits={ALL},rest=0",
}
STREAM = "domains in turn"

Prompts = Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Pair:
    """An exit, and guesses of a round."""

    exit: int
    length: int

    def __str__(self) -> str:
        return f"E = {self.exit}, K = {self.length}"

    @property
    def use(self) -> str:
        return f"{BARE},controller=static,exits={self.exit},length={self.length},cost=layers,rest=0"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    exits: Sequence[int] = (1, 2, 3, 4, 6, 8, 10)
    lengths: Sequence[int] = (1, 2, 3, 4, 6, 8, 12)
    tuning: int = 2  # requests of each domain to choose by
    judged: int = 6  # and to judge by
    turns: int = 4  # of these, how many while domains take turns
    tokens: int = 192  # of an answer: what DEL knows ends with it
    rounds: int = 5
    shadows: int = 9  # rounds in which shadow tokens are timed


QUICK = Sizes((2, 4), (2, 4), tuning=1, judged=1, turns=1, tokens=24, rounds=1, shadows=3)


@dataclass(slots=True)
class Found:
    """What came of it."""

    grid: dict[Pair, dict[str, float]]  # times as fast as plain, by domain
    best: dict[str, Pair]  # by domain
    overall: Pair
    cells: dict[str, Cell]  # of the domains, and the stream in which they take turns
    alphas: list[tuple[str, int, float, float, float]]  # domain, exit, estimated, measured, how far requests are apart
    shadows: dict[str, Spread]  # share of wall time, in %
    walk: list[Round]  # of the stream
    costs: Mapping[int, Array]  # by exit, seconds that DEL expects of rounds with so many guesses; 0: without any
    different: int = 0  # texts


def run(study: Study, sizes: Sizes | None = None) -> int:
    """Judge all of it: gives the number of texts that differ from the plain engine's."""
    sizes = sizes or (QUICK if study.quick else Sizes())
    with small(study) as model:
        found = Work(study, model, sizes).found()
    _judge(study, found)
    _show(study, found)
    return found.different


@dataclass(slots=True)
class Work:
    """Measuring."""

    study: Study
    model: Small
    sizes: Sizes
    params: SamplingParams = field(init=False)
    different: int = 0

    def __post_init__(self) -> None:
        self.params = SamplingParams(max_tokens=self.sizes.tokens, temperature=0, ignore_eos=True)

    def found(self) -> Found:
        n = self.sizes
        tuning = self.model.prompts(n.tuning, False, self.study.seed)
        judged = self.model.prompts(n.judged, True, self.study.seed)
        grid = self.grid(tuning)
        best = {domain: _best(grid, domain) for domain in tuning}
        overall = _overall(grid)
        cells = self.cells(judged, best, overall)
        alphas = self.alphas(tuning)
        shadows = {name: self.shadows(judged, grid, SIDES[name]) for name in (DEL, SPARSE)}
        walk, costs = self.walk(judged)
        return Found(grid, best, overall, cells, alphas, shadows, walk, costs, self.different)

    @contextmanager
    def engines(self, uses: Mapping[str, str]) -> Iterator[dict[str, LLM]]:
        """One for each, by name; an empty use is plain."""
        with ExitStack() as stack:
            yield {
                name: stack.enter_context(LLM(str(self.model.path), use=(use,) if use else (), max_streams=1))
                for name, use in uses.items()
            }

    def cell(self, engines: Mapping[str, LLM], name: str, texts: Sequence[Sequence[int]], rounds: int) -> Cell:
        with self.study.progress(name, rounds * len(texts) * len(engines)) as told:
            cell = Bench(engines, self.params).cell(name, texts, 1, rounds, told)
        self.different += sum(side.different for side in cell.sides.values())
        return cell

    def grid(self, tuning: Prompts) -> dict[Pair, dict[str, float]]:
        """Every static pair, each beside plain decoding in the same minute."""
        found: dict[Pair, dict[str, float]] = {}
        for exit in self.sizes.exits:
            pairs = [Pair(exit, length) for length in self.sizes.lengths]
            with self.engines({PLAIN: "", **{str(p): p.use for p in pairs}}) as engines:
                for domain, texts in tuning.items():
                    cell = self.cell(engines, f"{domain}: exit {exit}", texts, 1)
                    for p in pairs:
                        found.setdefault(p, {})[domain] = cell.speedup(str(p))
        return found

    def cells(self, judged: Prompts, best: Mapping[str, Pair], overall: Pair) -> dict[str, Cell]:
        """On other requests, domain by domain and with all domains in turn."""
        uses = {str(p): p.use for p in (*best.values(), overall)} | SIDES
        with self.engines({PLAIN: "", **uses}) as engines:
            cells = {}
            for domain, texts in judged.items():
                names = {PLAIN, str(best[domain]), str(overall), *SIDES}
                cells[domain] = self.cell(
                    {n: e for n, e in engines.items() if n in names}, domain, texts, self.sizes.rounds
                )
            turns = _in_turn(judged, self.sizes.turns)
            cells[STREAM] = self.cell(engines, STREAM, turns, self.sizes.rounds)
        return cells

    def alphas(self, tuning: Prompts) -> list[tuple[str, int, float, float, float]]:
        """What DEL thinks of each exit while it guesses all the time, beside what is right of guesses where a round
        can only end there."""
        found = []
        with self.engines({EAGER: SIDES[EAGER]}) as engines:
            exits: list[int] = drafter_of(engines[EAGER].engine.services[0]).exits
            thought = {domain: self._rounds(engines[EAGER], texts) for domain, texts in tuning.items()}
        for at, exit in enumerate(exits):
            pair = Pair(exit, max(self.sizes.lengths))
            with self.engines({str(pair): pair.use}) as engines:
                for domain, texts in tuning.items():
                    forced, free = self._rounds(engines[str(pair)], texts), thought[domain]
                    apart = [
                        abs(estimated(a)[at] - accepted(b))
                        for a, b in zip(by_request(free), by_request(forced), strict=True)
                    ]
                    row = float(estimated(free)[at]), accepted(forced), float(np.mean(apart))
                    found.append((domain, exit, *row))
        return found

    def _rounds(self, llm: LLM, texts: Sequence[Sequence[int]]) -> list[Round]:
        progress = self.study.progress("rounds are watched", len(texts))
        with watch(llm.engine.services[0]) as seen, progress as told:
            for text in texts:
                llm.generate([text], self.params)
                told()
        return seen

    def shadows(self, judged: Prompts, grid: Mapping[Pair, Mapping[str, float]], use: str) -> Spread:
        """Share of wall time, in %, that goes to looking at all exits: the same rounds with that and without."""
        with self.engines({DEL: use}) as engines:
            exits = drafter_of(engines[DEL].engine.services[0]).exits
        pair = _overall({p: by for p, by in grid.items() if p.exit in exits})
        held = f"{use},max_draft={pair.length},rest=0"
        with self.engines({"without": pair.use, "with": held}) as engines:
            hold(engines["with"].engine.services[0], pair.exit)
            texts = _in_turn(judged, 1)
            cell = self.cell(engines, "shadow tokens", texts, self.sizes.shadows)
        return Spread.of([100 * (1 - 1 / ratio) for ratio in cell.ratios("without", over="with")])

    def walk(self, judged: Prompts) -> tuple[list[Round], dict[int, Array]]:
        """The exits that DEL takes while the domains take turns, and what it expects rounds to cost."""
        with self.engines({DEL: SIDES[DEL]}) as engines:
            drafter = drafter_of(engines[DEL].engine.services[0])
            costs = {exit: drafter.costs.rounds(exit, 1) for exit in drafter.exits}
            costs[0] = np.array([drafter.costs.plain(1)])
            return self._rounds(engines[DEL], _in_turn(judged, self.sizes.turns)), costs


def _best(grid: Mapping[Pair, Mapping[str, float]], domain: str) -> Pair:
    """The fastest pair in a domain."""
    return max(grid, key=lambda pair: grid[pair][domain])


def _overall(grid: Mapping[Pair, Mapping[str, float]]) -> Pair:
    """The pair that takes the least time over as many tokens of each domain."""
    return min(grid, key=lambda pair: sum(1 / times for times in grid[pair].values()))


def _in_turn(prompts: Prompts, count: int) -> list[Sequence[int]]:
    """A request of each domain, then the next of each, so many times."""
    return [text for texts in zip(*prompts.values(), strict=True) for text in texts][: count * len(prompts)]


# ---- judging


def _judge(study: Study, found: Found) -> None:
    short = "answers are short, and what DEL learns ends with each" if study.quick else ""
    beside = {domain: _beside(found, DEL, domain) for domain in found.best}
    worst = min(beside, key=lambda domain: beside[domain].median)
    study.check(
        f"DEL beside the best static pair of the domain, worst of {len(beside)} ({worst}: {found.best[worst]})",
        beside[worst],
        at_least(0.97),
        baseline=1.0,
        unit="x",
        claim="finds the exit by itself",
        why=short or _beside_plain(found, DEL, worst),
    )
    stream = found.cells[STREAM]
    study.check(
        f"domains in turn: DEL beside the static pair that is best overall ({found.overall})",
        Spread.of(stream.ratios(DEL, over=str(found.overall))),
        more_than(1.0),
        baseline=1.0,
        unit="x",
        claim="up to 0.27x faster",
        why=short,
    )
    study.check(
        "domains in turn: DEL, times as fast as plain decoding",
        Spread.of(stream.ratios(DEL)),
        more_than(1.0),
        unit="x",
        claim="2.16x to 2.50x",
        why=short or _dear(found),
        headline=True,
    )
    errors = [abs(estimate - measured) for _, _, estimate, measured, _ in found.alphas]
    study.check(
        "acceptance of an exit, estimated beside forced, mean error",
        float(np.mean(errors)),
        less_than(0.05),
        claim="follows from shadow tokens",
    )
    study.check(
        "looking at all exits and choosing one, share of wall time",
        found.shadows[DEL],
        less_than(5),
        unit="%",
        claim="1 to 2 %",
        why="the head after five exits is 2.6 M products a row, of all layers 7.1 M",
    )
    study.check(
        "the same with a look every fourth round",
        found.shadows[SPARSE],
        less_than(5),
        unit="%",
        fallback=True,
        why="as above",
    )
    rarely = {domain: _beside(found, SPARSE, domain) for domain in found.best}
    worst = min(rarely, key=lambda domain: rarely[domain].median)
    study.check(
        "and that DEL beside the best static pair of the domain, worst of all",
        rarely[worst],
        at_least(0.97),
        unit="x",
        fallback=True,
        why=_beside_plain(found, SPARSE, worst),
    )


def _beside(found: Found, side: str, domain: str) -> Spread:
    return Spread.of(found.cells[domain].ratios(side, over=str(found.best[domain])))


def _beside_plain(found: Found, side: str, domain: str) -> str:
    """What both are worth at all."""
    cell, best = found.cells[domain], str(found.best[domain])
    return f"beside plain decoding the pair is {cell.speedup(best):.2f}x as fast, DEL {cell.speedup(side):.2f}x"


def _dear(found: Found) -> str:
    """What a guess costs in a model as small as this."""
    stream, (first, *_) = found.cells[STREAM], [exit for exit in found.costs if exit]
    plain = stream.sides[PLAIN]
    return (
        f"the best static pair is {stream.speedup(str(found.overall)):.2f}x as fast as plain decoding: a token takes "
        f"{1e3 * sum(plain.seconds) / plain.steps:.2f} ms without guesses, and a round of one guess "
        f"{1e3 * float(found.costs[first][1]):.2f} ms at the lowest exit"
    )


def _show(study: Study, found: Found) -> None:
    domains = [*found.best]
    exits = sorted({pair.exit for pair in found.grid})
    rows: list[list[float | str]] = []
    for exit in exits:
        rows.append([exit])
        for domain in domains:
            pair = _best({p: by for p, by in found.grid.items() if p.exit == exit}, domain)
            rows[-1] += [pair.length, found.grid[pair][domain]]
    columns = ("exit", *(c for domain in domains for c in (f"{domain}: best length", "times as fast")))
    study.table("static pairs, on the requests to choose by", columns, rows)
    for i, domain in enumerate(domains):
        study.curve(
            "static pairs of the best length", exits, [float(row[2 + 2 * i]) for row in rows],
            label=domain, xlabel="exit", ylabel="times as fast as plain",
        )  # fmt: skip
    study.table(
        f"answers of {found.cells[STREAM].tokens} tokens to prompts of {PROMPT}",
        ("domain", "side", "tokens/s", "times as fast as plain", "tokens per step", "right of guesses"),
        [
            (domain, name, _speed(side), cell.speedup(name), side.per_step, side.rate)
            for domain, cell in found.cells.items()
            for name, side in cell.sides.items()
        ],
    )
    study.table(
        "acceptance of exits",
        ("domain", "exit", "estimated", "forced", "apart, by request"),
        [*found.alphas],
    )
    _walk(study, found)
    _costs(study, found)


def _speed(side: Side) -> float:
    return side.tokens / sum(side.seconds)


def _walk(study: Study, found: Found) -> None:
    """Exits over time."""
    domains, tokens = [*found.best], found.cells[STREAM].tokens
    exits = sorted({r.exit for r in found.walk})
    requests = by_request(found.walk)
    rows: list[tuple[float | str, ...]] = []
    for i, domain in enumerate(domains):
        own = [r for rounds in requests[i :: len(domains)] for r in rounds]
        rows.append((domain, *(float(np.mean([r.exit == exit for r in own])) for exit in exits)))
    study.table("share of DEL's rounds by exit", ("domain", *map(str, exits)), rows)
    steps = [(i * tokens + r.said, r.exit) for i, rounds in enumerate(requests[:9]) for r in rounds]
    study.curve(
        "exit that DEL chooses",
        [x for x, _ in steps],
        [y for _, y in steps],
        label=DEL,
        xlabel=f"tokens; every {tokens} another of {len(domains)} domains",
        ylabel="exit",
    )


def _costs(study: Study, found: Found) -> None:
    """Whether what DEL expects is what comes: its costs are of layers and heads alone."""
    guesses = (1, 2, 4, 8)
    study.table(
        "milliseconds of a round, as DEL expects",
        ("exit", *(f"{n} guesses" for n in guesses)),
        [(exit, *(1e3 * float(by[n]) for n in guesses)) for exit, by in found.costs.items() if exit],
    )
    plain = found.cells[STREAM].sides[PLAIN]
    study.note(
        f"a step without guesses takes {1e3 * sum(plain.seconds) / plain.steps:.2f} ms; "
        f"DEL expects {1e3 * float(found.costs[0][0]):.2f} ms, which is layers and head without the engine around them"
    )
