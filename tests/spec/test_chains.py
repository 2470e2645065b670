"""The quick way to a batch of chains beside the general one."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from diastole.loops import branching, chains
from diastole.loops.drafting import Drafting
from diastole.params import SamplingParams
from diastole.types import Draft, Grant, Request, Stream
from techniques import owed

USE = "ngram:k=12"


@pytest.mark.parametrize("lengths", [(3,), (0, 5), (2, 0, 70, 1)])
def test_the_batch_is_that_of_branches(lengths: tuple[int, ...]) -> None:
    of = owed.service(USE)
    loop = of.loop
    assert isinstance(loop, Drafting)
    drafts: dict[Stream, Draft] = {}
    grants: list[Grant] = []
    twigs: dict[Stream, list[branching.Twig]] = {}
    for i, n in enumerate(lengths):
        params = SamplingParams(max_tokens=100, seed=0)
        stream = loop.open(Request(str(i), of.name, tuple(owed.prompt(40 + 63 * i, i)), params))
        assert loop.admit(stream)
        stream.done = stream.known - 1
        stream.own.tip = int(stream.own.ids[stream.known - 1])
        drafts[stream] = Draft([*range(7, 7 + n)])
        grown = branching.grow(loop.pool, stream, drafts[stream])
        assert grown is not None
        twigs[stream] = grown
        grants.append(Grant(stream, 1 + n))
    want = branching.gather(grants, (), drafts, twigs, 0)
    made = chains.gather(grants, (), drafts)
    for field in fields(made):
        a, b = getattr(made, field.name), getattr(want, field.name)
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            assert a.dtype == b.dtype
            assert a.tolist() == b.tolist(), field.name
    assert [(s.draft, [*s.rows]) for s in made.sown if s] == [(s.draft, [*s.rows]) for s in want.sown if s]
    assert made.grants == want.grants
    for stream in drafts:
        loop.close(stream)
