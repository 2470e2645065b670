"""``diastole bench compare``: Diastole beside llama.cpp and transformers: one run, one model, the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from diastole.assets.cache import root
from diastole.bench.contest import Result, run
from diastole.bench.field import Entry, suits
from diastole.bench.llama import FORMATS, requantised
from diastole.bench.task import Task

TASKS = (
    Task("prefill-512", 1, 512),
    Task("prefill-2k", 1, 2048),
    Task("prefill-8k", 1, 7900),
    Task("decode-1", 1, 64, steps=32),
    Task("decode-8", 8, 128, steps=16),
    Task("decode-32", 32, 128, steps=8),
    Task("decode-8k", 1, 7900, steps=4),
    Task("decode-1-neighbour", 1, 64, steps=32, neighbour=True),
)


def field(model: Path, threads: int, peers: Sequence[str], tell: Callable[[str], None]) -> list[Entry]:
    """Everybody: Diastole as it comes and with int8 keys and values, llama.cpp in each of its formats, transformers."""
    entries = [
        Entry("diastole", "diastole", model),
        Entry("diastole, int8 kv", "diastole", model, (("kv", "int8"),)),
    ]
    if "llama.cpp" in peers:
        for fmt in FORMATS:
            tell(f"llama.cpp: making {fmt}")
            file = requantised(
                model, fmt, root() / "bench" / f"{model.stem}-{model.stat().st_size}-{fmt}.gguf", threads
            )
            entries.append(Entry(f"llama.cpp {fmt}", "llama.cpp", file))
            if fmt in {"q4_0", "bf16"}:
                entries.append(Entry(f"llama.cpp {fmt}, flash off", "llama.cpp", file, (("flash", 0),)))
    if "transformers" in peers:
        entries.append(Entry("transformers bf16", "transformers", model))
    return entries


def compare(
    tasks: Sequence[Task],
    entries: Sequence[Entry],
    threads: int,
    rounds: int,
    tell: Callable[[str], None],
) -> list[Result]:
    """All tasks, one after the other."""
    return [run(task, [e for e in entries if suits(e, task)], threads, rounds, tell) for task in tasks]
