"""``diastole bench live``."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, NamedTuple

import typer

from diastole.cli.stream import model_options
from diastole.types import UserError


def live(
    model: Annotated[str, typer.Option("--model", "-m", help="asset, GGUF file or directory")] = "smollm2-135m",
    streams: Annotated[int, typer.Option(min=1, max=512, help="of live frames, 12.5 per second each")] = 4,
    prompt: Annotated[int, typer.Option(min=64, help="tokens of the prompts that keep coming")] = 6000,
    seconds: Annotated[float, typer.Option(min=2.0, help="of each measurement")] = 60.0,
    threads: Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")] = 0,
    live_models: Annotated[
        str,
        typer.Option(
            "--live",
            help="models of live input, with commas between, instead of the synthetic one; options behind them: "
            "cache-aware-conformer:latency_ms=80",
        ),
    ] = "",
    load: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="with --live: share of the time that the language model is busy")
    ] = 0.7,
    url: Annotated[str, typer.Option(help="of a server that serves these and a language model, instead")] = "",
    served: Annotated[str, typer.Option(help="with --url: the language model as the server calls it")] = "lm",
    clients: Annotated[int, typer.Option(min=0, help="with --url: that ask long prompts, one after the other")] = 1,
    warm: Annotated[float, typer.Option(min=0, help="seconds that do not count: windows fill, costs are learned")] = 40,
    api_key: Annotated[str, typer.Option(envvar="DIASTOLE_API_KEY", help="for the server")] = "",
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Live frames beside long prompts: how many are answered within 80 ms, and what the language model loses.

    The live service is synthetic: made-up matrices of the size of a small speech model. With --live, streams of real
    models are dealt out to these, and each chunk is owed its answer before the next one is whole. With --url they go
    over WebSockets to a server, and prompts over HTTP; --model gives the tokenizer of its language model.
    """
    if url:
        if not live_models:
            raise UserError("with --url, --live must name models of live input that the server has", param="live")
        _wired(
            url,
            model,
            served,
            _kinds(live_models),
            streams,
            prompt,
            seconds,
            load,
            clients,
            min(warm, seconds),
            api_key,
            json,
        )
        return
    if live_models:
        _mixed(model, _kinds(live_models), streams, prompt, seconds, load, threads, min(warm, seconds), json)
        return
    from random import Random

    import numpy as np
    from rich.console import Console

    from diastole import registry
    from diastole.bench import live as stage
    from diastole.bench.longtext import Corpus
    from diastole.llm import LLM
    from diastole.slots import Facts

    console = Console(stderr=True)
    with console.status("loading") as status, LLM(model, threads=threads, max_streams=16, prefix_cache=False) as llm:
        ids = Corpus.of(llm.voice.tokenizer).cut(min(prompt, llm.context - 100), Random(0))
        first_come = registry.build(["orca"], {}, Facts(frozenset())).compose
        tell = lambda what, done: status.update(f"{what}: {done:.0f} s")  # noqa: E731
        found = stage.measure(llm, ids, streams, seconds, first_come, tell)
    if json:
        print(jsonlib.dumps({**asdict(found), "throughput": found.throughput}))
        return
    for name, heard in (("beside prompts", found.beside), ("prompts as they come", found.greedy)):
        delays = 1e3 * np.array(heard.delays)
        print(
            f"{name}: {heard.kept:.2%} of {len(delays)} frames of {streams} streams within {1e3 * stage.GAP:.0f} ms; "
            f"p50 {np.median(delays):.1f} ms, p99 {np.percentile(delays, 99):.1f} ms, worst {delays.max():.1f} ms"
        )
    beside, alone = found.beside, found.alone
    print(
        f"language model: {beside.tokens:,.0f} tokens/s beside frames, {alone.tokens:,.0f} alone; frames took "
        f"{beside.frames / beside.seconds:.1%} of the time; {found.throughput:.2f} of alone in the rest"
    )
    print(f"this thread was kept from its processor for {beside.held_up:.2f} s of {beside.seconds:.0f}")


class Kind(NamedTuple):
    """Streams of a model."""

    model: str
    options: Mapping[str, Any]


def _kinds(said: str) -> dict[str, Kind]:
    """By what was said of each.

    Raises:
        UserError: an option is not to be understood.
    """
    found = {}
    for part in said.split(","):
        model, *options = part.split(":")
        found[part] = Kind(model, model_options([f"--{option}" for option in options]))
    return found


def _mixed(
    model: str,
    kinds: Mapping[str, Kind],
    streams: int,
    prompt: int,
    seconds: float,
    load: float,
    threads: int,
    warm: float,
    json: bool,
) -> None:
    """Streams of real models: by least slack, and a fifth as long first come, first served."""
    from random import Random

    import numpy as np
    from rich.console import Console
    from threadpoolctl import threadpool_limits

    from diastole import registry
    from diastole.bench import livemix
    from diastole.bench.firstcome import FirstCome
    from diastole.bench.longtext import Corpus
    from diastole.bench.streaming import opened
    from diastole.kernels.table import load as load_ops
    from diastole.llm import LLM
    from diastole.slots import Facts

    console = Console(stderr=True)
    found = {}
    with console.status("loading") as status, LLM(model, threads=threads, max_streams=16, prefix_cache=False) as llm:
        ids = Corpus.of(llm.voice.tokenizer).cut(min(prompt, llm.context - 100), Random(0))
        ops = load_ops(threads or None)
        models = {name: opened(kind.model, ops) for name, kind in kinds.items()}
        options = {name: kind.options for name, kind in kinds.items()}
        engine = llm.engine
        livemix.add(engine, models, streams)
        with threadpool_limits(1):

            def go(what: str, seconds: float) -> livemix.Mixed:
                tell = lambda done: status.update(f"{what}: {done:.0f} s")  # noqa: E731
                return livemix.run(engine, llm.name, ids, models, streams, seconds, load, options, tell)

            go("warming up", warm)
            found["least slack"] = go("least slack", seconds)
            text, fair = engine.service(llm.name), engine.dispatch
            composer = text.compose
            text.compose = registry.build(["orca"], {}, Facts(frozenset())).compose
            engine.dispatch = FirstCome()
            found["first come, first served"] = go("first come", seconds / 5)
            text.compose, engine.dispatch = composer, fair
    if json:
        print(jsonlib.dumps({what: {**asdict(run), "share": run.share} for what, run in found.items()}))
        return
    for what, run in found.items():
        print(
            f"{what}: {run.share:.3%} of all chunks in time; the language model was busy {run.busy / run.seconds:.0%}"
        )
        for name, kept in run.models.items():
            ms = 1e3 * np.array(kept.latencies or [np.nan])
            print(
                f"  {name}: {kept.share:.3%} of {kept.chunks} chunks of {kept.streams} streams within "
                f"{1e3 * kept.period:.0f} ms; p50 {np.median(ms):.1f} ms, p99 {np.percentile(ms, 99):.1f} ms, "
                f"worst {ms.max():.1f} ms"
            )
        print(
            f"  {run.tokens / run.seconds:,.0f} tokens/s; this thread was kept from its processor {run.held_up:.2f} s"
        )


def _wired(
    url: str,
    model: str,
    served: str,
    kinds: Mapping[str, Kind],
    streams: int,
    prompt: int,
    seconds: float,
    load: float,
    clients: int,
    warm: float,
    key: str,
    json: bool,
) -> None:
    """Streams to a server."""
    import asyncio
    from random import Random

    import numpy as np
    from rich.console import Console

    from diastole.assets import resolve
    from diastole.assets.models import tokenizer_of
    from diastole.bench import livewire
    from diastole.bench.longtext import Corpus

    ids = Corpus.of(tokenizer_of(resolve(model))).cut(prompt, Random(0))
    with Console(stderr=True).status("warming up") as status:
        tell = lambda done: status.update(f"{done:.0f} s of {seconds:.0f}")  # noqa: E731
        work = livewire.run(url, served, ids, kinds, streams, seconds, load, warm, clients, key, tell)
        found = asyncio.run(work)
    if json:
        print(jsonlib.dumps({**asdict(found), "share": found.share}))
        return
    print(
        f"{found.share:.3%} of all chunks in time; the language model was busy {found.busy / found.seconds:.0%} and "
        f"gave {len(found.answers)} answers, the longest after {max(found.answers, default=0.0):.1f} s"
    )
    for name, heard in found.models.items():
        print(f"  {name}: {heard.chunks} chunks of {heard.streams} streams, each owed in {1e3 * heard.period:.0f} ms")
        for who, met, times in (("server", heard.met, heard.latencies), ("sender", heard.seen, heard.waits)):
            ms = 1e3 * np.array(times or [np.nan])
            print(
                f"    as its {who} saw it: {met / max(heard.chunks, 1):.3%} in time; p50 {np.median(ms):.1f} ms, "
                f"p99 {np.percentile(ms, 99):.1f} ms, worst {ms.max():.1f} ms"
            )
    print(f"  the senders' thread was kept from its processor {found.held_up:.2f} s of {found.seconds:.0f}")
