"""Attention and FFN in processes of their own: the same bits, and an end that is seen."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diastole import LLM, SamplingParams
from diastole.assets import resolve
from diastole.cluster.afd import Apart, ffn_apart, halves, parted
from diastole.cluster.rings import STOP, Gone, Ring, Shape, Split, rounded
from diastole.config import Config, ServiceConfig
from diastole.types import Batch, UserError
from models.common import embedded

PROMPTS = ["The heart is", "Rivers flow to the sea because", "A list of three colours:", "Once upon a time " * 30]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


# ---- cutting a batch


def batch(counts: list[int]) -> Batch:
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    t = int(starts[-1])
    at = np.arange(t, dtype=np.int32)
    return Batch(
        grants=(),
        leases=(),
        inputs=at,
        pos=at * 2,
        starts=starts,
        rows=at.astype(np.int64) * 3,
        tables=np.arange(2 * len(counts), dtype=np.int32).reshape(-1, 2),
        lo=at * 0,
        hi=at * 2 + 1,
        want=starts[1:] - 1,
    )


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 6))
def test_parts_are_the_whole_in_order(counts: list[int], most: int) -> None:
    whole = batch(counts)
    parts = parted(whole, most)
    assert 1 <= len(parts) <= most
    for name in ("inputs", "pos", "rows", "lo", "hi", "tables"):
        np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(whole, name))
    ends = np.cumsum([0, *(len(p.inputs) for p in parts)])
    want = np.concatenate([p.want + end for p, end in zip(parts, ends, strict=False)])
    np.testing.assert_array_equal(want, whole.want)
    for part in parts:
        assert part.starts[0] == 0
        assert part.starts[-1] == len(part.inputs)


def test_streams_of_one_row_each_are_shared_evenly() -> None:
    assert [len(p.inputs) for p in parted(batch([1] * 9), 3)] == [3, 3, 3]
    assert [len(p.inputs) for p in parted(batch([1] * 2), 3)] == [1, 1]


# ---- rings


def ends(shape: Shape) -> tuple[Ring, Ring, list[int]]:
    memory = os.memfd_create("test")
    os.ftruncate(memory, shape.size)
    there, back = os.eventfd(0, os.EFD_SEMAPHORE), os.eventfd(0, os.EFD_SEMAPHORE)
    leave, left = os.pipe()  # readable at its end
    near = Ring(shape, memory, back, there, leave)
    return near, Ring(shape, memory, there, back, -1), [left]


@pytest.mark.parametrize("transfer", ["f32", "bf16"])
def test_states_go_there_and_back(transfer: Any) -> None:
    shape = Shape(2, 8, 16, transfer)
    near, far, _ = ends(shape)
    rng = np.random.default_rng(0)

    def work() -> None:
        x = np.empty((8, 16), np.float32)
        nth = 0
        while (layer := far.take(nth, x)) != STOP:
            x[: far.rows] *= layer
            far.put(nth, layer, x[: far.rows])
            nth += 1

    thread = threading.Thread(target=work)
    thread.start()
    for nth in range(9):
        x = rng.normal(size=(int(rng.integers(1, 9)), 16)).astype(np.float32)
        got = np.empty_like(x)
        near.put(nth, nth + 1, x)
        assert near.take(nth, got) == nth + 1
        np.testing.assert_allclose(got, x * (nth + 1), rtol=0 if transfer == "f32" else 0.01)
    near.stop(9)
    thread.join(5)
    assert not thread.is_alive()


def test_an_end_is_seen_by_who_waits() -> None:
    near, _, rest = ends(Shape(1, 4, 4))
    threading.Timer(0.05, lambda: os.close(rest[0])).start()
    with pytest.raises(Gone):
        near.take(0, np.empty((4, 4), np.float32))


def test_rounding_is_to_nearest_even() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(1).normal(size=(50, 7)).astype(np.float32)
    want = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(rounded(x), want)


# ---- a real model


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    embedded()
    with LLM("smollm2-135m", context=1024, max_streams=8, prefix_cache=False) as opened:
        yield opened


def texts(llm: LLM) -> list[list[int]]:
    return [list(answers[0].ids) for answers in llm.generate(PROMPTS, GREEDY)]


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_texts_are_those_of_one_process(llm: LLM, micro_batches: int) -> None:
    service = llm.engine.services[0]
    whole: Any = service.model
    want = texts(llm)
    with Apart(whole, str(resolve("smollm2-135m")), micro_batches) as apart:
        service.model = apart
        try:
            assert texts(llm) == want
        finally:
            service.model = whole
        assert apart.stages.steps >= 12
        assert apart.ffn_seconds > 0
    assert apart._child.poll() == 0


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("use", ["hidden-transfer", "tidaldecode:budget=32,dense-below=32", "zipcache"])
def test_techniques_say_what_they_say_in_one_process(use: str) -> None:
    """One sends drafts another way through the model, one selects within the layers, one packs what is written."""
    embedded()
    config = Config(service={"": ServiceConfig(context=1024, max_streams=8, prefix_cache=False, use=(use,))})
    with LLM.of(config) as llm:
        want = texts(llm)
        with ffn_apart(llm.engine.services, config, Split(), sorted(os.sched_getaffinity(0))):
            assert texts(llm) == want
            apart: Any = llm.engine.services[0].model
            assert apart.ffn_seconds > 0


@pytest.mark.model
@pytest.mark.slow
def test_a_batch_that_is_too_large_runs_on_one_side(llm: LLM) -> None:
    service = llm.engine.services[0]
    whole: Any = service.model
    want = texts(llm)
    with Apart(whole, str(resolve("smollm2-135m")), rows=len(PROMPTS)) as apart:
        service.model = apart
        try:
            assert texts(llm) == want
        finally:
            service.model = whole
        assert 0 < apart.stages.steps < 12  # what was decoded went to the other side, what was read did not


@pytest.mark.model
@pytest.mark.slow
def test_vectors_are_those_of_one_process(llm: LLM) -> None:
    service = llm.engine.services[0]
    whole: Any = service.model
    want = llm.embed(PROMPTS)
    with Apart(whole, str(resolve("smollm2-135m"))) as apart:
        service.model = apart
        try:
            np.testing.assert_array_equal(llm.embed(PROMPTS), want)
        finally:
            service.model = whole


def test_cores_are_shared_out() -> None:
    assert halves([3]) == ([3], [3])
    assert halves([0, 1]) == ([0], [1])
    assert halves([0, 1, 2]) == ([0], [1, 2])


def test_what_has_no_layers_is_refused() -> None:
    class Service:
        name, model = "ears", object()

    services: Any = [Service()]
    with pytest.raises(UserError, match="ears does not write") as refused, ffn_apart(services, Config(), Split(), [0]):
        pass
    assert refused.value.param == "ffn_apart"


@pytest.mark.model
@pytest.mark.slow
def test_when_the_other_side_dies_requests_end_and_nothing_hangs(llm: LLM) -> None:
    service = llm.engine.services[0]
    whole: Any = service.model
    with Apart(whole, str(resolve("smollm2-135m"))) as apart:
        service.model = apart
        apart._child.kill()
        try:
            with pytest.raises((Gone, RuntimeError)):
                texts(llm)
        finally:
            service.model = whole
            for stream in list(service.ledger.streams):
                llm.engine.abort(stream.req.id)
    assert not llm.engine.busy
    assert len(texts(llm)[0]) == 12


@pytest.mark.model
def test_what_cannot_be_is_refused(llm: LLM) -> None:
    whole: Any = llm.engine.services[0].model
    with pytest.raises(UserError, match="micro_batches"):
        Apart(whole, "x", 0)
    with pytest.raises(UserError, match="did not come up"):
        Apart(whole, "/nowhere.gguf")
