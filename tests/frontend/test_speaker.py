"""Speakers: tokens that come together are heard as if each had come alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pytest

from diastole.frontend.speaker import Speakers
from diastole.frontend.types import TokenLogprob, Usage
from diastole.frontend.wire import Spoken
from diastole.params import SamplingParams
from serve.fakes import EOS, FakeTokenizer

GREETING = [*"Grüße, 世界 🌍! Bye.".encode()]
LOOP = [*(b"again and " * 60)]


class ByteTokenizer(FakeTokenizer):
    strips_space, special_ids = False, frozenset[int]()


class Answer(NamedTuple):
    """All that was heard of one choice."""

    text: str
    ids: list[int]
    logprobs: list[TokenLogprob]
    usage: Usage
    finish: str | None
    stop: str | None


def one_by_one(tokens: Sequence[int]) -> Iterator[Sequence[int]]:
    return ([t] for t in tokens)


def all_at_once(tokens: Sequence[int]) -> Iterator[Sequence[int]]:
    yield tokens


def by_fives(tokens: Sequence[int]) -> Iterator[Sequence[int]]:
    return (tokens[i : i + 5] for i in range(0, len(tokens), 5))


def hear(
    params: SamplingParams, tokens: Sequence[int], finish: str | None, cut: Callable[..., Iterator[Sequence[int]]]
) -> Answer:
    """Of tokens that the engine says in such pieces, the last with this finish; as long as it is listened to."""
    speakers = Speakers(ByteTokenizer(), params, True)  # type: ignore[arg-type]
    answer = Answer("", [], [], Usage(0, 0, 0), None, None)
    said = 0
    for ids in cut(tokens):
        said += len(ids)
        logprobs = [(-0.01 * id, [(id, -0.01 * id), (1, -9.0)]) for id in ids]
        spoken = Spoken("r", 0, list(ids), logprobs, finish if said == len(tokens) else None, 7, 3)
        heard = speakers.hear(spoken)
        if heard is None:
            break
        delta, stopped = heard
        assert stopped == (delta.finish is not None and spoken.finish is None)
        answer.ids.extend(delta.ids)
        answer.logprobs.extend(delta.logprobs or ())
        answer = answer._replace(text=answer.text + delta.text, usage=delta.usage, finish=delta.finish, stop=delta.stop)
    return answer


@pytest.mark.parametrize("cut", [all_at_once, by_fives])
@pytest.mark.parametrize("include", [False, True], ids=["without", "with-stop"])
@pytest.mark.parametrize("finish", ["stop", "length", None])
@pytest.mark.parametrize(
    ("tokens", "stop"),
    [
        (GREETING, ()),
        (GREETING, ("世",)),  # within, and its last byte ends it
        (GREETING, ("G",)),  # the first token
        (GREETING, ("Bye.",)),  # the last one
        (GREETING, ("e.!", ", 世?")),  # nearly
        (GREETING[:-15], ("\ufffd",)),  # a character that is never whole, and shows only at the end
        (LOOP, ()),
        (LOOP, ("and again but",)),  # held back until the loop ends it
        (LOOP, ("d a",)),
    ],
    ids=["plain", "within", "first", "last", "nearly", "flushed", "loop", "loop-held", "loop-stop"],
)
def test_together_or_alone_the_same_is_heard(
    tokens: list[int],
    stop: tuple[str, ...],
    finish: str | None,
    include: bool,
    cut: Callable[..., Iterator[Sequence[int]]],
) -> None:
    whole = [*tokens, EOS] if finish == "stop" else tokens
    params = SamplingParams(stop=stop, include_stop=include)
    expected = hear(params, whole, finish, one_by_one)
    assert hear(params, whole, finish, cut) == expected
    assert expected.ids == whole[: len(expected.ids)] == [t.id for t in expected.logprobs]
    assert expected.usage == Usage(7, 3, len(expected.ids))


def test_an_end_token_within_the_text_is_silent_only_where_it_ends_it() -> None:
    """It may be said twice where the request asks for tokens past the end, and a grammar ends the text."""
    params = SamplingParams(ignore_eos=True)
    tokens = [65, EOS, 66, EOS]
    assert hear(params, tokens, "stop", all_at_once) == hear(params, tokens, "stop", one_by_one)


def test_choices_share_a_usage_and_each_tells_its_own_guesses() -> None:
    speakers = Speakers(ByteTokenizer(), SamplingParams(n=2, stop=("cd",)), True)  # type: ignore[arg-type]

    def usage(choice: int, text: str, finish: str | None, drafted: int, kept: int) -> Usage:
        heard = speakers.hear(Spoken("r", choice, [*text.encode()], None, finish, 7, 3, drafted, kept))
        assert heard is not None
        return heard[0].usage

    assert usage(0, "x", None, 0, 0) == (7, 3, 1, 0, 0)
    assert usage(0, "xyz", None, 4, 2) == (7, 3, 4, 4, 2)
    assert usage(1, "u", None, 3, 0) == (7, 3, 5, 7, 2)
    assert usage(0, "x", None, 0, 0) == (7, 3, 6, 7, 2)  # a step without a draft says nothing of those before
    # Of these five, four were guessed right; the text ends with the fourth of them, or the third.
    assert usage(1, "abcdx", None, 8, 4) == (7, 3, 10, 12, 6)
    assert usage(0, "acdxy", None, 9, 6) == (7, 3, 13, 17, 9)
    assert speakers.finished
