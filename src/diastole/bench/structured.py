"""What following a grammar costs: the same streams with and without a JSON schema, taking turns."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace

from diastole.bench.ours import Ours
from diastole.bench.task import Task
from diastole.params import Grammar, SamplingParams

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 5},
        "at": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
ENDLESS = {"type": "array", "items": PERSON, "minItems": 10_000}  # so that no stream ends while it is measured


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians over the rounds; ``ratios``: of each round, with over without."""

    streams: int
    plain: float  # seconds per token of each stream
    guided: float
    ratios: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def measure(model: str, threads: int, streams: int, steps: int, rounds: int) -> Cost:
    """Greedy decoding from the same prompts, a round of each in turn.

    Raises:
        UserError: the model cannot be loaded, or so many streams do not fit.
    """
    task = Task("structured", streams, 64, steps)
    plain = SamplingParams(temperature=0, ignore_eos=True)
    guided = replace(plain, ignore_eos=False, grammar=Grammar("json_schema", json.dumps(ENDLESS)))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    sides = [
        (has, Ours(model, threads, streams, task.prompt + steps + 8, params=p))
        for has, p in ((False, plain), (True, guided))
    ]
    for turn in range(rounds + 1):
        for has, ours in sides:
            ours.begin(task.prompts(ours.vocab, turn))
            took = ours.decode(steps) / steps
            ours.end()
            if turn:  # the first round compiles the grammar and touches everything once
                seconds[has].append(took)
    for _, ours in sides:
        ours.engine.close()
    ratios = [g / p for p, g in zip(seconds[False], seconds[True], strict=True)]
    return Cost(streams, statistics.median(seconds[False]), statistics.median(seconds[True]), ratios)
