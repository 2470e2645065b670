"""Study: what a reproduction is handed, to measure with and to tell what it found.

PAPER = "TidalDecode: two dense layers choose the tokens that all others read"

def run(study: Study) -> None:
    tokens = 2_048 if study.quick else 7_000
    times = study.interleaved({"dense": dense, "tidal": tidal})
    study.check("decoding at 7k", times.speedup("tidal", over="dense"), at_least(1.6), unit="x", claim="up to 2.1x",
                headline=True, why="attention is 41% of a step here, so no selection can bring more than 1.7x")
    study.check("mass covered", covered, at_least(0.9 * oracle, "0.9 x oracle"), baseline=oracle)
    study.note("random weights: says nothing about quality")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from diastole.reproduce.must import Must, figure, plain
from diastole.reproduce.progress import Shown, Silent
from diastole.reproduce.timing import Spread, Timings, interleaved


@dataclass(frozen=True, slots=True)
class Row:
    """One inequality with what was measured."""

    what: str
    here: float | Spread
    must: Must
    claim: str = ""
    baseline: float | str | None = None
    unit: str = ""
    why: str = ""

    @property
    def holds(self) -> bool:
        return self.must.holds(float(self.here))

    @property
    def shown(self) -> str:
        """What was measured, in words."""
        if not isinstance(self.here, Spread):
            return figure(self.here, self.unit)
        least, most = (figure(v) for v in (self.here.least, self.here.most))
        return f"{figure(self.here.median, self.unit)} ({least}-{most})"


@dataclass(frozen=True, slots=True)
class Check:
    """An inequality, and those that stand in for it where it does not hold."""

    main: Row
    fallbacks: list[Row] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return self.main.holds or self.by_fallback

    @property
    def by_fallback(self) -> bool:
        """Whether its fallbacks decide, and hold. Without a reason for the failure nothing stands in for it."""
        stands_in = bool(self.fallbacks and self.main.why) and not self.main.holds
        return stands_in and all(row.holds for row in self.fallbacks)


@dataclass(frozen=True, slots=True)
class Table:
    """More figures: a sweep, an ablation."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[float | str, ...], ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a plot; curves with the same title share one."""

    title: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    label: str
    xlabel: str
    ylabel: str


@dataclass(slots=True)
class Study:
    """One run of one reproduction.

    Attributes:
        quick: be done within 60 seconds on two cores, with smaller sizes; otherwise within 30 minutes.
        seed: for all that is random.
    """

    quick: bool = False
    seed: int = 0
    shown: Shown = field(default_factory=Silent)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    timings: list[Timings] = field(default_factory=list)
    headline: Row | None = None  # the row that stands for the whole

    # ---- measuring

    def progress(self, what: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """While inside, something of ``total`` steps is done; call what it gives after each."""
        return self.shown.progress(what, total)

    def interleaved(
        self, work: Mapping[str, Callable[[], object]], rounds: int = 5, warm: int = 1, what: str = "measuring"
    ) -> Timings:
        """Seconds of each, taking turns in one process; see ``timing.interleaved``. All rounds go into the result."""
        with self.progress(what, (warm + rounds) * len(work)) as step:
            found = interleaved(work, rounds, warm, step)
        self.timings.append(found)
        return found

    # ---- telling

    def check(
        self,
        what: str,
        here: float | Spread,
        must: Must,
        *,
        claim: str = "",
        baseline: float | str | None = None,
        unit: str = "",
        why: str = "",
        fallback: bool = False,
        headline: bool = False,
    ) -> bool:
        """One inequality; gives whether it holds.

        Args:
            what: the figure's name.
            here: what was measured; of a spread the median decides.
            must: what it must be.
            claim: what the paper says of it.
            baseline: the same figure of the baseline, measured in this run.
            unit: "x", "%" (of numbers from 0 to 100), "ms" and so on.
            why: the reason, where it is known that this cannot hold on some machines.
            fallback: stands in for the row before it that is none, where that one does not hold and says why.
            headline: this figure stands for the whole; by itself it is the first row's.

        Raises:
            ValueError: a fallback without a row, or a second headline.
        """
        row = Row(what, plain(here), must, claim, plain(baseline), unit, why)
        if not fallback:
            self.checks.append(Check(row))
        elif self.checks:
            self.checks[-1].fallbacks.append(row)
        else:
            raise ValueError(f"fallback {what!r} has no row before it for which it could stand in")
        if headline:
            if self.headline is not None:
                raise ValueError(f"two headlines: {self.headline.what!r} and {what!r}")
            self.headline = row
        return row.holds

    def note(self, text: str) -> None:
        """Something to be said with the result: a bound by Amdahl's law, synthetic data, a simulated part."""
        self.notes.append(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[float | str]]) -> None:
        """More figures than there are inequalities.

        Raises:
            ValueError: a row has more or fewer cells than there are columns.
        """
        if any(len(row) != len(columns) for row in rows):
            raise ValueError(f"table {title!r}: every row needs {len(columns)} cells")
        self.tables.append(Table(title, tuple(columns), tuple(tuple(map(plain, row)) for row in rows)))

    def curve(
        self, title: str, x: Sequence[float], y: Sequence[float], *, label: str = "", xlabel: str = "", ylabel: str = ""
    ) -> None:
        """A line of a plot; curves with the same title share one.

        Raises:
            ValueError: x and y are not of the same length.
        """
        if len(x) != len(y):
            raise ValueError(f"curve {title!r}: {len(x)} values of x and {len(y)} of y")
        self.curves.append(Curve(title, tuple(map(float, x)), tuple(map(float, y)), label, xlabel, ylabel))

    # ---- judging

    @property
    def holds(self) -> bool:
        """Whether every inequality that decides holds. A study that checked nothing proves nothing."""
        return bool(self.checks) and all(check.holds for check in self.checks)

    @property
    def verdict(self) -> str:
        """The same in a sentence."""
        if not self.checks:
            return "does not hold here: nothing was checked"
        failed = [c.main.what for c in self.checks if not c.holds]
        if failed:
            return f"does not hold here: {len(failed)} of {_inequalities(len(self.checks))}: {'; '.join(failed)}"
        stood_in = [c.main.what for c in self.checks if c.by_fallback]
        extra = f", {len(stood_in)} of them by fallback: {'; '.join(stood_in)}" if stood_in else ""
        return f"holds here: {_inequalities(len(self.checks))}{extra}"


def _inequalities(n: int) -> str:
    return "1 inequality" if n == 1 else f"{n} inequalities"
