"""What a stream holds does not grow with what has come of it: the models that come with Diastole, for ten minutes."""

from __future__ import annotations

import gc
import sys
import types
from typing import Any

import numpy as np
import pytest

from diastole.bench.streaming import opened, serving
from diastole.kernels.table import load
from diastole.live import Chunk, LiveParams
from diastole.models.cache_aware_conformer import LONGEST, Utterance
from diastole.types import Request

SHARED = (type, types.ModuleType, types.FunctionType, types.MethodType)


def held(thing: Any) -> int:
    """Bytes of it and of all that it leads to."""
    seen: set[int] = set()
    todo, total = [thing], 0
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, SHARED):
            continue
        seen.add(id(one))
        total += one.nbytes if isinstance(one, np.ndarray) else sys.getsizeof(one)
        todo += gc.get_referents(one)
    return total


STREAMS: dict[str, tuple[float, dict[str, Any]]] = {
    "cache-aware-conformer": (0.1, {"endpoint_ms": 60_000}),  # hears letters in noise, and no pause that ends them
    "phasenet": (1.0, {}),
    "dbconformer": (10.0, {}),
}


@pytest.mark.parametrize("name", STREAMS)
def test_ten_minutes_are_held_in_what_two_are(name: str) -> None:
    scale, options = STREAMS[name]
    model = opened(name, load(1))
    engine, service = serving(model, 1)
    engine.add(Request("s", "live", None, LiveParams(options)))
    rate, channels = int(model.signal.rate), len(model.signal.channels)
    rng = np.random.default_rng(0)
    found, most = [0, 0], [0, 0]
    for second in range(600):
        loud = 1 + 20 * (second % 13 == 0)
        engine.feed("s", Chunk((scale * loud * rng.normal(size=(rate, channels))).astype(np.float32)))
        late = second >= 120
        while events := engine.step():
            found[late] += sum(len(event.data.readings) for event in events)
        if second % 20 == 19:
            most[late] = max(most[late], held(service.ledger.running[0].own))
    assert found[0] > 0
    assert found[1] > 0
    assert most[1] <= 1.1 * most[0]


def test_who_speaks_without_a_pause_ends_an_utterance_at_a_word() -> None:
    said, finals, seconds = Utterance(LONGEST), [], []
    for i in range(2000):  # letters of 0.1 s, words of three
        letter = " a" if i % 3 == 0 else "b"
        if said.full(letter, i / 10):
            finals += said.final()
            seconds.append(i / 10)
        said.hear([letter], i / 10, 0.1)
    assert all(set(final.data["text"].split()) == {"abb"} for final in finals)
    assert np.diff([0, *seconds]) == pytest.approx(LONGEST, abs=0.5)
    assert "".join(f.data["text"] for f in [*finals, *said.final()]).replace(" ", "") == ("abb" * 667)[:2000]


def test_who_never_ends_a_word_ends_an_utterance_anyway() -> None:
    said, ended = Utterance(LONGEST), []
    for i in range(2000):
        if said.full("b", i / 10):
            ended += said.final()
        said.hear(["b"], i / 10, 0.1)
    assert len(ended) == 3
