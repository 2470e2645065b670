"""ZipCache: what is sealed where, that nobody's company changes it, and what it takes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from diastole import registry
from diastole.kernels.table import compiled
from diastole.nn.inside import Paged, Read
from diastole.slots import Facts, View
from diastole.state.pages import PAGE
from diastole.techniques.zipcache import ZipCache
from diastole.types import Array, Grant, Stream, UserError
from techniques import owed

USE = "zipcache"
SMALL = "zipcache:slice=64,recompress_every=64"
FACTS = Facts(frozenset({"paged_kv"}), 16, 4, 2, 32, 2048)


def test_sixteen_bits_change_nothing() -> None:
    same, plain = owed.service("zipcache:hi=16,lo=16"), owed.service(kv="bf16")
    for seed in range(3):
        tokens = owed.prompt(700 + 97 * seed, seed)
        assert owed.alone(same, tokens) == owed.alone(plain, tokens)


@pytest.mark.parametrize("use", [USE, "zipcache:hi=4,lo=4", "zipcache:hi=2,lo=2"])
def test_it_acts(use: str) -> None:
    owed.acts(use)


@pytest.mark.parametrize("use", [USE, SMALL, "zipcache:slice=128,recompress_every=192,probe_random=0.3"])
def test_company_changes_nothing(use: str) -> None:
    owed.indifferent_to_company(use)


def test_preemption_changes_nothing() -> None:
    owed.survives_preemption("zipcache:raw=1")


def test_an_abort_leaks_nothing() -> None:
    owed.abort_leaks_nothing(USE)


@pytest.mark.parametrize(
    ("use", "seed"), [("zipcache:raw=0.3", 0), (SMALL + ",raw=0.25", 1), ("zipcache:raw=1", 2), (USE, 3)]
)
def test_random_lives(use: str, seed: int) -> None:
    """Also where room in 16 bits is what is missing. In the end nobody has any."""

    def check(of: owed.Service) -> None:
        kv: ZipCache = of.state["kv"]
        assert kv.free == len(kv.raw[0])
        assert (kv.slots < 0).all()

    owed.random_life(use, seed=seed, check=check)


class Watch:
    """A life in which the first stream's state can be looked at after every step."""

    def __init__(self, use: str, tokens: list[int], most: int, chunk: int = 256) -> None:
        self.of = owed.service(use, chunk=chunk)
        self.kv: ZipCache = self.of.state["kv"]
        self.life = owed.Life(self.of)
        self.life.ask("it", tokens, most)

    def step(self) -> Stream | None:
        self.life.step()
        running = self.of.ledger.running
        return running[0] if running else None

    def sealed(self, stream: Stream) -> list[bool]:
        return (self.kv.slots[stream.leases["kv"].places] < 0).tolist()

    def rows(self, stream: Stream, pages: int) -> list[Array]:
        at = np.arange(pages * PAGE)
        rows = np.array(stream.leases["kv"].places, np.int64)[at // PAGE] * PAGE + at % PAGE
        return [x for layer in range(16) for x in self.kv.read(layer, rows)]


def test_what_is_sealed_when() -> None:
    """Slices of the prompt, its whole pages at its end, and output page by page; what is sealed never changes."""
    watch = Watch("zipcache:slice=128,recompress_every=64", owed.prompt(400), 150)
    seen: dict[int, int] = {}
    before: list[Array] = []
    while (stream := watch.step()) is not None:
        sealed = watch.sealed(stream)
        count = sum(sealed)
        assert sealed == [True] * count + [False] * (len(sealed) - count)
        seen[stream.done] = count
        now = watch.rows(stream, count)
        for old, new in zip(before, now, strict=bool(before)):
            np.testing.assert_array_equal(new[: len(old)], old)
        before = now
    assert (seen[128], seen[256], seen[384], seen[400]) == (2, 4, 6, 6)
    assert all(count == done // PAGE for done, count in seen.items() if done > 400)


def test_prompts_share_whole_slices() -> None:
    """And never a part of one, whose pages depend on what follows in it."""
    tokens, other = owed.prompt(700), owed.prompt(700, 1)
    of = owed.service(USE)
    owed.alone(of, tokens)
    for shared, found in ((700, 512), (400, 256), (200, 0)):
        before = of.meter.counters["prefix_cache_hits"]
        mixed = tokens[:shared] + other[shared:]
        assert owed.alone(of, mixed) == owed.alone(owed.service(USE), mixed)
        assert of.meter.counters["prefix_cache_hits"] - before == found


def test_tokens_with_the_most_attention_keep_four_bits() -> None:
    """By the quotient of what probes gave and how many could see."""
    store: ZipCache = owed.service(USE).state["kv"]
    store.take(0)
    slot = store.slots[0]
    rng = np.random.default_rng(0)
    k = rng.normal(size=(PAGE, 2, 32)).astype(np.float32)
    store.write(0, np.arange(PAGE), k, k)
    loved = rng.choice(PAGE, 36, replace=False)
    seen = np.arange(PAGE, 0, -1)
    store.saliency[:, slot] = 0.1 * seen
    store.saliency[:, slot, :, loved] = 0.2 * seen[loved, None, None]
    store.compress([0], seen[None])
    error = np.abs(store.read(0, np.arange(PAGE))[0] - k).mean((1, 2))
    others = np.setdiff1d(np.arange(PAGE), loved)
    assert error[loved].max() < error[others].min()
    assert store.fine == 36


def test_a_pass_that_failed_is_not_counted() -> None:
    """What a batch added to saliency counts once, however often it is run before it is committed."""
    tokens = owed.prompt(300)
    want = owed.alone(owed.service(USE), tokens, 40)
    of = owed.service(USE)
    forward, runs = of.model.forward, [0]

    def twice(b: object, state: object) -> Array:
        runs[0] += 1
        forward(replace(b, notes={}), state)  # type: ignore[type-var]
        return forward(replace(b, notes={}), state)  # type: ignore[type-var]

    of.model.forward = twice  # type: ignore[method-assign]
    assert owed.alone(of, tokens, 40) == want
    assert runs[0] > 40


def test_attention_is_what_reading_gives() -> None:
    """Beside the slow twin, in plain numpy over rows that are read out: of a stream with pages of both kinds."""
    watch = Watch(USE, owed.prompt(700), 4)
    stream = None
    while stream is None or stream.done < 700:
        stream = watch.step()
    assert watch.sealed(stream) == [True] * 10 + [False]
    batch = watch.of.loop.prepare([Grant(stream, 1)])
    q = np.random.default_rng(0).normal(size=(1, 4, 32)).astype(np.float32)
    for layer in range(16):
        view = View(layer, watch.kv, watch.kv._ops, batch, batch.lo, 32**-0.5)
        found = []
        for kernel in (Paged(), Read()):
            out, lse = np.empty_like(q), np.empty((1, 4), np.float32)
            kernel(view, q, None, out, lse)
            found.append((out, lse))
        assert np.linalg.norm(found[0][0] - found[1][0]) <= 1e-2 * np.linalg.norm(found[1][0])
        np.testing.assert_allclose(found[0][1], found[1][1], atol=0.02)


def test_what_it_takes() -> None:
    """Bytes are counted, of pages of both kinds; 64 channels with 36 tokens in four bits take 3436 of 16384."""
    watch = Watch("zipcache", owed.prompt(640), 100)
    assert watch.of.state["kv"].sealed_bytes == 16 * 2 * owed.load(1).zip_page_bytes(32, 36)
    assert owed.load(1).zip_page_bytes(64, 36) == 3436
    while (stream := watch.step()) is not None and stream.done < 641:
        pass
    assert stream is not None
    pages = stream.leases["kv"].places
    raw = PAGE * 2 * 32 * 2 * 2 + PAGE * 2 * 4
    assert watch.kv.held(pages) == 10 * watch.kv.sealed_bytes + 16 * raw
    blob = watch.of.ledger.pools["kv"].pack(stream.leases["kv"])
    assert blob.nbytes == watch.kv.held(pages) + 8 + 9 * len(pages)  # swapped as it is: which of them are in 16 bits


GROWS = """
import resource
import numpy as np
from diastole.kernels.table import load
from diastole.registry import Spec, load as technique
from diastole.slots import Facts
from diastole.state.pages import PAGE
from diastole.techniques.zipcache import ZipCache
from diastole.types import PagedSpec

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

pages, ops = 8192, load(1)
kv = ZipCache(technique(Spec.parse("zipcache"))[1], Facts(frozenset(), 2, 3, 3, 64))
rng = np.random.default_rng(0)
k = rng.normal(size=(PAGE, 3, 64)).astype(np.float32)
kv.alloc(PagedSpec(2, 3, 64), 8, ops)
kv.take(0), kv.write(0, np.arange(PAGE), k, k), kv.compress([0], np.ones((1, PAGE)))
before = resident()
kv.alloc(PagedSpec(2, 3, 64), pages, ops)
empty = resident() - before
while kv.free > 0 and (page := pages - kv.free):
    kv.take(page - 1)
    for layer in range(2):
        kv.write(layer, np.arange((page - 1) * PAGE, page * PAGE), k, k)
held = [int(p) for p in np.flatnonzero(kv.slots >= 0)]
kv.compress(held[:1], np.ones((1, PAGE)))
for page in range(pages - len(held)):
    kv.take(page)
    for layer in range(2):
        kv.write(layer, np.arange(page * PAGE, (page + 1) * PAGE), k, k)
    kv.compress([page], np.ones((1, PAGE)))
kv.compress([int(p) for p in np.flatnonzero(kv.slots >= 0)], np.ones((kv.slots >= 0).sum() * PAGE).reshape(-1, PAGE))
told = kv.held(list(range(pages)))
print(empty, resident() - before, told, int(kv.bytes_per_token * PAGE * pages))
"""


@pytest.mark.skipif(compiled() is None or not sys.platform.startswith("linux"), reason="reads /proc; native pages")
def test_bytes_told_are_what_the_process_grows_by() -> None:
    """With all pages in use, as many of them in 16 bits as may be."""
    found = subprocess.run([sys.executable, "-c", GROWS], capture_output=True, text=True, check=True)
    empty, grown, told, planned = map(int, found.stdout.split())
    assert empty < 0.03 * planned
    assert grown == pytest.approx(planned, rel=0.03)
    assert told <= planned


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ("hi=8,lo=2", "hi and lo"),
        ("hi=2,lo=4", "hi and lo"),
        ("ratio=1.5", "ratio"),
        ("probe_recent=0", "probe_recent"),
        ("probe_random=-1", "probe_random"),
        ("slice=100", "slice"),
        ("recompress_every=0", "recompress_every"),
        ("raw=0", "raw"),
        ("bits=4", "bits"),
    ],
)
def test_wrong_knobs_are_named(knobs: str, named: str) -> None:
    with pytest.raises(UserError, match=named) as error:
        registry.build([f"zipcache:{knobs}"], {}, FACTS)
    assert error.value.param == "use"


def test_models_whose_layers_see_a_window_are_refused() -> None:
    with pytest.raises(UserError, match="window"):
        registry.build([USE], {}, replace(FACTS, windowed=True))


@pytest.mark.parametrize("other", ["int8-kv", "tidaldecode"])
def test_what_does_not_go_with_it_is_refused_by_name(other: str) -> None:
    with pytest.raises(UserError) as error:
        owed.service(USE, other)
    assert "zipcache" in error.value.message
    assert other in error.value.message
