"""ShadowKV: what a technique owes, and that its factors, landmarks, outliers and buffers are what they are called."""

from __future__ import annotations

import subprocess
import sys

import pytest

from diastole.bench.tiny import Remembered, TinyLlama
from diastole.config import ServiceConfig
from diastole.engine.assemble import assemble
from diastole.engine.service import Service
from diastole.kernels.table import compiled, load
from diastole.nn.linear import Loader
from diastole.state.pages import GONE
from diastole.stores.shadow import RECORD, SEALED, ShadowKV
from diastole.types import Stream, UserError
from techniques import owed

USE = "shadowkv:rank=24,sparse_budget=64,outlier_chunks=2,local_chunks=4"


def test_it_acts() -> None:
    owed.acts(USE)


def test_a_budget_for_the_whole_prompt_is_dense() -> None:
    """Such prompts are never sealed: the same bits as a plain service's."""
    with_it, plain = owed.service("shadowkv:rank=24,sparse_budget=1024"), owed.service(kv="rows")
    for seed in range(3):
        tokens = owed.prompt(700 + 97 * seed, seed)
        assert owed.alone(with_it, tokens) == owed.alone(plain, tokens)


def test_company_and_chunks_change_nothing() -> None:
    owed.indifferent_to_company(USE)


def test_preemption_changes_nothing() -> None:
    owed.survives_preemption(USE, length=200, most=300)  # own output takes the pages that sealing saved


def test_abort_leaks_nothing() -> None:
    owed.abort_leaks_nothing(USE)


@pytest.mark.parametrize("seed", range(2))
def test_random_life(seed: int) -> None:
    owed.random_life(USE, seed=seed)


def speaking(of: Service, tokens: list[int], most: int = 40, n: int = 1) -> tuple[owed.Life, Stream, ShadowKV]:
    """A service whose only stream has said something."""
    life = owed.Life(of)
    life.ask("it", tokens, most, n=n)
    while len(life.said.get("it", ())) < 3:
        life.step()
    return life, of.ledger.running[0], of.state["kv"]


def test_all_of_rank_and_budget_is_nearly_dense() -> None:
    """Every chunk is rebuilt: what differs is the rounding of A, and of keys that it moves over a step of bfloat16.
    Rows in int8 are half a nat away from those in bfloat16 here."""
    of, plain = owed.service("shadowkv:rank=64,sparse_budget=640,outlier_chunks=0"), owed.service(kv="rows")
    for seed in range(3):
        tokens = owed.prompt(640 + 32 + 9, seed)
        life, stream, store = speaking(of, tokens)
        assert store.is_sealed(stream)
        life.finish()
        got, want = (owed.alone(s, tokens, 2)[1] for s in (of, plain))
        assert got[0] == want[0]
        assert abs(got[1] - want[1]) < 0.05


def test_rank_and_outliers_bring_it_nearer() -> None:
    """Distance from dense attention, for the same first token."""
    tokens = owed.prompt(900)
    dense = owed.alone(owed.service(), tokens, 2)[1][1]

    def distance(knobs: str) -> float:
        return abs(owed.alone(owed.service(f"shadowkv:sparse_budget=512,{knobs}"), tokens, 2)[1][1] - dense)

    assert distance("rank=64,outlier_chunks=8") < distance("rank=8,outlier_chunks=8")


def test_a_sealed_prompt_gives_its_pages_back() -> None:
    of = owed.service(USE, prefix=False)
    life, stream, store = speaking(of, owed.prompt(900))
    places = stream.leases["kv"].places
    assert places.count(GONE) == 13 == (900 - 32) // 64
    assert of.pages()[0] == len(places) - 13
    assert len(stream.leases[SEALED].places) == 13
    page = 2 * 64 * 2 * 32 * 2 * 16  # of both heads' keys and values in bf16, all layers
    near = 13 * 16 * (64 * 24 * 2 + 2 * 8 * 32 * 2)
    own = 16 * (24 * 64 * 4 + 2 * 2 * 4)  # basis, and which chunks are outliers
    assert store.hot_bytes(stream) == page * (len(places) - 13) + near + own + 2 * page  # outliers and buffer
    assert store.cold_bytes(stream) == 13 * page // 2
    life.finish()
    life.check(idle=True)
    assert all(pool.used == 0 for pool in store.pools.values())


def test_what_is_read_and_what_is_fetched() -> None:
    """Each token chooses the budget in each layer and head, and less than that is new."""
    of = owed.service(USE)
    owed.alone(of, owed.prompt(900))
    counted = of.state["inside"].select.counted
    assert counted.chosen == (owed.SAID - 1) * 16 * 2 * 8
    assert 16 * 2 * 8 <= counted.missed < counted.chosen


def test_a_prompt_that_was_sealed_is_still_a_cached_prefix() -> None:
    of, tokens = owed.service(USE), owed.prompt(900)
    want = owed.alone(of, tokens)
    assert owed.alone(of, tokens) == want
    assert of.meter.counters["prefix_cache_hits"] >= 832


def test_choices_share_what_is_sealed() -> None:
    of = owed.service(USE, prefix=False)
    life, _, store = speaking(of, owed.prompt(900), n=3)
    assert len(of.ledger.running) == 3
    assert (store.pools[SEALED].used, store.pools[RECORD].used) == (13, 1)
    buffers = {store.buffer(s) for s in of.ledger.running}
    assert len(buffers) == 3
    life.finish()
    life.check(idle=True)
    assert life.said["it/1"] == life.said["it"] == owed.alone(of, owed.prompt(900), 40)


def test_fewer_buffers_than_streams_change_nothing() -> None:
    """Buffers are a cache: choices that take turns with one say the same."""
    of = owed.service(USE, pages=20, prefix=False)
    want = owed.alone(of, owed.prompt(500), 20)
    store = of.state["kv"]
    store.records = 1
    store._owners = {0: None}
    life = owed.Life(of)
    life.ask("it", owed.prompt(500), 20, n=3)
    life.finish()
    assert [life.said[k] for k in ("it", "it/1", "it/2")] == [want] * 3


def test_values_in_a_file() -> None:
    tokens = owed.prompt(900)
    assert owed.alone(owed.service(USE + ",value_tier=mmap"), tokens) == owed.alone(owed.service(USE), tokens)


def test_without_a_compiler() -> None:
    """The twins of the operators run the whole of it."""
    settings = ServiceConfig(model="tiny", use=(f"{USE},stretch=1",), context=512, max_streams=1)
    tiny = TinyLlama(num_hidden_layers=2)
    of = assemble("tiny", Loader(load(1, "torch"), tiny, "auto", Remembered()), settings, frozenset(), 64 << 20, 0)
    life, stream, store = speaking(of, owed.prompt(200), 5)
    assert store.is_sealed(stream)
    life.finish()
    life.check(idle=True)
    assert len(life.said["it"]) == 5
    assert of.state["inside"].select.counted.chosen == 4 * 2 * 2 * 8


# In a process of its own: nothing else grows meanwhile.
GROWS = """
import resource
import numpy as np
from diastole.kernels.table import load
from diastole.nn.rope import rope_table
from diastole.state.pages import PAGE
from diastole.stores.shadow import ShadowKV, Shape
from diastole.types import PagedSpec

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

pages, ops = 512, load(1)
kv = ShadowKV(Shape(48, 512, 12, 32, 4, "ram", rope_table(1024, 64, 1e4)))
before = resident()
kv.alloc(PagedSpec(4, 3, 64), pages, ops)
empty = resident() - before
for arrays in (kv.buffers, kv.a, kv.marks, kv.values, kv.basis, kv.outliers):
    for array in arrays:
        array.fill(1)
print(empty, resident() - before, int(kv.bytes_per_token * pages * PAGE))
"""


@pytest.mark.skipif(compiled() is None or not sys.platform.startswith("linux"), reason="reads /proc; native pages")
def test_bytes_per_token_are_what_the_process_grows_by() -> None:
    found = subprocess.run([sys.executable, "-c", GROWS], capture_output=True, text=True, check=True)
    empty, grown, told = map(int, found.stdout.split())
    assert empty < 0.03 * told  # taken as it is touched
    assert grown == pytest.approx(told, rel=0.03)


@pytest.mark.parametrize(
    ("knobs", "what"),
    [
        ("rank=0", "rank must be from 1 to 64"),
        ("rank=65", "rank must be from 1 to 64"),
        ("chunk=16", "chunk must be 8"),
        ("sparse_budget=100", "sparse_budget must be a multiple of 8"),
        ("sparse_budget=0", "sparse_budget"),
        ("outlier_chunks=-1", "outlier_chunks must not be negative"),
        ("local_chunks=0", "local_chunks must be at least 1"),
        ("value_tier=disk", "value_tier must be one of ram, mmap"),
        ("stretch=0", "stretch must be"),
    ],
)
def test_wrong_knobs_are_named(knobs: str, what: str) -> None:
    with pytest.raises(UserError, match=what) as e:
        owed.service(f"shadowkv:{knobs}")
    assert e.value.param == "use"


@pytest.mark.parametrize("other", ["tidaldecode", "int8-kv"])
def test_what_it_does_not_go_with_is_refused_by_both_names(other: str) -> None:
    with pytest.raises(UserError, match=f"{other} and shadowkv|shadowkv and {other}"):
        owed.service(USE, other)
