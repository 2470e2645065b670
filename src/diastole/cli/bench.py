"""``diastole bench``: measurements of this installation on this machine."""

from __future__ import annotations

import json as jsonlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from diastole.cli.drafts import drafts
from diastole.cli.goodput import goodput
from diastole.cli.live import live
from diastole.cli.longcontext import longcontext
from diastole.cli.lossless import lossless
from diastole.cli.pictures import pictures
from diastole.cli.rows import rows
from diastole.cli.sparse import sparse
from diastole.types import UserError

app = typer.Typer(help="Measure this installation on this machine.", no_args_is_help=True)
app.command()(longcontext)
app.command()(sparse)
app.command()(drafts)
app.command()(lossless)
app.command()(rows)
app.command()(goodput)
app.command()(live)
app.command()(pictures)


@app.command()
def startup(
    model: Annotated[str, typer.Option("--model", "-m", help="asset, GGUF file or directory")] = "smollm2-135m",
    runs: Annotated[int, typer.Option(min=1, help="starts to take the median of")] = 5,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Time from starting `diastole serve` to its first ready answer, and its idle memory (all its processes)."""
    seen = [_start_once(model) for _ in range(runs)]
    result = {
        "model": model,
        "runs": runs,
        "ready_seconds": round(statistics.median(s for s, _ in seen), 3),
        "ready_seconds_all": [round(s, 3) for s, _ in seen],
        "idle_megabytes": round(statistics.median(m for _, m in seen), 1),
        "cores": os.cpu_count(),
    }
    if json:
        print(jsonlib.dumps(result))
    else:
        print(f"ready after {result['ready_seconds']} s (median of {runs}: {result['ready_seconds_all']})")
        print(f"idle memory {result['idle_megabytes']} MB (proportional set size, all processes)")


def _start_once(model: str) -> tuple[float, float]:
    import httpx

    command = [sys.executable, "-m", "diastole.cli.main", "serve", model, "--port", "0"]
    began = time.monotonic()
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = ""
        assert server.stderr is not None
        for line in server.stderr:
            if " is ready at " in line:
                url = line.split(" is ready at ")[1].split()[0].removesuffix("/v1")
                break
        if not url:
            raise typer.Exit(1)
        httpx.get(f"{url}/ready").raise_for_status()
        return time.monotonic() - began, _memory(server.pid) / 2**20
    finally:
        server.terminate()
        server.wait()


def _memory(pid: int) -> float:
    """Proportional set size of a process and its children, in bytes: shared pages are counted once in all."""
    total = 0.0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            total += _memory(int(child))
    return total


Model = Annotated[str, typer.Option("--model", "-m", help="asset, GGUF file or directory")]
Threads = Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")]
Runs = Annotated[int, typer.Option(min=1, help="runs to take the median of")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.command()
def throughput(
    model: Model = "smollm2-135m",
    streams: Annotated[int, typer.Option(min=1, help="requests at once")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="tokens that each generates")] = 64,
    prompt: Annotated[int, typer.Option(min=1, help="tokens of each prompt")] = 128,
    runs: Runs = 3,
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Tokens per second of a batch offline: first all prompts, then all tokens (greedy, no reuse of prefixes)."""
    from diastole.bench.ours import Ours
    from diastole.bench.task import Task

    task = Task("throughput", streams, prompt, tokens)
    ours = Ours(model, threads, streams, prompt + tokens + 2)
    ours.prefill(task.prompts(ours.vocab)[0])  # touch everything once
    prefill, decode = [], []
    for turn in range(runs):
        began = time.perf_counter()
        ours.begin(task.prompts(ours.vocab, turn + 1))
        prefill.append(streams * prompt / (time.perf_counter() - began))
        left = streams * tokens - ours.given
        decode.append(left / ours.finish(tokens))
        ours.end()
    result = {
        "kernels": ours.kernels,
        "streams": streams,
        "prompt": prompt,
        "tokens": tokens,
        "prefill_tokens_per_second": _spread(prefill),
        "decode_tokens_per_second": _spread(decode),
    }
    if json:
        print(jsonlib.dumps(result))
        return
    print(f"kernels {ours.kernels}, {streams} streams, prompts of {prompt} tokens, median of {runs} (range)")
    for name, speeds in (("prefill", prefill), ("decode", decode)):
        s = _spread(speeds)
        print(f"{name:8s}{s['median']:8,.0f} tokens/s ({s['least']:,.0f}-{s['most']:,.0f})")


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


@app.command()
def latency(
    model: Model = "smollm2-135m",
    prompt: Annotated[int, typer.Option(min=1, help="tokens of the prompt")] = 512,
    tokens: Annotated[int, typer.Option(min=2, help="tokens to generate")] = 128,
    streams: Annotated[int, typer.Option(min=1, help="requests at once")] = 1,
    runs: Runs = 5,
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Time to the first token and between tokens of a batch offline, in milliseconds."""
    from diastole.bench.ours import Ours
    from diastole.bench.task import Task

    task = Task("latency", streams, prompt, tokens)
    ours = Ours(model, threads, streams, prompt + tokens + 2)
    ours.prefill(task.prompts(ours.vocab)[0])
    first, gaps = [], []
    for turn in range(runs):
        began = time.perf_counter()
        ours.begin(task.prompts(ours.vocab, turn + 1))
        first.append(1000 * (time.perf_counter() - began))
        gaps += [1000 * ours.decode(1) for _ in range(tokens - 1)]
        ours.end()
    cuts = statistics.quantiles(gaps, n=100)
    result = {
        "kernels": ours.kernels,
        "streams": streams,
        "prompt": prompt,
        "tokens": tokens,
        "first_token_ms": _spread(first),
        "gap_ms": {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98]},
    }
    if json:
        print(jsonlib.dumps(result))
        return
    print(f"kernels {ours.kernels}, {streams} streams, prompts of {prompt} tokens, {runs} runs")
    s = _spread(first)
    print(f"time to the last stream's first token (TTFT) {s['median']:.1f} ms ({s['least']:.1f}-{s['most']:.1f})")
    print(f"time between tokens (TPOT) p50 {cuts[49]:.2f} ms, p90 {cuts[89]:.2f} ms, p99 {cuts[98]:.2f} ms")


@app.command()
def overhead(
    model: Model = "smollm2-135m",
    streams: Annotated[list[int] | None, typer.Option(min=1, help="requests at once; may be repeated")] = None,
    steps: Annotated[int, typer.Option(min=1, help="decode steps to measure")] = 100,
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """What a decode step costs beside the model's forward pass (scheduling, gathering, choosing tokens), and where the
    forward pass spends its time."""
    from dataclasses import asdict

    from diastole.bench.overhead import GREEDY, SAMPLED, measure

    found = []
    for n in streams or [1, 8, 32]:
        for name, params in (("greedy", GREEDY), ("sampled", SAMPLED)):
            seen = measure(model, threads, n, steps, params)
            found.append({"tokens": name, **asdict(seen)})
            if json:
                continue
            print(
                f"{n:3d} streams, {name:8s} step {seen.step * 1e3:7.2f} ms, "
                f"choosing {seen.choosing * 1e3:6.3f} ms, Python {seen.python * 1e3:6.3f} ms "
                f"({seen.python / seen.step:.1%})"
            )
            if name == "greedy":
                print("    " + "  ".join(f"{k} {v * 1e3:.2f}" for k, v in seen.phases.items()))
    if json:
        print(jsonlib.dumps(found))


@app.command()
def structured(
    model: Model = "smollm2-135m",
    streams: Annotated[list[int] | None, typer.Option(min=1, help="requests at once; may be repeated")] = None,
    steps: Annotated[int, typer.Option(min=1, help="tokens of each stream in one round")] = 64,
    runs: Annotated[int, typer.Option(min=1, help="rounds of each")] = 5,
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """What a JSON schema costs per token: the same streams with and without, taking turns."""
    from dataclasses import asdict

    from diastole.bench.structured import measure

    found = [measure(model, threads, n, steps, runs) for n in streams or [1, 8, 32]]
    if json:
        print(jsonlib.dumps([{**asdict(c), "ratio": c.ratio} for c in found]))
        return
    for c in found:
        print(
            f"{c.streams:3d} streams: {c.plain * 1e3:6.2f} ms per token, with a schema {c.guided * 1e3:6.2f} ms, "
            f"{c.ratio:.2f} times ({min(c.ratios):.2f}-{max(c.ratios):.2f})"
        )


@app.command()
def quality(
    model: Model = "smollm2-135m",
    tokens: Annotated[int, typer.Option(min=512, help="tokens to read")] = 20_480,
    text: Annotated[Path | None, typer.Option(help="text file; default: Python's own documentation")] = None,
    kernels: Annotated[str, typer.Option(help="as in `diastole serve`")] = "auto",
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """What the number formats cost: perplexity on real text beside the file's own weights in float32."""
    from dataclasses import asdict

    from rich.console import Console

    from diastole.bench import quality as judges

    try:
        words = judges.standard_text() if text is None else text.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{text} cannot be read: {e}", param="text") from None
    with Console(stderr=True).status("reading") as status:
        found = judges.judge(
            model, threads, kernels, words, tokens, lambda done, of: status.update(f"{done} of {of} stretches")
        )
    if json:
        print(jsonlib.dumps([asdict(j) for j in found]))
        return
    for j in found:
        own = j.setting == judges.REFERENCE
        print(
            f"weights {j.setting.weights:7s} kv {j.setting.kv:5s} perplexity {j.perplexity:8.4f}"
            + (
                ""
                if own
                else f"  ratio {j.ratio:.5f}  equal first choices {j.equal:.2%}  divergence {j.divergence:.5f}"
            )
        )


@app.command()
def compare(
    model: Annotated[
        str, typer.Option("--model", "-m", help="asset, GGUF file, or a shape: 0.5b-random, 1b-random")
    ] = "smollm2-135m",
    tasks: Annotated[str, typer.Option(help="names, separated by commas; empty: all")] = "",
    peers: Annotated[str, typer.Option(help="llama.cpp, transformers, or both")] = "llama.cpp,transformers",
    formats: Annotated[str, typer.Option(help="llama.cpp's, separated by commas; empty: all")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="turns of each")] = 5,
    threads: Threads = 0,
    kernels: Annotated[str, typer.Option(help="Diastole's, as in `diastole serve`; peers choose their own")] = "auto",
    use: Annotated[
        list[str] | None,
        typer.Option(
            help="also Diastole with this technique, or several joined by +, in long contexts; may be repeated"
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="folder for compare.json and compare.png")] = None,
) -> None:
    """Diastole, llama.cpp in each of its formats, and transformers, taking turns in one run: how many times as fast.

    The peers come with `pip install 'diastole\\[peers]'`; build llama-cpp-python from source for this processor.
    """
    from rich.console import Console

    from diastole.bench import compare as arena
    from diastole.bench import contest, limits, report
    from diastole.bench.field import suits
    from diastole.kernels.table import physical_cores

    console = Console(stderr=True)
    wanted = arena.tasks(tasks)
    threads = threads or physical_cores()
    results = []
    with console.status("preparing") as status:
        file = arena.model_file(model)
        names = [p.strip() for p in peers.split(",") if p.strip()]
        entries = arena.field(file, threads, kernels, names, arena.formats(formats), use or [], status.update)
        status.update("measuring the machine")
        machine = limits.measure(threads, kernels)
        for task in wanted:
            fit = [e for e in entries if suits(e, task)]
            tell = lambda what, task=task: status.update(f"{task.name}: {what}")  # noqa: E731
            results.append(contest.run(task, fit, threads, rounds, tell))
            found = report.as_json(results, entries, machine, f"{model}, {threads} threads")
            if save is not None:  # after each: the next may take long
                save.mkdir(parents=True, exist_ok=True)
                (save / "compare.json").write_text(jsonlib.dumps(found, indent=1))
            console.print(f"{task.name} done: {results[-1].median(report.OURS):,.0f} tokens/s", highlight=False)
            for name, why in results[-1].failed.items():
                console.print(f"  {name} could not run: {why}", highlight=False)
    print(
        f"{threads} threads; this machine reads {machine.bandwidth / 1e9:.1f} GB/s and does {machine.int8 / 1e9:.0f} "
        f"int8, {machine.bf16 / 1e9:.0f} bf16 and {machine.f32 / 1e9:.0f} float32 multiply-adds per ns"
    )
    out = Console()
    out.width = max(out.width, report.WIDTH)
    out.print(report.as_table(found))
    if save is not None:
        report.draw(found, save / "compare.png")
        print(f"written: {save / 'compare.json'}, {save / 'compare.png'}")
