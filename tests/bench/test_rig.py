"""The rig: it gives what the engine gives, in any chunks, and copies of a stream go on alike to the bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from diastole.bench.rig import Rig
from diastole.llm import LLM
from diastole.params import SamplingParams
from diastole.types import Array, Stream, UserError
from models.common import embedded, real_text

pytestmark = pytest.mark.model

PROMPT, STEPS = 300, 24


@pytest.fixture(scope="module", params=[(), ("int8-kv",)], ids=["bare", "int8-kv"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    embedded()
    with Rig(use=request.param, context=1024, streams=4) as rig:
        rig.used_stack = request.param  # type: ignore[attr-defined]
        yield rig


def greedy(rig: Rig, stream: Stream, logits: Array, steps: int) -> list[int]:
    said = [int(logits.argmax())]
    while len(said) < steps:
        said.append(int(rig.step({stream: said[-1]})[0].argmax()))
    return said


def test_it_says_what_the_engine_says_in_any_chunks(rig: Rig) -> None:
    ids = real_text(PROMPT)
    with LLM(use=rig.used_stack, context=1024) as llm:  # type: ignore[attr-defined]
        params = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True)
        want = llm.generate([ids.tolist()], params)[0][0].ids
    for chunk in (512, 37):
        with rig.stream(ids) as s:
            assert greedy(rig, s, rig.absorb(s, chunk), STEPS) == want
    assert rig.loop.pool.used == 0


def test_forced_tokens_one_by_one_give_the_prompts_bits(rig: Rig) -> None:
    ids = real_text(150)
    with rig.stream(ids) as s:
        whole = rig.absorb_all(s)
    with rig.stream(ids[:100]) as s:
        assert (rig.absorb(s) == whole[99]).all()
        for i in range(100, 150):
            assert (rig.step({s: int(ids[i])})[0] == whole[i]).all()


def test_a_fork_and_a_loaded_stream_go_on_with_the_same_bits(rig: Rig) -> None:
    ids = real_text(PROMPT + STEPS)
    with rig.stream(ids[:PROMPT]) as s:
        rig.absorb(s)
        before = rig.used_bytes
        s.scratch["notes"] = [1]
        twin, third = rig.fork(s), rig.load(rig.save(s))
        assert before < rig.used_bytes <= 2 * before  # what was loaded, and nothing yet for the fork
        twin.scratch["notes"].append(2)
        assert s.scratch["notes"] == [1]
        rig.step({twin: 7})  # the twins part: neither may see the other's token
        for token in ids[PROMPT:]:
            one, other = rig.step({s: int(token), third: int(token)})
            assert (one == other).all()
        with rig.stream(np.concatenate([ids[:PROMPT], np.array([7, 8], np.int32)])) as fresh:
            assert (rig.step({twin: 8})[0] == rig.absorb(fresh)).all()
        for other_stream in (twin, third):
            rig.close(other_stream)
            rig.close(other_stream)
    assert rig.loop.pool.used == 0


def test_wrong_use_is_refused(rig: Rig) -> None:
    with pytest.raises(UserError, match="empty"):
        rig.open([])
    with pytest.raises(UserError, match="vocabulary"):
        rig.open([rig.vocab])
    with rig.stream([1, 2]) as s:
        with pytest.raises(ValueError, match="absorb"):
            rig.step({s: 3})
        rig.absorb(s)
        with pytest.raises(ValueError, match="step"):
            rig.absorb(s)
        blob = rig.save(s)
        with Rig(kv="f32", context=256) as other, pytest.raises(UserError, match="layout"):
            other.load(blob)


def test_no_room_is_said() -> None:
    embedded()
    with Rig(context=128) as rig, rig.stream(real_text(127)) as s:
        rig.absorb(s)
        rig.step({s: 1})
        with pytest.raises(UserError, match="whole context"):
            rig.step({s: 1})
        with pytest.raises(UserError, match="no room"):
            rig.open([1])
