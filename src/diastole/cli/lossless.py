"""``diastole bench lossless``."""

from __future__ import annotations

import json as jsonlib
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diastole.cli.rows import numbers

if TYPE_CHECKING:
    from diastole.bench.lossless import Told
    from diastole.llm import LLM

ROOM = 16  # tokens of a context that are left for guesses


def lossless(
    use: Annotated[
        list[str] | None,
        typer.Option(help="drafter, with + more techniques beside it; may be repeated [default: all with all]"),
    ] = None,
    streams: Annotated[str, typer.Option(help="numbers of streams at once")] = "1,8",
    count: Annotated[int, typer.Option(min=1, help="requests, from all of Spec-Bench's categories")] = 200,
    tokens: Annotated[int, typer.Option(min=2, help="of each answer")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="of the answers; each has a seed of its own")] = 0.0,
    small: Annotated[str, typer.Option(help="a model with the same tokens, for draft-model")] = "",
    data: Annotated[Path, typer.Option(help="folder with Spec-Bench's questions")] = Path("../shared/data"),
    model: Annotated[str, typer.Option("--model", "-m", help="asset, GGUF file or directory")] = "smollm2-135m",
    threads: Annotated[int, typer.Option(min=0, help="compute threads; 0: one per physical core")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file that grows with every combination")] = None,
) -> None:
    """Whether every text is the plain engine's, token by token: drafters with controllers, alone and in a crowd.

    Questions are asked as chats, or are texts to go on with where a model has no chat template. Takes an hour or two on
    two cores as it stands; --count 20 takes minutes. Exits 1 when a text differs, or none was
    compared.
    """
    from rich.console import Console
    from rich.progress import Progress

    from diastole.bench import lossless as stage
    from diastole.llm import LLM
    from diastole.params import SamplingParams
    from diastole.types import UserError

    widths = numbers("streams", streams, 1024)
    uses = [u.split("+") for u in use] if use else stage.combinations(small)
    asked = stage.questions(count, data)
    found: list[Told] = []
    if out is not None and not out.parent.is_dir():
        raise UserError(f"--out {out}: its folder does not exist", param="out")
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        task = bar.add_task("plain", total=len(asked))
        with LLM(model, threads=threads, max_streams=1) as llm:
            prompts = [_prompt(llm, a, tokens) for a in asked]
            params = [
                SamplingParams(max_tokens=tokens, temperature=temperature, seed=i, ignore_eos=True)
                for i in range(len(asked))
            ]
            plain = stage.Plain.of(llm, prompts, params, lambda: bar.advance(task))
        task = bar.add_task("", total=len(uses) * len(widths))
        for own in uses:
            for n in widths:
                name = "+".join(own)
                bar.update(task, description=f"{name}, {n} streams")
                try:
                    llm = LLM(model, threads=threads, use=tuple(own), max_streams=n)
                except UserError as e:
                    told = stage.Told(name, n, 0, [], 0, 0, 0, e.message)
                else:
                    with llm:
                        told = plain.beside(llm, name, n)
                found.append(told)
                bar.console.print(_line(told), highlight=False, soft_wrap=True)
                bar.advance(task)
                if out is not None:
                    out.write_text(jsonlib.dumps([t._asdict() for t in found], indent=1) + "\n")
    texts, different = sum(t.texts for t in found), sum(len(t.different) for t in found)
    refused = sum(bool(t.refused) for t in found)
    print(
        f"{texts - different} of {texts} texts of {tokens} tokens are the plain engine's"
        + (f"; {refused} combinations are refused" if refused else "")
    )
    if different or not texts:
        raise typer.Exit(1)


def _prompt(llm: LLM, question: str, tokens: int) -> list[int]:
    """A question as a chat; or where a model has no template for these its end, as far as it leaves room."""
    if llm.voice.template is not None:
        return llm.voice.chat([{"role": "user", "content": question}], None, {})
    room = llm.engine.services[0].loop.context - tokens - ROOM  # type: ignore[attr-defined]
    return llm.voice.prompt(question)[-max(room, 1) :]


def _line(told: Told) -> str:
    name = f"{told.use}, {told.streams} at once"
    if told.refused:
        return f"{name}: refused: {told.refused}"
    right = f"{told.kept / told.drafted:.0%} of {told.drafted:,} guesses right" if told.drafted else "no guesses"
    others = f", others: {', '.join(map(str, told.different[:8]))}" if told.different else ""
    return f"{name}: {told.texts - len(told.different)} of {told.texts} texts the same; {right}{others}"
