"""Tasks for small masked language models, with answers that are right or wrong, and plain text."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

_WORDS = (
    "apple bird chair cloud desk door earth field fish glass green horse house iron juice king lamp moon night ocean "
    "paper queen river snow stone table tree voice water yellow"
).split()


class Item(NamedTuple):
    """What is asked, and what is right."""

    prompt: str
    answer: str


def count(rng: Random, room: int) -> Item:
    """Count on, as far as there is room: a long answer in which each number follows from its neighbours."""
    at, by = rng.randrange(100), rng.randrange(1, 20)
    prompt, said = f"count {at} by {by}:\n", str(at)
    while len(said) + len(str(at + by)) + 1 <= room:
        at += by
        said += f" {at}"
    return Item(prompt, said)


def order(rng: Random, room: int) -> Item:
    """Sort numbers of two digits."""
    numbers = [rng.randrange(10, 100) for _ in range(rng.randint(3, min(4, room // 3)))]
    return Item(f"sort {' '.join(map(str, numbers))}:\n", " ".join(map(str, sorted(numbers))))


def say(rng: Random, room: int) -> Item:
    """Letters as they are: the easiest, by which a model learns to look into the prompt at all."""
    letters = _letters(rng, room)
    return Item(f"say {letters}:\n", letters)


def reverse(rng: Random, room: int) -> Item:
    """Turn letters round."""
    letters = _letters(rng, room)
    return Item(f"reverse {letters}:\n", letters[::-1])


def _letters(rng: Random, room: int) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(4, min(8, room))))


def words(rng: Random, room: int) -> Item:
    """Turn words round, for tokenizers that do not have letters by themselves."""
    said = rng.sample(_WORDS, rng.randint(3, max(3, min(6, room // 7))))
    return Item(f"reverse {' '.join(said)}:\n", " ".join(reversed(said)))


def total(rng: Random, room: int) -> Item:
    """Add numbers up, step by step."""
    numbers = [rng.randrange(10, 100) for _ in range(rng.randint(2, 3))]
    at, steps = numbers[0], []
    for n in numbers[1:]:
        steps.append(f"{at}+{n}={at + n}")
        at += n
    return Item(f"add {' '.join(map(str, numbers))}:\n", " ".join(steps))


TASKS: dict[str, Callable[[Random, int], Item]] = {
    "count": count,
    "sort": order,
    "say": say,
    "reverse": reverse,
    "add": total,
}
IN_WORDS = {"count": count, "sort": order, "words": words, "add": total}
SHORT = 30  # characters that answers of the other tasks have at most


def items(task: str, seed: int, number: int, room: int) -> list[Item]:
    """So many of a task; others for another seed."""
    rng = Random(f"{task} {seed}")
    return [TASKS[task](rng, room) for _ in range(number)]


def right(task: str, said: str, item: Item) -> bool:
    """Whether an answer is right, but for space around it."""
    return said.strip() == item.answer
