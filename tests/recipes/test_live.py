"""Recipes of the models of live input, for a few steps, and the parts that they are made of."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from diastole.bench.streaming import opened, streamed
from diastole.kernels.table import load
from diastole.recipes import brainwaves, cache_aware_conformer, dbconformer, phasenet, quakes, spoken
from diastole.recipes.transducer_loss import transducer_loss
from diastole.types import Array, UserError
from live import small

# ---- speech


def by_hand(chances: Array, symbols: list[int], none: int) -> float:
    """Minus the log of all alignments' probability, one after the other."""
    frames, u = len(chances), len(symbols)
    total = -np.inf
    moves = frames - 1 + u  # before the last, which is none
    for at in combinations(range(moves), u):  # when a symbol is said
        t = said = 0
        log = 0.0
        for step in range(moves):
            if step in at:
                log += chances[t, said, symbols[said]]
                said += 1
            else:
                log += chances[t, said, none]
                t += 1
        total = np.logaddexp(total, log + chances[t, said, none])
    return -float(total)


def test_a_transducer_s_loss_is_that_of_all_alignments() -> None:
    g = torch.Generator().manual_seed(0)
    chances = torch.randn(3, 5, 4, 6, generator=g).log_softmax(-1).requires_grad_()
    symbols = torch.tensor([[0, 1, 2], [3, 3, 0], [4, 0, 0]])
    frames, sizes = torch.tensor([5, 4, 2]), torch.tensor([3, 2, 1])
    found = transducer_loss(chances, symbols, frames, sizes, 5)
    for i in range(3):
        own = chances[i, : frames[i], : sizes[i] + 1].detach().numpy()
        assert float(found[i].detach()) == pytest.approx(by_hand(own, symbols[i, : sizes[i]].tolist(), 5), rel=1e-5)
    found.sum().backward()
    assert chances.grad is not None
    assert torch.isfinite(chances.grad).all()


def test_words_are_written_with_symbols_and_read_back() -> None:
    assert len(set(spoken.SYMBOLS)) == spoken.PIECES
    for word in spoken.WORDS:
        ids = spoken.encoded(word)
        assert "".join(spoken.SYMBOLS[i] for i in ids) == " " + word
        assert len(ids) <= len(word)
    assert np.mean([len(spoken.encoded(w)) for w in spoken.WORDS]) < 3


def corpus() -> spoken.Corpus:
    """Two voices that hum."""
    rng = np.random.default_rng(0)
    words = ["one", "two", "three", "a", "b"]
    voices = [{w: (3000 * rng.normal(size=5000 + 800 * len(w))).astype(np.int16) for w in words} for _ in range(2)]
    return spoken.Corpus(voices, "hums", small.SIZES.bands)


def test_examples_say_what_their_texts_do_when_they_say() -> None:
    found = corpus().example(np.random.default_rng(1), noisy=False)
    words = found.text.split()
    assert words
    assert len(found.spans) == len(words)
    loud = np.abs(found.x) > 0.01
    for start, end in found.spans:
        lo, hi = int(start * spoken.RATE), int(end * spoken.RATE)
        assert loud[lo:hi].mean() > 0.5
        assert not loud[hi + 10 : hi + 20].any() or any(abs(s - end) < 0.001 for s, _ in found.spans)
    batch = corpus().batch(np.random.default_rng(2), 3, 1.92)
    assert batch.mel.shape == (3, 192, small.SIZES.bands)
    for row, text in zip(batch.aligned, batch.texts, strict=True):
        said = [int(s) for s in row if s < len(spoken.SYMBOLS)]
        in_order = [s for i, s in enumerate(said) if i == 0 or s != said[i - 1]]
        assert set(in_order) <= set(spoken.encoded(text))


def test_a_recogniser_is_trained_kept_and_read(tmp_path: Path) -> None:
    plan = cache_aware_conformer.Plan(steps=3, early=0.34, batch=2, sizes=small.SIZES)
    net, figures = cache_aware_conformer.train(plan, tmp_path, corpus())
    assert figures["parameters"] == sum(p.numel() for p in net.parameters())
    model = opened(str(tmp_path), load(1))
    x = 0.1 * small.noise(16_000, 1)
    assert [t.reading.kind for t in streamed(model, x, [5000] * 3)] in ([], ["final"], ["partial", "final"])
    assert not (tmp_path / "training").exists()
    place = tmp_path / "config.json"
    place.write_text(place.read_text().replace('"left": 12', '"left": 13'))
    with pytest.raises(UserError, match="whole chunks"):
        opened(str(tmp_path), load(1))


def test_a_twin_that_sees_whole_recordings_is_no_server(tmp_path: Path) -> None:
    assert cache_aware_conformer.twin(7, 3) == replace(
        cache_aware_conformer.Plan(7, seed=3), sizes=cache_aware_conformer.Sizes(rights=(-1,))
    )
    plan = cache_aware_conformer.Plan(steps=2, early=0.5, batch=2, sizes=replace(small.SIZES, rights=(-1,)))
    cache_aware_conformer.train(plan, tmp_path, corpus())
    with pytest.raises(UserError, match="whole recordings"):
        opened(str(tmp_path), load(1))


def test_word_errors_are_counted() -> None:
    assert spoken.rate(["one two", "a"], ["one two three", "b"]) == pytest.approx(2 / 4)
    assert spoken.distance("kitten", "sitting") == 3


# ---- ground motion


def quiet() -> quakes.Noise:
    return quakes.Noise([np.random.default_rng(0).normal(size=9000).astype(np.float32)])


def test_simulated_events_begin_where_they_say() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        window = quakes.window(rng, quiet(), 1, 30.0, dead=0.0)
        (event,) = window.events
        assert window.x.shape == (3000, 3)
        before, behind = window.x[max(event.p - 150, 0) : event.p], window.x[event.p : event.p + 100]
        assert behind.std() > 3 * before.std()
        wanted = quakes.targets(window)
        np.testing.assert_allclose(wanted.sum(0), 1, atol=1e-6)
        assert wanted[1].argmax() == event.p
        assert wanted[2].argmax() == event.s or event.s >= 3000
    nothing = quakes.targets(quakes.window(rng, quiet(), 0))
    np.testing.assert_array_equal(nothing[0], 1)


def test_a_batch_is_normalised_and_dead_channels_are_no_numbers_that_are_none() -> None:
    x, y = quakes.batch(np.random.default_rng(3), quiet(), 80)
    assert x.shape == y.shape == (80, 3, 3000)
    assert np.isfinite(x).all()
    deviations = x.std(2)
    assert ((deviations == 0) | (np.abs(deviations - 1) < 1e-4) | (np.abs(deviations - 1.5) < 1e-4)).all()
    assert (deviations == 0).any()


def test_a_picker_is_trained_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quakes, "noise", lambda: (quiet(), quiet()))
    plan = phasenet.Plan(steps=2, batch=2)
    phasenet.train(plan, tmp_path / "whole")
    model = opened(str(tmp_path / "whole"), load(1))
    told = streamed(model, small.noise(3500, 3), [500] * 7)
    assert all(t.reading.kind == "pick" for t in told)


# ---- brain waves


def test_a_set_in_its_file_s_form_is_read() -> None:
    text = "@problemName x\n@classLabel true a b\n@data\n1,2,3:4,5,6:a\n7,8,9:0,0,1:b\n"
    x, y = brainwaves.read_ts(text)
    assert x.shape == (2, 2, 3)
    np.testing.assert_array_equal(x[1, 1], [0, 0, 1])
    assert y == ["a", "b"]
    with pytest.raises(UserError, match="SelfRegulationSCP1"):
        brainwaves.load("nothing")


def test_alignment_makes_the_mean_covariance_one() -> None:
    x = small.noise(40 * 101, 5).reshape(40, 101, 5).transpose(0, 2, 1) * np.arange(1, 6)[:, None]
    found = dbconformer.covariance(dbconformer.aligned(x.astype(np.float32), dbconformer.covariance(x)))
    np.testing.assert_allclose(found, np.eye(5), atol=1e-4)


def test_filtering_by_fourier_is_what_the_convolution_gives() -> None:
    torch.manual_seed(0)
    for rows, kernels, n, k in (((3, 40), (40,), 510, 63), ((2, 1, 4), (8, 1), 101, 25), ((2, 5), (5,), 10, 11)):
        x = torch.randn(*rows, n, requires_grad=True)
        kernel = torch.randn(*kernels, k, requires_grad=True)
        every = torch.broadcast_shapes(rows, kernels)
        wide, by = x.expand(*every, n).reshape(1, -1, n), kernel.expand(*every, k).reshape(-1, 1, k)
        slow = F.conv1d(wide, by, padding=k // 2, groups=len(by)).view(*every, n)
        fast = dbconformer.filtered(x, kernel)
        assert_close(fast, slow, atol=1e-4, rtol=1e-4)
        weights = torch.randn(*every, n)
        found, known = (torch.autograd.grad((y * weights).sum(), (x, kernel)) for y in (fast, slow))
        for a, b in zip(found, known, strict=True):
            assert_close(a, b, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("branch", ["both", "temporal"])
def test_a_classifier_learns_what_there_is(branch: dbconformer.Branch) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=64)
    x = rng.normal(size=(64, 5, 101)).astype(np.float32)
    x[:, 2] += np.where(y, 2, -2)[:, None] * np.sin(np.arange(101) / 4)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        net = dbconformer.fit(dbconformer.Net(5, 101, 20, 2, branch), x, y, dbconformer.Plan(epochs=16, rate=3e-3))
        assert dbconformer.accuracy(net, x, y) > 0.8
    finally:
        torch.set_num_threads(threads)


def test_the_parameters_are_as_many_as_the_card_counts() -> None:
    net = dbconformer.Net(6, 896, 112, 2)
    assert sum(p.numel() for p in net.parameters()) == 92_467
