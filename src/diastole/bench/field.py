"""The field: who takes part in a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diastole.bench.task import Contender, Task

Engine = Literal["diastole", "llama.cpp", "transformers"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One engine with one model file and one set of options."""

    name: str
    engine: Engine
    path: Path
    options: tuple[tuple[str, Any], ...] = ()

    def make(self, threads: int, streams: int, context: int) -> Contender:
        """Load it, in this process."""
        options = dict(self.options)
        if self.engine == "diastole":
            from diastole.bench.ours import Ours
            from diastole.config import ServiceConfig

            return Ours(str(self.path), threads, streams, context, ServiceConfig(**options))
        if self.engine == "llama.cpp":
            from diastole.bench.llama import Llama

            return Llama(self.path, threads, streams, context, **options)
        from diastole.bench.hf import Transformers

        return Transformers(self.path, threads)


LONG = 2048  # tokens of a prompt from which on keys and values weigh
ONLY_LONG = frozenset(
    {"llama.cpp q4_0 flash off", "llama.cpp bf16 flash off", "llama.cpp q4_0 q8_0 kv", "diastole int8 kv"}
)
WITH = "diastole with "  # and a technique: begins the names of such entries
ONLY_PREFILL = frozenset({"diastole bf16 weights"})
SAME_FILE, COMPACT = f"{WITH}llama.cpp's q4_0 file", f"{WITH}compact weights"


def suits(entry: Entry, task: Task) -> bool:
    """Whether an entry is worth its time in a task: options that only matter for long contexts or only for short ones,
    or only where weights are used many times, stay out of others."""
    if entry.name in ONLY_PREFILL:
        return task.steps == 0
    if entry.name in {SAME_FILE, COMPACT}:
        return task.prompt < LONG
    return task.prompt >= LONG or not (entry.name in ONLY_LONG or entry.name.startswith(WITH))
