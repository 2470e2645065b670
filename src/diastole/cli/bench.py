"""``diastole bench``: measurements of this installation on this machine."""

from __future__ import annotations

import json as jsonlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Measure this installation on this machine.", no_args_is_help=True)


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


@app.command()
def throughput(
    model: Annotated[str, typer.Option("--model", "-m", help="asset, GGUF file or directory")] = "smollm2-135m",
    streams: Annotated[int, typer.Option(min=1, help="requests at once")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="tokens that each generates")] = 64,
    prompt: Annotated[int, typer.Option(min=1, help="tokens of each prompt")] = 128,
    threads: Annotated[int, typer.Option(help="compute threads; 0: one per physical core")] = 0,
) -> None:
    """Tokens per second of a batch offline: first all prompts, then all tokens (greedy, no reuse of prefixes)."""
    from diastole.llm import LLM
    from diastole.params import SamplingParams

    with LLM(model, threads=threads, prefix_cache=False, max_streams=streams) as llm:
        prompts: list[Any] = [[(7 * i + j) % 1000 + 100 for j in range(prompt)] for i in range(streams)]
        llm.generate(prompts[:1], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))  # touch everything once
        began = time.monotonic()
        llm.generate(prompts, SamplingParams(max_tokens=1, temperature=0, ignore_eos=True))
        prefill = time.monotonic() - began
        began = time.monotonic()
        llm.generate(prompts, SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True))
        whole = time.monotonic() - began
    print(f"kernels {llm.kernels}, {streams} streams, prompts of {prompt} tokens")
    print(f"prefill {streams * prompt / prefill:8.0f} tokens/s")
    if tokens > 1:
        print(f"decode  {streams * (tokens - 1) / max(whole - prefill, 1e-9):8.0f} tokens/s")
