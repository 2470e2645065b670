"""dKV-Cache: what is kept of settled places, against computing all of them in every step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from diastole.bench.filling import Writer, Written
from diastole.params import SamplingParams, Unmasking
from diastole.recipes.masked_tasks import SHORT, Item, items, right
from diastole.reproduce.must import at_least, at_most, between, equal_to
from diastole.reproduce.study import Study
from diastole.reproduce.timing import Spread

PAPER = "dKV-Cache: settled places keep their keys and values, one step after they were settled"

MODEL = "masked-lm"
END = 256  # the byte model's token behind its 256 bytes
TOGETHER = 8
STEPS = 16  # of 32 places
LONG = 256  # places of the long answers
PROMPT = 64  # tokens of the prompts that come before these, as the card has them
BEFORE = b"The following is known of the matter and was told before. " * 8
DECODE = (2, 4, 8, 16, 0)  # refresh; 0: never
Wish = tuple[Sequence[int], SamplingParams]


class Set(NamedTuple):
    """Questions of one kind."""

    task: str
    asked: list[Item]
    length: int  # places of an answer
    steps: int

    def wishes(self, **more: object) -> list[Wish]:
        """As requests."""
        unmasking = Unmasking(steps=self.steps, **more)  # type: ignore[arg-type]
        params = SamplingParams(max_tokens=self.length, temperature=0, seed=7, ignore_eos=True, unmasking=unmasking)
        return [(list(item.prompt.encode()), params) for item in self.asked]

    def score(self, written: Sequence[Written]) -> float:
        """The share that is right."""
        return float(np.mean([right(self.task, said(w), item) for w, item in zip(written, self.asked, strict=True)]))


def said(written: Written) -> str:
    """The text up to its end."""
    ids = written.ids[: written.ids.index(END)] if END in written.ids else written.ids
    return bytes(i for i in ids if 0 <= i < 256).decode("utf-8", "replace")


def agreement(one: Sequence[Written], other: Sequence[Written]) -> float:
    """The share of places with the same token."""
    return float(np.mean([np.mean(np.array(a.ids) == np.array(b.ids)) for a, b in zip(one, other, strict=True)]))


def run(study: Study) -> None:
    """Accuracy by variant, then time and rows."""
    number = 12 if study.quick else 128
    sets = [Set(task, items(task, 1000 + study.seed, number, SHORT), 32, STEPS) for task in ("sort", "reverse", "add")]
    sets.append(Set("count", items("count", 1000 + study.seed, number, LONG - 2), LONG, LONG // 2))
    if study.quick:
        sets = [sets[0], sets[1]]
    _quality(study, sets)
    _greedy(study, sets[:1] if study.quick else sets[:3])
    _speed(study, sets)
    _lengths(study)
    _prompts(study)
    study.note(
        "the model has 2 million weights and writes bytes: what is right of its answers says nothing about LLaDA's; "
        "'lossless' in the paper means on benchmarks"
    )


def _of(study: Study, use: Sequence[str], sets: Sequence[Set], **more: object) -> list[list[Written]]:
    with Writer(MODEL, use, TOGETHER) as writer:
        found = []
        for each in sets:
            found.append(writer.write(each.wishes(**more)))
        return found


def _quality(study: Study, sets: Sequence[Set]) -> None:
    uses: dict[str, Sequence[str]] = {"no cache": (), "decode, refresh 1": ("dkv-cache:refresh=1",)}
    refreshes = (8, 0) if study.quick else DECODE
    uses |= {f"decode, refresh {r or 'never'}": (f"dkv-cache:refresh={r}",) for r in refreshes}
    uses |= {f"decode without delay, refresh {r or 'never'}": (f"dkv-cache:refresh={r},delay=0",) for r in (8, 0)}
    uses |= {"prefill": ("dkv-cache:variant=prefill",), "pd, refresh 8": ("dkv-cache:variant=pd",)}
    found: dict[str, list[list[Written]]] = {}
    with study.progress("variants", len(uses)) as step:
        for name, use in uses.items():
            found[name] = _of(study, use, sets)
            step()
    plain = found["no cache"]
    rows: list[tuple[str | float, ...]] = []
    scores = {name: [s.score(w) for s, w in zip(sets, texts, strict=True)] for name, texts in found.items()}
    for name, texts in found.items():
        computed = sum(w.rows for t in texts for w in t) / sum(w.rows for t in plain for w in t)
        same = float(np.mean([agreement(a, b) for a, b in zip(texts, plain, strict=True)]))
        rows.append((name, *(round(100 * s, 1) for s in scores[name]), round(100 * same, 1), round(computed, 3)))
    count = sum(len(s.asked) for s in sets)
    study.table(
        f"right answers to {count} questions (%), places as without a cache (%), rows",
        ("variant", *(f"{s.task}, {s.length} places" for s in sets), "same", "rows"),
        rows,
    )
    mean = {name: float(np.mean(s)) for name, s in scores.items()}
    pairs = zip(found["decode, refresh 1"], plain, strict=True)
    exact = [a.ids == b.ids for t, p in pairs for a, b in zip(t, p, strict=True)]
    study.check("right answers without a cache: the model knows its tasks", mean["no cache"], at_least(0.5))
    study.check("refresh 1 writes what no cache writes, to the token", all(exact), equal_to(True))
    lost = 100 * (mean["no cache"] - mean["decode, refresh 8"])
    base = f"{100 * mean['no cache']:.1f}% without"
    study.check("points lost by decode, refresh 8", lost, at_most(1.0), claim="about lossless", baseline=base)
    gain = mean["decode, refresh 8"] + mean["decode, refresh never"]
    gain -= mean["decode without delay, refresh 8"] + mean["decode without delay, refresh never"]
    study.check(
        "points gained by the delay of a step, mean of refresh 8 and never", 50 * gain, at_least(0), claim="needed"
    )


def _greedy(study: Study, sets: Sequence[Set]) -> None:
    """Against a random order without a cache, which it can be compared with."""
    rows: list[tuple[str | float, ...]] = []
    uses: dict[str, Sequence[str]] = {"no cache": ()}
    uses |= {f"window {w}": (f"dkv-cache:variant=greedy,refresh=2,window={w}",) for w in (0, 4, 8)}
    for name, use in uses.items():
        texts = _of(study, use, sets, remasking="random")
        scores = [round(100 * s.score(w), 1) for s, w in zip(sets, texts, strict=True)]
        rows.append((name, *scores, sum(w.rows for t in texts for w in t)))
    study.table(
        "greedy, in a random order: right answers (%), rows", ("variant", *(s.task for s in sets), "rows"), rows
    )


def _speed(study: Study, sets: Sequence[Set]) -> None:
    """Long answers to prompts of 64 tokens, alone and eight together."""
    long = items("count", 50 + study.seed, TOGETHER, LONG - 2)
    wishes = Set("count", long, LONG, LONG // (4 if study.quick else 2)).wishes()
    asked = [([*BEFORE[: PROMPT - len(ids)], *ids], params) for ids, params in wishes]
    for together in (1, TOGETHER):
        speed, ratio = _faster(study, asked[:together], turns=3 if study.quick else 5 if together > 1 else 15)
        study.check(
            f"decode, refresh 8, at {LONG} places, {together} together: faster",
            speed,
            at_least(1.8),
            unit="x",
            claim="2x to 10x",
            headline=together == 1,
            why=f"its rows are {ratio:.2f}x fewer; a step costs more than its rows" if float(speed) < 1.8 else "",
        )
        share = float(speed) / ratio
        study.check(f"that over what its rows say ({ratio:.2f}x), {together} together", share, between(0.8, 1.2))
    study.note("alone a GPU may gain nothing (the paper's own remark); here computing is the bound alone too")


def _faster(study: Study, wishes: Sequence[Wish], turns: int) -> tuple[Spread, float]:
    """How many times as fast these are written with a cache, and by how many times there are fewer rows."""
    rows: dict[str, int] = {}
    with Writer(MODEL, (), len(wishes)) as plain, Writer(MODEL, ("dkv-cache:refresh=8",), len(wishes)) as decode:

        def write(name: str, writer: Writer) -> None:
            rows[name] = sum(w.rows for w in writer.write(wishes))

        work = {"plain": partial(write, "plain", plain), "decode": partial(write, "decode", decode)}
        times = study.interleaved(work, turns)
    return times.speedup("decode", over="plain"), rows["plain"] / rows["decode"]


def _lengths(study: Study) -> None:
    """Time of a step by the length of the answer, in a random order: greedy and without a cache."""
    lengths = (64, 128, 256, 512)
    seconds: dict[str, list[float]] = {}
    for name, use in (("greedy", ("dkv-cache:variant=greedy,refresh=0",)), ("no cache", ())):
        with Writer(MODEL, use, 1) as writer:
            for n in lengths:
                unmasking = Unmasking(steps=n // 4, remasking="random")
                params = SamplingParams(max_tokens=n, temperature=0, seed=1, ignore_eos=True, unmasking=unmasking)
                work = {"write": partial(writer.write, [(list(b"count 3 by 7:\n"), params)])}
                took = study.interleaved(work, 3, what=f"{name}, {n}").median("write")
                seconds.setdefault(name, []).append(took / (n // 4))
    title = "time of a step by places of the answer"
    for name, found in seconds.items():
        study.curve(title, lengths, [1000 * s for s in found], label=name, xlabel="places", ylabel="ms")
    growth = {name: found[-1] / found[0] for name, found in seconds.items()}
    base = f"{growth['no cache']:.1f}x without a cache"
    what = "time of a greedy step at 512 places over that at 64"
    study.check(what, growth["greedy"], at_most(2.0), unit="x", claim="flat", baseline=base)
    more = growth["no cache"] / growth["greedy"]
    study.check("the same without a cache, over greedy's", more, at_least(2.0), unit="x")


def _prompts(study: Study) -> None:
    """How much faster pd is, by the length of the prompt."""
    gains = []
    lengths = (32, 128, 384)
    params = SamplingParams(max_tokens=64, temperature=0, ignore_eos=True, seed=1, unmasking=Unmasking(steps=32))
    for n in lengths:
        wish = [(list(BEFORE[:n]), params)]
        with Writer(MODEL, (), 1) as plain, Writer(MODEL, ("dkv-cache:variant=pd,refresh=8",), 1) as pd:
            work = {"plain": partial(plain.write, wish), "pd": partial(pd.write, wish)}
            gains.append(float(study.interleaved(work, 3, what=f"prompt of {n}").speedup("pd", over="plain")))
    study.table("pd by the length of the prompt", ("prompt", "faster"), list(zip(lengths, gains, strict=True)))
    more = gains[-1] / gains[0]
    study.check("pd's gain at a prompt of 384 over that at 32", more, at_least(1.2), unit="x", claim="grows")
