"""What ``diastole top`` shows: one frame from a window between two readings."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from diastole.cli.readings import Quantile, Window

HISTORY = 120  # points kept of each curve
LEVELS = "▁▂▃▄▅▆▇█"
NOTHING = "–"
TIMES = (
    ("TTFT", "time_to_first_token_seconds"),
    ("TPOT", "request_time_per_output_token_seconds"),
    ("gap", "inter_token_latency_seconds"),
)
DRAFTED, KEPT = "spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total"
USUAL = ("ttft", "tpot")  # promises that every request has
ENDS = ("stop", "length", "abort", "error")


def bar(share: float, width: int) -> Text:
    """A filled bar, and the share in words."""
    share = min(max(share, 0.0), 1.0)
    full = round(share * width)
    colour = "green" if share < 0.8 else "yellow" if share < 0.95 else "red"
    return Text.assemble(
        ("█" * full, colour), ("░" * (width - full), "dim"), f" {share:.1%}" if share < 0.1 else f" {share:.0%}"
    )


def spark(values: Iterable[float], width: int) -> str:
    """The last so many values as a curve of blocks, from zero to the largest of them."""
    shown = list(values)[-width:] if width > 0 else []
    top = max(shown, default=0.0)
    return "".join(LEVELS[round(v / top * (len(LEVELS) - 1))] if top > 0 else LEVELS[0] for v in shown).rjust(width)


def seconds(time: Quantile | None) -> str:
    """A time in the unit that suits it."""
    if time is None:
        return NOTHING
    value = time.value
    text = f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.0f} ms" if value >= 0.01 else f"{value * 1e3:.1f} ms"
    return f"> {text}" if time.above else text


def clean(text: str, longest: int = 60) -> str:
    """Text from outside: nothing that would move the cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)[:longest]


class Service:
    """One model's part of the frame, with the history of its speeds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.decode: deque[float] = deque(maxlen=HISTORY)
        self.prefill: deque[float] = deque(maxlen=HISTORY)

    def see(self, window: Window) -> None:
        """Take a window's speeds into the history."""
        name = {"model_name": self.name}
        generated = window.rate("generation_tokens_total", **name)
        absorbed = window.rate("iteration_tokens_total_sum", **name)
        wrong = window.rate(DRAFTED, **name) - window.rate(KEPT, **name)
        self.decode.append(generated)
        # What is absorbed beyond one token for each that came out, and beyond guesses that were thrown away.
        self.prefill.append(max(absorbed - generated - wrong, 0.0))

    def draw(self, window: Window, width: int) -> list[RenderableType]:
        """Its lines."""
        now, model = window.after, self.name

        def total(name: str) -> float:
            return now.total(name, model_name=model)

        used, pages = total("kv_pages_used"), total("kv_pages")
        state = Text.assemble(
            "running ", (f"{total('num_requests_running'):<5.0f}", "bold"),
            "waiting ", (f"{total('num_requests_waiting'):<5.0f}", "bold"),
            "KV ", bar(used / pages if pages else 0.0, min(max(width - 60, 8), 40)), f"  {used:.0f}/{pages:.0f} pages",
        )  # fmt: skip
        curve = max((width - 46) // 2, 4)
        speed = Text.assemble(
            "decode ", (f"{self.decode[-1]:>7,.0f}", "bold"), " tok/s ", (spark(self.decode, curve), "cyan"),
            "  prefill ", (f"{self.prefill[-1]:>7,.0f}", "bold"), " tok/s ", (spark(self.prefill, curve), "magenta"),
        )  # fmt: skip
        title = Rule(Text(clean(self.name), style="bold cyan"), align="left", style="dim")
        return [Text(), title, state, speed, self._numbers(window), self._ends(window)]

    def _numbers(self, window: Window) -> Table:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(min_width=4, no_wrap=True)
        for _ in ("p50", "p95"):
            grid.add_column(min_width=9, justify="right", no_wrap=True)
        for _ in ("what", "how much"):
            grid.add_column(no_wrap=True)
        grid.add_row("", Text("p50", "dim"), Text("p95", "dim"), "", "")
        for (label, name), (what, value) in zip(TIMES, self._facts(window), strict=True):
            p50, p95 = (seconds(window.quantile(name, q, model_name=self.name)) for q in (0.5, 0.95))
            grid.add_row(label, p50, p95, f"  {what}", value)
        if window.after.total(DRAFTED, model_name=self.name):
            grid.add_row("", "", "", "  guesses right", self._guesses(window))
        return grid

    def _guesses(self, window: Window) -> str:
        """How many of the drafted tokens were right, and how many a draft brought."""
        name = {"model_name": self.name}
        drafted, kept = window.gained(DRAFTED, **name), window.gained(KEPT, **name)
        drafts = window.gained("spec_decode_num_drafts_total", **name)
        return f"{kept / drafted:.0%}, {kept / drafts:.1f} a draft" if drafted and drafts else NOTHING

    def _facts(self, window: Window) -> Sequence[tuple[str, str]]:
        name, now = {"model_name": self.name}, window.after
        asked = window.gained("prefix_cache_queries_total", **name)
        hits = f"{window.gained('prefix_cache_hits_total', **name) / asked:.0%} of prompt tokens" if asked else NOTHING
        moved, ever = window.gained("num_preemptions_total", **name), now.total("num_preemptions_total", **name)
        ended = now.total("request_success_total", **name)
        ended -= now.total("request_success_total", finished_reason="abort", **name)
        kept = f"{now.total('slo_attained_total', **name) / ended:.0%}" if ended else NOTHING
        missed = now.by("slo_missed_total", "which", **name)
        told = [(which, n) for which, n in sorted(missed.items(), reverse=True) if n or which in USUAL]
        late = ", ".join(f"{which} {n:.0f}" for which, n in told)
        return (
            ("prefix hits", hits),
            ("preemptions", f"{moved:.0f} now, {ever:.0f} ever"),
            ("promises kept", f"{kept} ever (missed {late or NOTHING})"),
        )

    def _ends(self, window: Window) -> Text:
        ever = window.after.by("request_success_total", "finished_reason", model_name=self.name)
        words = [*ENDS, *sorted(ever.keys() - set(ENDS))]
        counts = "  ".join(f"{clean(word)} {ever.get(word, 0.0):.0f}" for word in words)
        return Text(f"ended ever  {counts}", overflow="ellipsis", no_wrap=True)


class Screen:
    """The whole frame; remembers the curves between windows."""

    def __init__(self, url: str, hint: str = "") -> None:
        self.url, self.hint = url, hint
        self._window: Window | None = None
        self._trouble = ""
        self._services: dict[str, Service] = {}

    def see(self, window: Window) -> None:
        """Show this window from now on."""
        self._window, self._trouble = window, ""
        self._services = {m: self._services.get(m) or Service(m) for m in window.after.models}
        for service in self._services.values():
            service.see(window)

    def fail(self, why: str) -> None:
        """Show that nothing could be read."""
        self._window, self._trouble = None, why

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        head = Text.assemble(("diastole top", "bold"), f"  {clean(self.url)}  ", (self.hint, "dim"))
        parts: list[RenderableType] = [head]
        if self._trouble:
            parts.append(Text(clean(self._trouble, 300), style="red"))
        elif self._window is None:
            parts.append(Text("measuring ...", style="dim"))
        else:
            parts += self._draw(self._window, options.max_width)
        yield Group(*parts)

    def _draw(self, window: Window, width: int) -> Iterable[RenderableType]:
        up = window.after.total("engine_up") > 0
        answers = window.rates("http_requests_total", "status")
        classes = {c: sum(n for status, n in answers.items() if status.startswith(c)) for c in "245"}
        yield Text.assemble(
            "engine ", ("up", "green") if up else ("not there: loading, or ended", "bold red"),
            f"  HTTP {window.rate('http_requests_total'):.1f}/s", *(f"  {c}xx {n:.1f}" for c, n in classes.items()),
            f"  open {window.after.total('http_requests_open'):.0f}", (f"  (over {window.seconds:.1f} s)", "dim"),
        )  # fmt: skip
        for service in self._services.values():
            yield from service.draw(window, width)
