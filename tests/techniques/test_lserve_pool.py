"""LServe's second pool: streaming heads keep what they look at, and nobody's text is another for it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from diastole.engine.service import Service
from diastole.kernels.table import compiled, load
from diastole.slots import KVStore
from diastole.state.kv import PagedKV
from diastole.state.pages import PAGE, PagePool
from diastole.state.prefix import PrefixCache
from diastole.stores.streaming import STEP, StreamingKV
from diastole.types import PagedSpec, UserError
from techniques import owed
from techniques.test_lserve import SMALL, technique, write

SINK, WINDOW = 1, 2  # pages, of SMALL


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With one pool."""
    path = tmp_path_factory.mktemp("heads") / "gates.safetensors"
    write(path, np.random.default_rng(3).random((16, 2)))
    return f"lserve:pattern={path},{SMALL}"


@pytest.fixture(scope="module")
def two(one: str) -> str:
    return f"{one},pool=bf16"


def whole(of: Service) -> None:
    """Slots and pages know each other, and what streams look at is there."""
    store: StreamingKV = of.state["kv"]
    had = {int(slot): page for page, slot in enumerate(store.slots) if slot >= 0}
    assert had == {slot: int(page) for slot, page in enumerate(store._owner) if page >= 0}
    assert sorted([*had, *store._free]) == list(range(len(store._owner)))
    for stream in of.ledger.running:
        if (lease := stream.leases.get("kv")) is not None:
            assert not any(store.lacks(p) for p in store._window(lease.places, stream.done))


# ---- what is owed


@pytest.mark.parametrize("rows", ["bf16", "int8"])
def test_it_says_what_one_pool_says(one: str, rows: str) -> None:
    for seed, length in enumerate((60, 400, 1500)):
        tokens = owed.prompt(length, seed)
        want = owed.alone(owed.service(one, kv=rows), tokens, 150)
        assert owed.alone(owed.service(f"{one},pool={rows}"), tokens, 150) == want


def test_windows_over_everything_are_dense(one: str) -> None:
    wide = one.replace("prefill_local=128,decode_local=64,budget=256", "prefill_local=1024,decode_local=1024")
    for share in (0.5, 1):
        use = f"{wide},budget=2048,pool=bf16,sparsity={share}"
        for seed in range(2):
            tokens = owed.prompt(700 + 97 * seed, seed)
            assert owed.alone(owed.service(use), tokens) == owed.alone(owed.service(), tokens)


def test_company_and_chunks_change_nothing(two: str) -> None:
    owed.indifferent_to_company(two)


@pytest.mark.parametrize("rows", ["bf16", "int8"])
def test_without_coming_back_between_layers(monkeypatch: pytest.MonkeyPatch, one: str, rows: str) -> None:
    owed.same_without_coming_back(monkeypatch, f"{one},pool={rows}")


def test_preemption_changes_nothing(two: str) -> None:
    owed.survives_preemption(two)


def test_abort_leaks_nothing(two: str) -> None:
    owed.abort_leaks_nothing(two)


@pytest.mark.parametrize("seed", range(3))
def test_random_life(two: str, seed: int) -> None:
    owed.random_life(two, seed=seed, pages=28, check=whole)


def test_guesses_that_were_wrong_leave_nothing(two: str) -> None:
    tokens = owed.prompt(900)
    want = owed.alone(owed.service(two), tokens, 200)
    assert owed.alone(owed.service(two, "ngram"), tokens, 200) == want


# ---- memory


def test_streaming_heads_hold_as_much_for_any_context(two: str) -> None:
    held = {}
    for length in (700, 1900):
        life = owed.Life(owed.service(two, streams=1))
        store: StreamingKV = life.service.state["kv"]
        life.ask("it", owed.prompt(length), 100)
        most = 0
        for _ in range(200):
            life.step()
            for stream in life.service.ledger.running:
                lease = stream.leases["kv"]
                needed = int(store._needed().sum())
                assert needed == len(store._window(lease.places, lease.units - STEP))
                most = max(most, needed)
        held[length] = most
        assert most <= store.most
    assert held[700] == held[1900]
    pool: PagePool = life.service.ledger.pools["kv"]  # type: ignore[assignment]
    lease = pool.lease()
    assert pool.grow(lease, 200)
    streaming = int(technique(two).streams.sum())
    size = load(1).kv_page_bytes("bf16", 32)
    choosing = 4 * (32 - streaming) * (size + 4 * 32 * 4)  # with the bounds of heads that choose
    assert store.held(lease) == (choosing, 4 * streaming * size)


GROWS = """
import resource
import numpy as np
from diastole.kernels.table import load
from diastole.state.pages import PAGE, PagePool
from diastole.stores.streaming import StreamingKV
from diastole.types import PagedSpec

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

pages, ops = 4096, load(1)
streams = np.arange(12).reshape(4, 3) % 2 == 0
kv = StreamingKV(streams, "bf16", 1, 16, 8192)
k = np.random.default_rng(0).normal(size=(PAGE, 3, 64)).astype(np.float32)
kv.alloc(PagedSpec(4, 3, 64), 8, ops)
PagePool(8, kv, None, kv)
kv.take(0), kv.write(0, np.arange(PAGE), k, k)
before = resident()
kv.alloc(PagedSpec(4, 3, 64), pages, ops)
pool = PagePool(pages, kv, None, kv)
empty = resident() - before
told, leases = 0, []
while True:
    lease = pool.lease()
    for end in range(256, 8193, 256):
        if not pool.grow(lease, end):
            break
        for page in lease.places[-4:]:
            for layer in range(4):
                kv.write(layer, page * PAGE + np.arange(PAGE), k, k)
    if lease.units < 8192:
        break
    leases.append(lease)
    told += sum(kv.held(lease))
print(empty, resident() - before, told, int(kv.bytes_per_token * PAGE * pages), len(leases))
"""


@pytest.mark.skipif(compiled() is None or not sys.platform.startswith("linux"), reason="reads /proc; native pages")
def test_bytes_told_are_what_the_process_grows_by() -> None:
    """With all pages in use by streams of the whole context."""
    found = subprocess.run([sys.executable, "-c", GROWS], capture_output=True, text=True, check=True)
    empty, grown, told, planned, streams = map(int, found.stdout.split())
    assert empty < 0.03 * planned
    assert streams == 32
    assert grown == pytest.approx(planned, rel=0.03)
    assert 0.9 * planned < told <= planned  # but for the slots that the next step of each may need


def test_pages_have_slots_as_all_streams_of_the_whole_context_need(two: str) -> None:
    of = owed.service(two, streams=3)
    store: StreamingKV = of.state["kv"]
    assert (of.pages()[1], len(store._owner)) == (3 * 32, 3 * (SINK + WINDOW + 2 * (STEP // PAGE + 2)))
    assert len(owed.service(f"{two},share=1", streams=3).state["kv"]._owner) == 3 * 32
    assert store.bytes_per_token < 0.9 * owed.service(two.split(",pool")[0], streams=3).state["kv"].bytes_per_token


# ---- beginnings that are shared


def filled(slots: int, pages: int = 40) -> tuple[PagePool, StreamingKV]:
    store = StreamingKV(np.array([[True, False], [False, False]]), "bf16", 1, 2, pages * PAGE)
    store.most, store.share = slots, slots / pages
    store.alloc(PagedSpec(2, 2, 16), pages, load(1))
    return PagePool(pages, store, PrefixCache(PAGE), store), store


def test_what_is_needed_longest_ago_gives_its_slot() -> None:
    pool, store = filled(slots=12)
    a = pool.lease()
    assert pool.grow(a, 9 * PAGE)
    assert store.free == 12 - 7  # its last step may have been of 256 tokens: pages 3 to 8, and the first
    b = pool.lease()
    assert pool.grow(b, 4 * PAGE)
    assert not any(store.lacks(p) for p in b.places)
    assert [store.lacks(p) for p in a.places] == [False, True, False, *[False] * 6]
    pool.close(a)
    pool.close(b)
    assert store.free == 12
    pool.check([], lambda wrong: pytest.fail(wrong))


def test_who_needs_more_than_there_is_waits() -> None:
    pool, _ = filled(slots=12)
    a, b = pool.lease(), pool.lease()
    assert pool.grow(a, 8 * PAGE)
    assert not pool.grow(b, 6 * PAGE)
    assert (b.places, b.units) == ([], 0)
    assert pool.grow(b, 4 * PAGE)


def test_a_beginning_whose_window_is_gone_is_found_as_far_as_it_is_there(two: str) -> None:
    of = owed.service(two, streams=1)
    store: StreamingKV = of.state["kv"]
    begin = owed.prompt(1500)
    want = owed.alone(owed.service(two, prefix=False), begin[:1000] + owed.prompt(80, 5))
    owed.alone(of, begin, 200)
    lost = [p for p in of.ledger.pools["kv"].prefix.pages() if store.lacks(p)]  # type: ignore[attr-defined]
    assert lost  # one stream's slots are fewer than its pages
    for _ in range(2):
        life = owed.Life(of)
        life.ask("it", begin[:1000] + owed.prompt(80, 5))
        life.finish()
        whole(of)
        life.check(idle=True)
        assert life.said["it"] == want
    # Who has computed it anew has its slots: the second time it was there.
    assert not any(store.lacks(p) for p in cached(of, begin[:960])[-WINDOW:])


def test_the_end_of_a_prompt_is_found(two: str) -> None:
    of = owed.service(two, streams=2)
    begin = owed.prompt(1500)
    owed.alone(of, begin)
    life = owed.Life(of)
    life.ask("it", [*begin, *owed.prompt(80, 5)])
    life.step()
    (stream,) = of.ledger.running
    assert stream.own.cached == 1472  # all whole pages
    life.finish()
    assert life.said["it"] == owed.alone(owed.service(two, prefix=False), [*begin, *owed.prompt(80, 5)])


def cached(of: Service, tokens: list[int]) -> list[int]:
    pool: PagePool = of.ledger.pools["kv"]  # type: ignore[assignment]
    assert pool.prefix is not None
    (root,) = pool.prefix._roots.values()
    found, node = [], root
    for at in range(0, len(tokens), PAGE):
        node = node.children[np.array(tokens[at : at + PAGE], np.int32).tobytes()]
        found.append(node.page)
    return found


# ---- native code

A_LANE = {"first": (0, 10**6), "step": (1, 0), "pages": (2, 10**6), "list": (3, 2)}


@pytest.mark.skipif(compiled() is None, reason="native code's own checks")
@pytest.mark.parametrize(("column", "wrong"), A_LANE.values(), ids=A_LANE)
def test_lanes_that_reach_beyond_the_pages_are_refused(column: int, wrong: int) -> None:
    _, store = filled(slots=12)
    bounds = [np.zeros((40, heads, 4 * 16 * 4), np.uint8) for heads in (1, 2)]
    asks = [np.array(places, np.int32) for places in ([0, 1], [1, 2])]

    def made(lanes: np.ndarray) -> object:
        return load(1).fuse().ByPages(store.buffers, "bf16", 2, 16, 1.0, bounds, 16, asks, [*lanes])

    made(store.lanes)
    lanes = store.lanes.copy()
    lanes[1, 0, column] = wrong
    with pytest.raises(ValueError, match="lanes: "):
        made(lanes)


# ---- what fits


def test_without_streaming_heads_it_is_one_pool(one: str) -> None:
    assert isinstance(keeps(f"{one},sparsity=0,pool=int8"), PagedKV)
    assert isinstance(keeps(f"{one},pool=int8"), StreamingKV)


def keeps(use: str) -> KVStore | None:
    keeper: KVStore | None = technique(use).keeps
    return keeper


@pytest.mark.parametrize("other", ["zipcache", "lean-attention"])
def test_what_does_not_go_with_it_is_refused_by_name(two: str, other: str) -> None:
    with pytest.raises(UserError, match="lserve") as refused:
        owed.service(two, other)
    assert other in str(refused.value)


def test_other_forms_of_rows_are_refused(one: str) -> None:
    with pytest.raises(UserError, match="pool must be bf16 or int8"):
        owed.service(f"{one},pool=f32")
    with pytest.raises(UserError, match="share must lie between 0 and 1"):
        owed.service(f"{one},pool=int8,share=1.5")
