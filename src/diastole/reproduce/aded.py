"""ADED on SmolLM2-135M: does the table learn from the text, and is a searched tree better than the plainest one?"""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from diastole.assets import resolve
from diastole.bench.drafts import PLAIN, Bench, Cell
from diastole.bench.workloads import HELD_OUT, requests
from diastole.calibrate.aded import count
from diastole.clock import RealClock
from diastole.engine.profile import seconds
from diastole.llm import LLM
from diastole.params import SamplingParams
from diastole.reproduce.law import string_law
from diastole.reproduce.must import at_least, equal_to, less_than, more_than
from diastole.reproduce.study import Study
from diastole.slots import Facts
from diastole.weights import open_checkpoint
from diastole.weights.calibration import Calibration, about, find

PAPER = "ADED: Adaptive Draft-Verification for Efficient Large Language Model Decoding (arXiv 2407.12021)"

SIZES = (1, 2, 3, 5, 7, 11)  # nodes of a tree
ROWS = (1, 2, 4, 8, 16, 32, 64)
WORK = {"code": "code", "copying": "summary", "chat": "chat"}  # name: kind of requests
CODE = (
    "abc", "ast", "asyncio.base_events", "bdb", "cmd", "codecs", "collections", "configparser", "contextlib",
    "copy", "csv", "dataclasses", "datetime", "decimal", "dis", "doctest", "email.message", "enum", "functools",
    "gettext", "gzip", "heapq", "html.parser", "http.client", "imaplib", "ipaddress", "json.decoder", "locale",
    "logging", "optparse", "os", "pathlib", "pdb", "pickle", "pickletools", "platform", "plistlib", "pprint",
    "pydoc", "queue", "random", "re", "sched", "shelve", "shlex", "shutil", "smtplib", "socket", "socketserver",
    "ssl", "string", "subprocess", "tempfile", "textwrap", "threading", "timeit", "tokenize", "traceback", "types",
    "typing", "unittest.case", "unittest.mock", "urllib.parse", "urllib.request", "uuid", "warnings", "wave",
    "weakref", "xml.dom.minidom", "zipapp",
)  # fmt: skip


def run(study: Study) -> None:
    asked, tokens, tuned = (3, 48, 0) if study.quick else (100, 128, 8)
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        plain = stack.enter_context(LLM(max_streams=1))
        costs = _costs(plain)
        tables = {"code": f"table={_code_table(plain, folder)}"}
        found = {}
        for name, kind in WORK.items():
            voice = plain.voice
            texts = [a.ids(voice) for a in requests(kind, asked + tuned, voice.tokenizer, seed=study.seed)]
            own, judged = tables.get(name, ""), texts[: min(asked, len(texts) - tuned)]  # of some kinds there are fewer
            nodes = _tune(study, plain, own, name, texts[len(texts) - tuned :], params) if tuned else 3
            found[name] = nodes, _cell(study, plain, _sides(own, nodes), name, judged, params)
        size = _bytes(plain)
    _judge(study, {name: cell for name, (_, cell) in found.items()}, size)
    study.table(
        "what was measured",
        ("work", "nodes", "side", "times as fast", "tokens per step", "right of guesses"),
        [
            (name, nodes, side, cell.speedup(side), cell.sides[side].per_step, cell.sides[side].rate)
            for name, (nodes, cell) in found.items()
            for side in cell.sides
        ],
    )
    study.table("rows of a step and what it takes, at 512 tokens", ("rows", "times one row"), [*costs.items()])
    study.curve(
        "what a step takes", [*costs], [*costs.values()], label="measured", xlabel="rows", ylabel="times one row"
    )
    p = string_law(study, 20_000 if study.quick else 200_000)
    study.check("law of sampled strings, p of chi-square against the exact one", p, more_than(0.01), claim="lossless")


def _costs(llm: LLM) -> dict[int, float]:
    """By rows of one stream at 512 tokens, seconds of a step over those with one row."""
    service, clock = llm.engine.services[0], RealClock()
    took = {rows: statistics.median(s) for rows, s in seconds(service, clock, 1, 512, ROWS, 9).items()}
    return {rows: s / took[1] for rows, s in took.items()}


def _code_table(llm: LLM, folder: Path) -> Path:
    """Counted in source that is not asked about."""
    ids: list[int] = []
    for module in (m for m in CODE if m not in HELD_OUT):
        ids += llm.voice.tokenizer.encode(inspect.getsource(import_module(module)), special=False)
    path = folder / "code.safetensors"
    facts = facts_of(llm)
    Calibration(count(np.array(ids, np.int64)), about("aded", facts)).write(path)
    return path


def facts_of(llm: LLM, model: str = "smollm2-135m") -> Facts:
    """What techniques may know of the model that an ``LLM`` runs."""
    checkpoint = open_checkpoint(resolve(model))
    facts: Facts = llm.engine.services[0].model.facts(checkpoint)  # type: ignore[attr-defined]
    checkpoint.close()
    return facts


def _sides(table: str, nodes: int) -> dict[str, list[str]]:
    def side(*knobs: str) -> str:
        return "aded:" + ",".join(k for k in (table, f"nodes={nodes}", *knobs) if k)

    fixed = f"fixed:k={nodes}"
    return {
        "adaptive": [side(), fixed],
        "frozen": [side("adapt=false"), fixed],
        "widest": [side("search=widest"), fixed],
        "with smartspec": [side(), "smartspec"],
    }


def _tune(
    study: Study, plain: LLM, table: str, name: str, texts: Sequence[Sequence[int]], params: SamplingParams
) -> int:
    """The number of nodes that is fastest on requests that are not judged."""
    sides = {str(n): _sides(table, n)["adaptive"] for n in SIZES}
    cell = _cell(study, plain, sides, f"{name}: how many nodes", texts, params)
    best = max(sides, key=cell.speedup)
    study.table(
        f"{name}: nodes of a tree, on other requests",
        ("nodes", "times as fast", "tokens per step"),
        [(int(n), cell.speedup(n), cell.sides[n].per_step) for n in sides],
    )
    return int(best)


def _cell(
    study: Study,
    plain: LLM,
    sides: Mapping[str, Sequence[str]],
    name: str,
    texts: Sequence[Sequence[int]],
    params: SamplingParams,
) -> Cell:
    with ExitStack() as stack:
        engines = {side: stack.enter_context(LLM(use=tuple(use), max_streams=1)) for side, use in sides.items()}
        told = stack.enter_context(study.progress(name, len(texts) * (1 + len(sides))))
        return Bench({PLAIN: plain, **engines}, params).cell(name, texts, 1, 1, told)


def _bytes(llm: LLM) -> int:
    """Of Diastole's own table of this model."""
    return sum(t.nbytes for t in find("aded", facts_of(llm)).tensors.values())


def _judge(study: Study, cells: Mapping[str, Cell], size: int) -> None:
    different = sum(s.different for cell in cells.values() for s in cell.sides.values())
    study.check("greedy texts that differ", different, equal_to(0), claim="lossless")
    copying = cells["copying"].sides
    study.check(
        "copying: tokens per step, table that learns",
        copying["adaptive"].per_step,
        more_than(copying["frozen"].per_step, "frozen table"),
        baseline=copying["frozen"].per_step,
        claim="adapting lengthens what is accepted",
    )
    searched, widest = (sum(c.sides[s].per_step for c in cells.values()) / len(cells) for s in ("adaptive", "widest"))
    study.check(
        "tokens per step, trees by tree search, mean of all work",
        searched,
        at_least(widest, "largest products of shares"),
        baseline=widest,
        claim="tree search finds better drafts",
        why="a few nodes of a table that is known are best chosen by the very odds that it tells",
    )
    study.check(
        "the same beside trees of the plainest kind",
        searched,
        at_least(0.95 * widest, "0.95 x largest products"),
        fallback=True,
    )
    fastest = max(cells[name].speedup("adaptive") for name in ("code", "copying"))
    study.check(
        "times as fast as plain decoding, code or copying",
        fastest,
        more_than(1.0),
        unit="x",
        claim="up to 2.5x",
        headline=True,
    )
    study.check("chat with smartspec: times as fast", cells["chat"].speedup("with smartspec"), at_least(0.97), unit="x")
    study.check("table of the model's own text", size / 2**20, less_than(300), unit="MB", claim="253 MB")
