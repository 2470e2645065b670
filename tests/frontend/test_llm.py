"""LLM and AsyncLLM in this process."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import pytest

from diastole import LLM, AsyncLLM, SamplingParams, UserError
from models.common import embedded

pytestmark = pytest.mark.model

GREEDY = SamplingParams(temperature=0, max_tokens=12)


def test_pieces_are_the_whole() -> None:
    embedded()
    with LLM() as llm:
        whole = llm.generate(["The heart is"], GREEDY)[0][0]
        pieces = list(llm.stream("The heart is", GREEDY))
        assert "".join(p.text for p in pieces) == whole.text
        assert [p.finish for p in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].finish == whole.finish == "length"


def test_leaving_early_ends_the_request() -> None:
    embedded()
    with LLM() as llm:
        for delta in llm.stream("The heart is", SamplingParams(max_tokens=4_000, ignore_eos=True)):
            assert delta.finish is None
            break
        assert llm.idle


def test_stop_strings_and_choices() -> None:
    embedded()
    with LLM() as llm:
        some = llm.generate(["One, two, three,", "Monday, Tuesday,"], SamplingParams(n=2, seed=3, max_tokens=10))
        assert [len(x) for x in some] == [2, 2]
        stopped = llm.generate(["One, two, three,"], SamplingParams(temperature=0, max_tokens=30, stop=("five",)))[0][0]
        assert stopped.finish == "stop"
        assert stopped.text.strip() == "four,"
        kept = SamplingParams(temperature=0, max_tokens=30, stop=("five",), include_stop=True)
        assert llm.generate(["One, two, three,"], kept)[0][0].text.strip() == "four, five"
        assert llm.idle


def test_wrong_requests() -> None:
    embedded()
    with LLM(context=64) as llm:
        with pytest.raises(UserError, match="empty"):
            llm.generate([[]], GREEDY)
        with pytest.raises(UserError, match="context of 64"):
            llm.generate([[5] * 60], GREEDY)
        assert llm.idle
        assert llm.context == 64
    with pytest.raises(UserError, match="no known asset"):
        LLM("smolm2-135m")
    with pytest.raises(UserError, match="more than the model's own"):
        LLM(context=100_000)


def test_async_crowd_and_cancel() -> None:
    embedded()

    async def main() -> tuple[list[str], str]:
        async with AsyncLLM() as llm:

            async def say(prompt: str) -> str:
                return "".join([d.text async for d in llm.stream(prompt, GREEDY)])

            crowd = list(await asyncio.gather(*(say(p) for p in ("The heart is", "One, two,", "The sea is"))))
            endless = llm.stream("Once", SamplingParams(max_tokens=5_000, ignore_eos=True))
            await anext(endless)
            await endless.aclose()  # type: ignore[attr-defined]
            return crowd, await say("The heart is")

    crowd, alone = asyncio.run(main())
    assert crowd[0] == alone


def test_a_prediction_in_words_saves_steps() -> None:
    embedded()
    with LLM(use=("ngram:k=8",)) as llm:
        plain = llm.generate(["The heart is"], GREEDY)[0][0]
        before = llm.counters()["steps"]
        told = SamplingParams(temperature=0, max_tokens=12, prediction=plain.text)
        assert llm.generate(["The heart is"], told)[0][0].ids == plain.ids
        assert llm.counters()["steps"] - before <= 5

    async def again() -> str:
        async with AsyncLLM(use=("ngram:k=8",)) as llm:
            return "".join([d.text async for d in llm.stream("The heart is", told)])

    assert asyncio.run(again()) == plain.text


def test_closing_frees_the_model() -> None:
    """Resident memory after five models came and went is that of one, within a few megabytes."""
    embedded()

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    seen = []
    for _ in range(5):
        with LLM(max_streams=2) as llm:
            llm.generate(["The heart is"], GREEDY)
        del llm
        gc.collect()
        seen.append(resident())
    assert seen[-1] < seen[0] + 40
