"""``diastole bench goodput``."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diastole.types import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from diastole.bench.load.drive import Target
    from diastole.bench.load.match import Tell
    from diastole.bench.load.report import Found
    from diastole.bench.load.work import Load
    from diastole.bench.longtext import Corpus

PLAIN = "plain"
DEFAULT = "default"
WHAT, WHEN, WHO, JUDGED, OUT = "What is asked", "When it is asked", "Who is asked", "What is good", "Output"


def goodput(
    trace: Annotated[
        Path | None,
        typer.Option(
            help="recorded lengths and times: Azure's or BurstGPT's CSV, Mooncake's JSON lines", rich_help_panel=WHAT
        ),
    ] = None,
    scale: Annotated[float, typer.Option(help="multiplies a trace's lengths", rich_help_panel=WHAT)] = 1.0,
    data: Annotated[Path, typer.Option(help="folder in which traces are looked for too", rich_help_panel=WHAT)] = Path(
        "../shared/data"
    ),
    lengths: Annotated[
        str,
        typer.Option(help="without a trace: median:p90/median:p90 tokens of prompts and answers", rich_help_panel=WHAT),
    ] = "160:600/80:200",
    mixed: Annotated[
        bool, typer.Option("--mixed", help="some prompts among them are long", rich_help_panel=WHAT)
    ] = False,
    long_share: Annotated[float, typer.Option(help="of the requests, with --mixed", rich_help_panel=WHAT)] = 0.1,
    long_lengths: Annotated[
        str, typer.Option(help="of the long ones, with --mixed", rich_help_panel=WHAT)
    ] = "3000:6000/60:120",
    requests: Annotated[int, typer.Option(min=1, max=100_000, help="in each measurement", rich_help_panel=WHAT)] = 100,
    seed: Annotated[int, typer.Option(min=0, help="of lengths, texts and arrivals", rich_help_panel=WHAT)] = 0,
    arrivals: Annotated[
        str,
        typer.Option(
            help="poisson, gamma:SHAPE (below 1: in bursts), or recorded: the trace's, brought to the rate",
            rich_help_panel=WHEN,
        ),
    ] = "poisson",
    rate: Annotated[
        list[float] | None,
        typer.Option(help="requests per second; may be repeated; without it: bisect", rich_help_panel=WHEN),
    ] = None,
    clients: Annotated[
        list[int] | None,
        typer.Option(min=1, help="instead: so many, each asking when it was answered", rich_help_panel=WHEN),
    ] = None,
    low: Annotated[
        float, typer.Option(min=0, help="where bisecting begins; 0: a quarter of one by one", rich_help_panel=WHEN)
    ] = 0.0,
    high: Annotated[float, typer.Option(min=0, help="where it ends; 0: 64 times that", rich_help_panel=WHEN)] = 0.0,
    tolerance: Annotated[float, typer.Option(help="of the rate that is found", rich_help_panel=WHEN)] = 0.1,
    model: Annotated[
        str, typer.Option("--model", "-m", help="asset, GGUF file or directory", rich_help_panel=WHO)
    ] = "smollm2-135m",
    use: Annotated[
        list[str] | None,
        typer.Option(help="techniques joined by +, or plain; repeat it to compare them in turns", rich_help_panel=WHO),
    ] = None,
    compose: Annotated[
        list[str] | None,
        typer.Option(
            help="who composes steps: a technique such as sarathi-serve, or default; repeated: each with each --use",
            rich_help_panel=WHO,
        ),
    ] = None,
    streams: Annotated[int, typer.Option(min=1, help="that hold state at once", rich_help_panel=WHO)] = 64,
    threads: Annotated[
        int, typer.Option(min=0, help="compute threads; 0: one per physical core", rich_help_panel=WHO)
    ] = 0,
    url: Annotated[
        str, typer.Option(help="a server with OpenAI's API instead; --model gives the tokenizer", rich_help_panel=WHO)
    ] = "",
    served: Annotated[
        str, typer.Option(help="the model as the server calls it; empty: its first", rich_help_panel=WHO)
    ] = "",
    send: Annotated[str, typer.Option(help="prompts to it as ids, text, or chat", rich_help_panel=WHO)] = "ids",
    ignore_eos: Annotated[
        bool, typer.Option(help="ask it for all tokens, whatever the model would say", rich_help_panel=WHO)
    ] = True,
    context: Annotated[
        int, typer.Option(min=0, help="most tokens of a request; 0: as it says", rich_help_panel=WHO)
    ] = 0,
    api_key: Annotated[
        str, typer.Option(envvar="OPENAI_API_KEY", show_envvar=True, help="for the server", rich_help_panel=WHO)
    ] = "",
    patience: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="seconds after which a request is given up", rich_help_panel=WHO)
    ] = 120.0,
    ttft_ms: Annotated[
        float, typer.Option(min=0, max=1e9, help="to the first token; 0: 5 x unloaded", rich_help_panel=JUDGED)
    ] = 0.0,
    tpot_ms: Annotated[
        float, typer.Option(min=0, max=1e9, help="per further token; 0: 5 x unloaded", rich_help_panel=JUDGED)
    ] = 0.0,
    attainment: Annotated[
        float, typer.Option(help="share of requests that must be in time", rich_help_panel=JUDGED)
    ] = 0.9,
    promise: Annotated[
        bool, typer.Option(help="tell the engine these times with each request", rich_help_panel=JUDGED)
    ] = True,
    save: Annotated[
        Path | None, typer.Option(help="folder for goodput.json and goodput.png", rich_help_panel=OUT)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON", rich_help_panel=OUT)] = False,
) -> None:
    """How many requests per second are answered in time: the rate that is kept, found by bisection.

    A request is good if its first token comes within --ttft-ms of its arrival and its further tokens take --tpot-ms
    each on average. Goodput is good requests per second; the capacity is the highest rate at which --attainment of all
    requests are good. Requests arrive on their own time and wait for nobody, so a system that falls behind shows it.

    Without --url the engine runs in this process, and several --use stacks are measured in turns: at every rate all of
    them get the same requests at the same times.

    Begin with:  diastole bench goodput --requests 40 --rate 1
    """
    settings = {n: str(v) if isinstance(v, Path) else v for n, v in locals().items() if n != "api_key"}
    from rich.console import Console

    from diastole.assets import resolve
    from diastole.assets.models import tokenizer_of
    from diastole.bench.load import report
    from diastole.bench.load.arrivals import Closed, Open, Plan, named
    from diastole.bench.load.judge import capacities
    from diastole.bench.load.match import Match, unloaded
    from diastole.bench.longtext import Corpus
    from diastole.types import SLO

    _check(trace, mixed, use, compose, url, rate, clients)
    err = Console(stderr=True)
    if save is not None:
        _folder(save)
    with ExitStack() as stack:
        tell = stack.enter_context(_progress(err, requests))
        corpus = Corpus.of(tokenizer_of(resolve(model)))
        # What cannot be asked is refused before a model is loaded.
        ask = _asks(trace, data, scale, lengths, mixed, long_share, long_lengths, corpus, requests, seed)
        named(arrivals, None if trace is None else [0.0])
        targets, room = (
            _server(url, served, send, corpus, ignore_eos, api_key, patience)
            if url
            else _engines(stack, model, use or [PLAIN], compose or [DEFAULT], streams, threads, patience)
        )
        load = ask(min(room, context or room))
        way = named(arrivals, None if trace is None else [r.at for r in load.rows])

        def plan(level: float) -> Plan:
            return Closed(round(level)) if clients else Open(way.times(requests, level, seed))

        plan(1.0)  # times of which no rate can be made are refused before anything is measured
        alone = []
        for name, target in targets.items():
            tell(f"{name} unloaded", 0)
            alone.append(unloaded(target, load))
        slo: SLO = alone[0].promise(ttft_ms / 1e3, tpot_ms / 1e3)
        unit = "clients" if clients else "requests/s"
        found = report.Found(load, way.name if not clients else "closed", unit, slo, alone[0], attainment)
        match = Match(targets, load, plan, slo, slo if promise else None, tell)

        def measure(level: float) -> dict[str, Any]:
            found.levels[level] = match.at(level)
            _keep(found, settings, save)  # after each: the next may take long
            return found.levels[level]

        if rate or clients:
            for level in [*(rate or ()), *(clients or ())]:
                measure(level)
        else:
            lowest = low or 0.25 / alone[0].whole
            found.capacities = capacities(measure, [*targets], attainment, lowest, high or 64 * lowest, tolerance)
    _show(found, (ttft_ms > 0, tpot_ms > 0), settings, save, json)


def _check(
    trace: Path | None,
    mixed: bool,
    use: list[str] | None,
    compose: list[str] | None,
    url: str,
    rate: list[float] | None,
    clients: list[int] | None,
) -> None:
    """Raises:
    UserError: two of these do not go together, or one is out of range.
    """
    for one, other, both in (
        ("trace", "mixed", trace is not None and mixed),
        ("url", "use", url and use),
        ("url", "compose", url and compose),
        ("rate", "clients", rate and clients),
    ):
        if both:
            raise UserError(f"give --{one} or --{other}, not both", param=other)
    if any(not 1e-6 <= r <= 1e6 for r in rate or ()):
        raise UserError("--rate must be above 0 and at most 1,000,000 requests per second", param="rate")


def _folder(save: Path) -> None:
    try:
        save.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--save {save}: {e.strerror}", param="save") from None


@contextmanager
def _progress(err: Console, requests: int) -> Iterator[Tell]:
    from rich.progress import Progress

    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("preparing", total=requests)
        yield lambda what, done: bar.update(task, description=what, completed=done)


def _engines(
    stack: ExitStack,
    model: str,
    use: Sequence[str],
    compose: Sequence[str],
    streams: int,
    threads: int,
    patience: float,
) -> tuple[dict[str, Target], int]:
    """Engines in this process by their stacks' names, and the tokens that a request may have in all of them."""
    from diastole.bench.load.drive import Local
    from diastole.llm import LLM
    from diastole.state.pages import PAGE

    stacks: dict[str, tuple[str, ...]] = {}
    for one in use:
        for who in compose:
            names = tuple(n for n in (*one.split("+"), who) if n not in (PLAIN, DEFAULT))
            name = "+".join(names) or PLAIN
            if name in stacks:
                raise UserError(f"the stack {name!r} is given twice", param="use")
            stacks[name] = names
    targets: dict[str, Target] = {}
    room = 1 << 30
    for name, names in stacks.items():
        llm = stack.enter_context(LLM(model, threads=threads, use=names, max_streams=streams))
        targets[name] = Local(llm.engine, llm.name, patience)
        room = min(room, llm.context, PAGE * llm.engine.services[0].pages()[1])
    return targets, room


def _server(
    url: str, served: str, send: str, corpus: Corpus, ignore_eos: bool, key: str, patience: float
) -> tuple[dict[str, Target], int]:
    from diastole.bench.load.remote import Remote

    remote = Remote(url, served, send, corpus.tokenizer.decode, ignore_eos=ignore_eos, key=key, patience=patience)
    return {remote.model: remote}, remote.context or 4096


def _asks(
    trace: Path | None,
    data: Path,
    scale: float,
    lengths: str,
    mixed: bool,
    long_share: float,
    long_lengths: str,
    corpus: Corpus,
    requests: int,
    seed: int,
) -> Callable[[int], Load]:
    """What makes the load for so many tokens of room."""
    from diastole.bench.load import traces, work

    if trace is not None:
        path = trace if trace.exists() or not (data / trace).exists() else data / trace
        read = traces.read(path)
        return lambda room: work.recorded(read, corpus, requests, room, scale, seed)
    chats = work.Sizes.parse("lengths", lengths)
    if mixed:
        long = work.Sizes.parse("long-lengths", long_lengths)
        return lambda room: work.mixed(chats, long, long_share, corpus, requests, room, seed)
    return lambda room: work.lognormal(chats, corpus, requests, room, seed)


def _keep(found: Found, settings: dict[str, Any], save: Path | None) -> dict[str, Any]:
    """Everything as plain values, and in its file if one is wanted."""
    from diastole.bench.load.report import as_json
    from diastole.reproduce.machine import commit, machine, versions

    about = {"machine": machine(), "versions": versions(), "commit": commit(), "settings": settings}
    result = {**about, **as_json(found)}
    if save is not None:
        try:
            (save / "goodput.json").write_text(jsonlib.dumps(result, indent=1), "utf-8")
        except OSError as e:
            raise UserError(f"--save {save}: {e.strerror}", param="save") from None
    return result


def _show(found: Found, given: tuple[bool, bool], settings: dict[str, Any], save: Path | None, json: bool) -> None:
    from rich.console import Console

    from diastole.bench.load import report

    result = _keep(found, settings, save)
    picture = _draw(found, save) if save is not None else ""
    if json:
        print(jsonlib.dumps(result))
        return
    print(found.load.words())
    print(f"arrivals {found.arrivals}; {report.promises(found, given)}")
    out = Console(highlight=False)
    out.width = max(out.width, report.WIDTH)
    out.print(report.as_table(found))
    for line in report.conclusions(found):
        print(line)
    if save is not None:
        print(f"written: {save / 'goodput.json'}{picture}")


def _draw(found: Found, save: Path) -> str:
    """The picture, and how to tell of it."""
    from diastole.bench.load.report import lines
    from diastole.reproduce import plot
    from diastole.reproduce.study import Curve

    try:
        plot.need()
    except UserError:
        return "; no picture, since matplotlib is not installed: pip install 'diastole[papers]'"
    title = f"{found.load.about}: goodput, arrivals {found.arrivals}"
    plot.draw(title, [Curve(*line) for line in lines(found)], save / "goodput.png")
    return f", {save / 'goodput.png'}"
