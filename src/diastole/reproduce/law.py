"""Whether drafts keep the law of what is sampled: of a made-up model, every string of three tokens."""

from __future__ import annotations

import math

import numpy as np

from diastole.kernels import grams
from diastole.params import SamplingParams
from diastole.reproduce.study import Study
from diastole.sample import Sampler
from diastole.spec.verify import Coupled, Guess
from diastole.types import Array, Draft

WORDS, LENGTH = 16, 3
NODES = 8  # of a tree
TOGETHER = 2_000


def string_law(study: Study, strings: int) -> float:
    """Draw so many strings with drafts from a tree search, and compare with the exact law: p of a chi-square test over
    all strings, those that are expected less than ten times taken together."""
    rng = np.random.default_rng(study.seed)
    p = rng.dirichlet(np.full(WORDS, 0.5), (WORDS, WORDS))  # of the next token after (a, b)
    drafts, logits = _prepared(p)
    counts = np.zeros((WORDS,) * LENGTH)
    with study.progress("strings of a made-up model", -(-strings // TOGETHER)) as told:
        for at in range(0, strings, TOGETHER):
            for said in _drawn(drafts, logits, range(at, min(at + TOGETHER, strings))):
                counts[tuple(said)] += 1
            told()
    exact = p[0, 0, :, None, None] * p[0][:, :, None] * p[np.arange(WORDS)[:, None], np.arange(WORDS)]
    return chi_square(counts, exact * strings)


def chi_square(counts: Array, expected: Array, least: float = 10.0) -> float:
    """p of counts against what is expected, both of any shape; cells below ``least`` are taken together. By the cube
    root's law (Wilson and Hilferty, 1931), good to a thousandth from a dozen cells on."""
    seen, want = counts.ravel(), expected.ravel()
    small = want < least
    seen, want = np.append(seen[~small], seen[small].sum()), np.append(want[~small], want[small].sum())
    degrees = len(want) - 1
    x = float(((seen - want) ** 2 / np.maximum(want, 1e-9)).sum())
    z = ((x / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))
    return 0.5 * math.erfc(z / math.sqrt(2))


def _prepared(p: Array) -> tuple[list[Draft], Array]:
    """A tree for every pair of tokens, and logits of its rows, the pair's own first: (pairs, 1 + nodes, V)."""
    rough = np.round(p * 20)  # what is known of the law is only about right
    keys, words, weights, offsets = [], [], [], [0]
    for a in range(WORDS):
        for b in range(WORDS):
            found = np.flatnonzero(rough[a, b])
            keys.append(a << 32 | b)
            words += found.tolist()
            weights += rough[a, b, found].tolist()
            offsets.append(len(words))
    table = grams.table(
        np.array(keys, np.uint64), np.array(offsets, np.int64), np.array(words, np.int32), np.array(weights, np.float32)
    )
    log = np.log(p).astype(np.float32)
    drafts: list[Draft] = []
    logits = np.zeros((WORDS * WORDS, 1 + NODES, WORDS), np.float32)
    for a in range(WORDS):
        for b in range(WORDS):
            tokens, parents, odds = table.search(None, a, b, 150, 3, 32.0, 8.0, a * WORDS + b, NODES)
            rows = logits[len(drafts)]
            rows[0] = log[a, b]
            for i, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
                rows[1 + i] = log[tokens[parent] if parent >= 0 else b, token]
            drafts.append(Draft(tokens, parents, None, odds))
    return drafts, logits


def _drawn(drafts: list[Draft], logits: Array, seeds: range) -> list[list[int]]:
    """One string for each seed, all from (0, 0)."""
    said: list[list[int]] = [[] for _ in seeds]
    samplers = [Sampler(SamplingParams(seed=seed), (), 0) for seed in seeds]
    flat, step = logits.reshape(-1, WORDS), 1 + NODES
    open = list(range(len(said)))
    while open:
        guesses = []
        for i in open:
            a, b = ([0, 0] + said[i])[-2:]
            rows = range((a * WORDS + b) * step, (a * WORDS + b + 1) * step)
            guesses.append(
                Guess(samplers[i], drafts[a * WORDS + b], rows, len(said[i]), LENGTH - len(said[i]), frozenset())
            )
        for i, chosen in zip(open, Coupled().accept(guesses, flat).chosen, strict=True):
            said[i] += [c.id for c in chosen]
        open = [i for i in open if len(said[i]) < LENGTH]
    return said
