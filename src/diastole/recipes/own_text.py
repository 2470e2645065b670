"""Text of a model itself: its answers to made-up requests, which drafters learn to foresee.

A drafter has to know what this model says, not what is true, so it is trained on the model's own answers, with the
weights and the kernels that serve. Requests are put together from lists in this file; no benchmark's prompts are among
them. Half of the answers are greedy, half are drawn at the temperature of a chat.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from diastole.llm import LLM
from diastole.params import SamplingParams
from diastole.types import Array, UserError

TOKENS = 1_000_000
ANSWER = 320  # tokens of one answer, at most
TOGETHER = 48  # requests in flight
LARGEST = 1 << 30  # bytes of a file

_TOPICS = """rivers, volcanoes, bread, chess, bicycles, the moon, photosynthesis, bridges, jazz, coffee, whales,
glaciers, clocks, vaccines, maps, bees, the printing press, gravity, tea, railways, deserts, sleep, paper, rainbows,
elections, the heart, dreams, trees, money, radios, oceans, wheat, mirrors, comets, sailing, memory, soap, glass,
opera, ants, lighthouses, salt, tides, cameras, friendship, rockets, gardens, taxes, fossils, wool, batteries, the
alphabet, magnets, owls, earthquakes, cheese, satellites, theatre, yeast, copper, storms, libraries, penguins, silk,
bicycles in cities, solar panels, a lost dog, a small village, a new job, a first day at school, moving to another
country, a broken phone, healthy breakfasts, saving energy at home, learning a language, running a marathon, public
speaking, growing tomatoes, caring for a cat, planning a birthday, working from home, writing a diary, painting a
room, choosing a laptop, a job interview, sharing a flat, a power cut, a visit to the dentist, recycling, street
music, night trains, old photographs, board games, a family recipe, a mountain hut, the first snow, a market in the
morning, a long flight, a rainy weekend, sorting algorithms, hash tables, recursion, databases, unit tests, version
control, regular expressions, web servers, linked lists, binary search, file formats, encryption, caching, threads,
compilers, spreadsheets, neural networks, probability, prime numbers, fractions, triangles, averages, percentages,
matrices, the speed of light, atoms, cells, inflation, supply and demand, contracts, insurance, copyright, the Roman
Empire, the Silk Road, the Industrial Revolution, the French Revolution, ancient Egypt, the Vikings, the
Renaissance, the space race, world trade, climate, soil, forests"""
_FACES = (
    "Explain {} to a ten-year-old.",
    "Write a short story about {}.",
    "List five facts about {}.",
    "What are the advantages and disadvantages of {}?",
    "Write a poem about {} in four stanzas.",
    "How do I get started with {}? Give me step-by-step instructions.",
    "Summarize the most important things to know about {} in three sentences.",
    "Write an email to a colleague about {}.",
    "Compare {} and {}.",
    "Write a dialogue between two friends about {}.",
    "What questions should I ask an expert on {}?",
    "Describe {} without using the word itself.",
    "Give me a table of contents for a book on {}.",
    "What is a common misconception about {}?",
    "Write a product description that has to do with {}.",
    "Why does {} matter today?",
    "Make a plan for a one-week course on {}.",
    "Write a news article about {} with a headline.",
    "Tell me a joke about {} and explain it.",
    "What would the world look like without {}?",
    "Write a Python function that has to do with {}, with comments.",
    "Write a Python class that models {} and show how it is used.",
    "Translate a simple sentence about {} into French and Spanish.",
    "Give three examples of {} and explain each in one paragraph.",
    "Answer as a teacher: what is the history of {}?",
    "Solve a word problem about {} and show each step of the calculation.",
)


@dataclass(frozen=True, slots=True)
class Texts:
    """Conversations of one turn: prompts with their answers, one after the other."""

    ids: Array  # (n,) int32
    starts: Array  # (m + 1,) int64
    prompts: Array  # (m,) int64: how many of a conversation's tokens are its prompt
    fingerprint: str  # of the model that said it

    def each(self) -> Iterator[tuple[Array, int]]:
        """Conversations, and how many tokens of each are its prompt."""
        for at, end, prompt in zip(self.starts[:-1], self.starts[1:], self.prompts, strict=True):
            yield self.ids[at:end], int(prompt)

    def expect(self, fingerprint: str, path: Path) -> None:
        """Raises:
        UserError: another model said this.
        """
        if self.fingerprint != fingerprint:
            raise UserError(f"--own {path} is text of another model ({self.fingerprint[:12]})", param="own")

    def write(self, path: Path) -> None:
        """Keep it, whole or not at all."""
        part = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"ids": self.ids, "starts": self.starts, "prompts": self.prompts}
        save_file(tensors, part, {"fingerprint": self.fingerprint, "kind": "own text"})
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> Texts:
        """Raises:
        UserError: it is no such file.
        """
        try:
            if path.stat().st_size > LARGEST:
                raise UserError(f"{path} is larger than any file of texts", param="texts")
            with safe_open(path, "np") as file:
                ids, starts, prompts = (file.get_tensor(name) for name in ("ids", "starts", "prompts"))
                found = cls(ids, starts, prompts, (file.metadata() or {}).get("fingerprint", ""))
        except (OSError, SafetensorError, ValueError) as e:
            raise UserError(f"{path} cannot be read as texts of a model: {e}", param="texts") from None
        found._check(path)
        return found

    def _check(self, path: Path) -> None:
        lengths = np.diff(self.starts)
        fits = len(self.starts) == len(self.prompts) + 1 and len(self.starts) > 1 and self.starts[0] == 0
        if not fits or self.starts[-1] != len(self.ids) or (self.prompts < 1).any() or (lengths < self.prompts).any():
            raise UserError(f"{path} holds conversations that do not fit together", param="texts")


def requests(seed: int) -> Iterator[str]:
    """Without end; the same seed gives the same ones."""
    rng = Random(seed)
    topics = [" ".join(t.split()) for t in _TOPICS.split(",")]
    while True:
        for face in rng.sample(_FACES, len(_FACES)):
            yield face.format(*rng.sample(topics, face.count("{}")))


def generate(
    llm: LLM,
    fingerprint: str,
    tokens: int = TOKENS,
    seed: int = 0,
    tell: Callable[[int], None] = lambda n: None,
    longest: int = ANSWER,
) -> Texts:
    """Let a model answer until it has said so many tokens, in answers of at most ``longest``. tell: hears of each n
    tokens."""
    wishes = requests(seed)
    rng = Random(seed + 1)
    said: list[Array] = []
    prompts: list[int] = []
    done = 0
    while done < tokens:
        batch = [[{"role": "user", "content": next(wishes)}] for _ in range(TOGETHER)]
        params = [
            SamplingParams(max_tokens=longest, temperature=(0.0, 0.8)[i % 2], top_p=0.95, seed=rng.getrandbits(32))
            for i in range(TOGETHER)
        ]
        ids = [llm.voice.chat(messages, None, {}) for messages in batch]
        for prompt, answer in zip(ids, llm.generate_each(list(zip(ids, params, strict=True))), strict=True):
            said.append(np.array([*prompt, *answer.ids], np.int32))
            prompts.append(len(prompt))
            done += len(answer.ids)
            tell(len(answer.ids))
    starts = np.array([0, *itertools.accumulate(map(len, said))], np.int64)
    return Texts(np.concatenate(said), starts, np.array(prompts, np.int64), fingerprint)
