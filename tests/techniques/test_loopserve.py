"""LoopServe: what a technique owes, and that it looks where it says."""

from __future__ import annotations

import numpy as np
import pytest

from diastole.nn.lines import Partly
from diastole.types import Array, Batch, UserError
from techniques import owed

KNOBS = "sample_rows=16,block=64,budget=64,reselect_every=4,sink=4,recent=16,dense_below=100"
USE = f"loopserve:alpha=0.7,{KNOBS}"


@pytest.mark.parametrize("kv", ["rows", "rows8", "bf16", "int8", "f32"])
def test_all_of_the_attention_and_a_budget_for_everything_are_dense(kv: str) -> None:
    owed.same_as_plain("loopserve:alpha=1,budget=2048,reselect_every=4,recent=16,dense_below=1", kv=kv)


def test_below_its_threshold_it_does_nothing() -> None:
    owed.same_as_plain("loopserve:alpha=0.5,budget=128,dense_below=2000")


@pytest.mark.parametrize("use", [USE, f"loopserve:alpha=1,{KNOBS}", USE.replace("budget=64", "budget=2000")])
def test_each_half_acts(use: str) -> None:
    owed.acts(use)


def test_company_and_chunks_change_nothing() -> None:
    owed.indifferent_to_company(USE)
    owed.indifferent_to_company(USE.replace("block=64", "block=256"), chunks=(100, 400), length=1000)


@pytest.mark.parametrize("kv", ["rows", "rows8", "bf16", "int8", "f32"])
@pytest.mark.parametrize("use", [USE, f"loopserve:alpha=1,{KNOBS}"])
def test_without_coming_back_between_layers(monkeypatch: pytest.MonkeyPatch, use: str, kv: str) -> None:
    """But in steps in which a prompt's block or a stream chooses."""
    owed.same_without_coming_back(monkeypatch, use, kv=kv, always=False)


def test_preemption_changes_nothing() -> None:
    owed.survives_preemption(USE)


def test_abort_leaks_nothing() -> None:
    owed.abort_leaks_nothing(USE)


@pytest.mark.parametrize("seed", range(3))
def test_random_life(seed: int) -> None:
    owed.random_life(USE.replace("block=64", "block=128"), seed=seed)


class Watched:
    """Keeps every selection of a service's selector, with the layer and the batch."""

    exact = False
    companion = None

    def __init__(self, inner) -> None:  # type: ignore[no-untyped-def]
        self.inner, self.reads, self.seen = inner, inner.reads, list[tuple[int, Batch, Partly]]()

    def select(self, view, q: Array) -> Partly | None:  # type: ignore[no-untyped-def]
        chosen: Partly | None = self.inner.select(view, q)
        if chosen is not None:
            self.seen.append((view.layer, view.b, chosen))
        return chosen


def watched(use: str, tokens: list[int], most: int) -> list[tuple[int, Batch, Partly]]:
    of = owed.service(use, prefix=False)
    inside = of.state["inside"]
    watch = Watched(inside.select)
    object.__setattr__(inside, "select", watch)
    owed.alone(of, tokens, most)
    return watch.seen


def test_prompts_attend_to_their_lines() -> None:
    """All of a prompt from ``dense_below`` on, in whole blocks, and what is left over where it is long enough."""
    seen = watched(USE, owed.prompt(64 * 8 + 40), most=1)
    for layer in range(16):
        blocks = [lines.block for at, _, chosen in seen if at == layer for lines in chosen.blocks]
        assert [b.first for b in blocks] == list(range(128, 64 * 8 + 1, 64))
        assert [b.rows.stop - b.rows.start for b in blocks] == [64] * 6 + [40]
    for _, b, chosen in seen:
        for lines in chosen.blocks:
            assert (lines.covered >= 0.7).all()
            assert (lines.bands[..., 0] == 1).all()
            assert (lines.columns[0, :, :4] == np.arange(4)).all()
            assert len(lines.block.judges) == 16
            assert (b.pos[lines.block.judges] >= lines.block.first).all()
    kept = [(x.counts + 64 * x.bands.sum(2)).mean() / (x.block.first + 64) for _, _, c in seen for x in c.blocks]
    assert 0.1 < np.mean(kept) < 0.7  # effect: so many of the tokens are looked at


def test_output_chooses_again_as_it_goes() -> None:
    """Four tokens see everything; the queries of the last four then choose 64, again wherever a position divides."""
    seen = watched(f"loopserve:alpha=1,{KNOBS}", owed.prompt(301), most=15)
    by_position: dict[int, np.ndarray] = {}
    for layer, b, chosen in seen:
        assert chosen.tokens is not None
        count = int(chosen.tokens.counts[0, 0])
        at = chosen.tokens.at[0, :, :count]
        assert all(len(set(row)) == count for row in at.tolist())
        assert (chosen.tokens.counts == count).all()
        if layer == 5:
            by_position[int(b.pos[0])] = at
    assert min(by_position) == 304  # the output begins at 301
    assert [at.shape[1] for at in by_position.values()] == [64, 65, 66, 64, 65, 66, 67, 64, 65, 66, 67]
    assert list(by_position) == list(range(304, 315))
    np.testing.assert_array_equal(by_position[304], by_position[306][:, :64])
    assert (by_position[304] != by_position[307]).any()


def test_blocks_are_shared_whole() -> None:
    """A prompt that differs within a block finds what lies before the block, and its rows are its own."""
    use = USE.replace("block=64", "block=128")
    of, tokens = owed.service(use), owed.prompt(600)
    owed.alone(of, tokens)
    other = [*tokens[:330], 1, 2, 3, *tokens[333:]]
    before = of.meter.counters["prefix_cache_hits"]
    assert owed.alone(of, other) == owed.alone(owed.service(use), other)
    assert of.meter.counters["prefix_cache_hits"] - before == 256
    assert owed.alone(of, tokens) == owed.alone(owed.service(use), tokens)


@pytest.mark.parametrize(
    ("knobs", "what"),
    [
        ("alpha=0", "alpha must be above 0"),
        ("alpha=1.5", "alpha must be above 0"),
        ("block=100", "block must be a multiple of 64"),
        ("sample_rows=0", "sample_rows must be between"),
        ("reselect_every=0", "reselect_every must be"),
        ("recent=0", "recent is at least 1"),
        ("budget=80", "budget must hold sink, recent and reselect_every"),
        ("share=1", "no knob 'share'"),
    ],
)
def test_wrong_knobs_are_named(knobs: str, what: str) -> None:
    with pytest.raises(UserError, match=what) as e:
        owed.service(f"loopserve:{knobs}")
    assert e.value.param == "use"


def test_two_selectors_are_refused() -> None:
    with pytest.raises(UserError, match="loopserve and sink-window both fill"):
        owed.service(USE, "sink-window")
