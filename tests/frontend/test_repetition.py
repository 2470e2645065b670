"""Loops: what is one is ended, and what people ask for is not."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from diastole import LLM, SamplingParams
from diastole.frontend.repetition import LENGTHS, SPAN, STRIDE, TIMES, Repetition
from diastole.frontend.speaker import Speakers
from diastole.frontend.wire import Spoken
from diastole.nn.tokens import tokenizer_of
from models.common import embedded
from serve.fakes import FakeTokenizer

ROOT = Path(__file__).parents[2]


def trips_at(ids: Iterable[int]) -> int | None:
    """After how many tokens it trips."""
    watch = Repetition()
    return next((n for n, id in enumerate(ids, 1) if watch.push(id)), None)


@pytest.mark.parametrize("length", [*LENGTHS])
def test_every_length_of_block_is_found_soon_and_not_early(length: int) -> None:
    noise = [10_000 + i for i in range(1000 + length)]
    block = list(range(length))
    needed = max(SPAN, TIMES * length)
    at = trips_at([*noise, *itertools.islice(itertools.cycle(block), 2 * needed)])
    assert at is not None
    assert needed <= at - len(noise) < needed + STRIDE + 1
    assert trips_at([*noise, *itertools.islice(itertools.cycle(block), needed - 1), *noise]) is None


def test_nearly_is_not_repeated() -> None:
    assert trips_at(itertools.chain.from_iterable([1, 2, 3, 4, i] for i in range(1000))) is None
    assert trips_at(itertools.islice(itertools.cycle(range(LENGTHS[-1] + 1)), 5000)) is None
    draw = random.Random(1)
    assert trips_at(draw.randrange(2) for _ in range(20_000)) is None


def test_memory_is_bounded() -> None:
    watch = Repetition()
    for i in range(100_000):
        assert not watch.push(i)
    assert len(watch._ids) <= TIMES * LENGTHS[-1] + STRIDE


ASKED_FOR = {
    "ha": "ha " * 20,
    "ha without spaces": "ha" * 100,
    "I will not talk in class": "I will not talk in class.\n" * 15,
    "table": "| name | value |\n|" + "-" * 80 + "|" + "-" * 80 + "|\n" + "| a | 0 |\n" * 12,
    "table with numbers": "".join(f"| {i} | 0.00 | 0.00 | yes |\n" for i in range(200)),
    "zeros": "[" + "0, " * 100 + "0]",
    "matrix": "[\n" + ("    [" + ", ".join("0" * 8) + "],\n") * 8 + "]",
    "identity": "\n".join(" ".join("1" if i == j else "0" for j in range(20)) for i in range(20)),
    "long number": "1" + "0" * 200,
    "a third": "0." + "3" * 200,
    "a seventh": "0." + "142857" * 15,
    "digits": "".join(str(i * i) for i in range(1000)),
    "list": "".join(f"{i}. Item number {i}\n" for i in range(1, 300)),
    "chorus": "Row, row, row your boat, gently down the stream.\n" * 8,
    "rules": ("=" * 80 + "\n") * 3 + "-" * 200,
    "code": "    assert x == 0\n" * 14 + "    return None\n",
}


@pytest.mark.parametrize("what", ASKED_FOR)
def test_what_people_ask_for_is_let_through_in_words_and_signs(what: str) -> None:
    ids: dict[str, int] = {}
    pieces = re.findall(r"\s?[A-Za-z]+|\d|\s+|[^\w\s]", ASKED_FOR[what])
    assert trips_at(ids.setdefault(p, len(ids)) for p in pieces) is None


@pytest.mark.model
def test_what_people_ask_for_is_let_through_in_tokens() -> None:
    tokenizer = tokenizer_of(embedded())
    for text in ASKED_FOR.values():
        assert trips_at(tokenizer.encode(text, special=False)) is None, text[:80]
    files = [
        f for kind in ("*.md", "src/**/*.py", "src/**/*.cpp", "tests/**/*.py", "docs/*.md") for f in ROOT.glob(kind)
    ]
    assert len(files) > 100
    for file in files:
        assert trips_at(tokenizer.encode(file.read_text(), special=False)) is None, file
    assert trips_at(tokenizer.encode("I am sorry, I cannot say that again. " * 60, special=False)) is not None


class ByteTokenizer(FakeTokenizer):
    strips_space, special_ids = False, frozenset[int]()


def hear(params: SamplingParams, service: bool, text: bytes) -> tuple[str, str | None, bool, int]:
    speakers = Speakers(ByteTokenizer(), params, service)  # type: ignore[arg-type]
    said = ""
    for count, id in enumerate(text, 1):
        heard = speakers.hear(Spoken("r", 0, [id], None, None, 3, 0))
        assert heard is not None
        delta, stopped = heard
        said += delta.text
        if delta.finish is not None:
            return said, delta.finish, stopped, count
    return said, None, False, len(text)


LOOP = b"again and " * 100


def test_a_speaker_ends_a_loop_and_says_all_that_it_held_back() -> None:
    said, finish, stopped, count = hear(SamplingParams(stop=(" and again but",)), True, LOOP)
    assert (finish, stopped) == ("repetition", True)
    assert said.encode() == LOOP[:count]


@pytest.mark.parametrize(
    ("wish", "ignore_eos", "service", "ended"),
    [
        (None, False, True, True),
        (None, False, False, False),
        (None, True, True, False),  # it asks for a number of tokens
        (False, False, True, False),
        (True, True, False, True),
    ],
)
def test_who_decides(wish: bool | None, ignore_eos: bool, service: bool, ended: bool) -> None:
    _, finish, _, _ = hear(SamplingParams(repetition_stop=wish, ignore_eos=ignore_eos), service, LOOP)
    assert finish == ("repetition" if ended else None)


@pytest.mark.model
@pytest.mark.slow
def test_the_embedded_model_is_stopped_in_its_loop() -> None:
    embedded()
    prompt = "one two three one two three " * 30
    with LLM("smollm2-135m", context=1024) as llm:
        ask = [(prompt, SamplingParams(temperature=0, max_tokens=600, repetition_stop=wish)) for wish in (None, False)]
        stopped, run_on = llm.generate_each(ask)
        assert llm.idle
    assert stopped.finish == "repetition"
    assert SPAN <= len(stopped.ids) < 500
    assert (run_on.finish, len(run_on.ids)) == ("length", 600)
    assert run_on.ids[: len(stopped.ids)] == stopped.ids
