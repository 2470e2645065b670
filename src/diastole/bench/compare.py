"""``diastole bench compare``: Diastole beside llama.cpp and transformers: one run, one model, the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from diastole.assets import resolve
from diastole.assets.cache import root
from diastole.bench import shapes
from diastole.bench.field import COMPACT, SAME_FILE, WITH, Entry
from diastole.bench.llama import FORMATS, requantised
from diastole.bench.task import Task
from diastole.types import UserError

TASKS = (
    Task("prefill-512", 1, 512),
    Task("prefill-2k", 1, 2048),
    Task("prefill-8k", 1, 7900),
    Task("decode-1", 1, 64, steps=96),
    Task("decode-8", 8, 128, steps=16),
    Task("decode-32", 32, 128, steps=8),
    Task("decode-8k", 1, 7900, steps=16),
    Task("decode-1-neighbour", 1, 64, steps=48, neighbour=True),
)
PEERS = ("llama.cpp", "transformers")


def tasks(names: str) -> list[Task]:
    """Tasks by name, separated by commas; empty: all.

    Raises:
        UserError: there is no such task.
    """
    known = {t.name: t for t in TASKS}
    wanted = [n.strip() for n in names.split(",") if n.strip()] or list(known)
    for name in wanted:
        if name not in known:
            raise UserError(f"there is no task {name!r}; there are {', '.join(known)}", param="tasks")
    return [known[n] for n in wanted]


def formats(names: str) -> list[str]:
    """Formats of llama.cpp by name, separated by commas; empty: all.

    Raises:
        UserError: there is no such format.
    """
    wanted = [n.strip() for n in names.split(",") if n.strip()] or list(FORMATS)
    for name in wanted:
        if name not in FORMATS:
            raise UserError(f"there is no format {name!r}; there are {', '.join(FORMATS)}", param="formats")
    return wanted


def model_file(model: str) -> Path:
    """A GGUF file: an asset's, one given by path, or one of ``shapes``, which is made if it is not there.

    Raises:
        UserError: there is no such file, or it is a directory.
    """
    if model in shapes.SHAPES:
        return shapes.write(model, resolve("smollm2-135m"), root() / "bench" / f"{model}-q4_1.gguf")
    path = resolve(model)
    if path.is_dir():
        raise UserError("a comparison needs a GGUF file, which all engines read, not a directory", param="model")
    return path


def field(
    model: Path,
    threads: int,
    kernels: str,
    peers: Sequence[str],
    formats: Sequence[str],
    use: Sequence[str],
    tell: Callable[[str], None],
) -> list[Entry]:
    """Everybody: Diastole on these kernels, as it comes, with int8 keys and values, with bf16 weights as transformers
    has them, with compact ones, with the file that llama.cpp makes in q4_0, and with each of the techniques ``use``,
    several joined by "+"; llama.cpp in these formats; transformers.

    Raises:
        UserError: a peer is unknown or not installed.
    """
    own = ("kernels", kernels)
    entries = [
        Entry("diastole", "diastole", model, (own,)),
        Entry("diastole int8 kv", "diastole", model, (own, ("kv", "int8"))),
        Entry("diastole bf16 weights", "diastole", model, (own, ("weights", "bf16"))),
        Entry(COMPACT, "diastole", model, (own, ("weights", "compact"))),
        *(Entry(f"{WITH}{spec}", "diastole", model, (own, ("use", tuple(spec.split("+"))))) for spec in use),
    ]
    for peer in peers:
        if peer == "llama.cpp":
            for fmt in formats:
                tell(f"making the {fmt} file of llama.cpp")
                kept = root() / "bench" / f"{model.stem}-{model.stat().st_size}-{fmt}.gguf"
                file = requantised(model, fmt, kept, threads)
                entries.append(Entry(f"llama.cpp {fmt}", "llama.cpp", file))
                if fmt in {"q4_0", "bf16"}:
                    entries.append(Entry(f"llama.cpp {fmt} flash off", "llama.cpp", file, (("flash", 0),)))
                if fmt == "q4_0":
                    options = (("flash", 1), ("cache", "q8_0"))
                    entries.append(Entry("llama.cpp q4_0 q8_0 kv", "llama.cpp", file, options))
                    entries.append(Entry(SAME_FILE, "diastole", file, (own,)))
        elif peer == "transformers":
            entries.append(Entry("transformers bf16", "transformers", model))
        else:
            raise UserError(f"unknown peer {peer!r}; there are {', '.join(PEERS)}", param="peers")
    return entries
