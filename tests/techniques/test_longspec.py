"""LongSpec: what a drafter owes, and that its block computes what its recipe trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.heads.glide import Glide, quantized
from diastole.params import SamplingParams
from diastole.types import Array, Draft, Request, UserError
from diastole.weights.calibration import Calibration, about
from techniques import owed

INNER = 64


def tensors(seed: int = 0) -> dict[str, Array]:
    """A block of random weights for the small model."""
    facts = owed.facts()
    assert facts.decoder is not None
    rng, d = np.random.default_rng(seed), facts.decoder.width
    side, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    found: dict[str, Array] = {"vocab": np.arange(0, owed.VOCAB, 2, dtype=np.int32)}
    for name, (n, k) in {
        "qkv": (side + 2 * keys, d),
        "o": (d, side),
        "cross_q": (side, d),
        "cross_o": (d, side),
        "gate_up": (2 * INNER, d),
        "down": (d, INNER),
    }.items():
        q, scale = quantized(rng.normal(size=(n, k)).astype(np.float32) / np.float32(k) ** 0.5)
        found |= {f"{name}.q": q, f"{name}.d": scale.astype(np.float16)}
    for name in ("norm_self", "norm_cross", "norm_mlp", "norm_out"):
        found[name] = np.ones(d, np.float32)
    return found | {"qkv_bias": rng.normal(size=side + 2 * keys).astype(np.float32) / 8}


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("longspec") / "block"
    Calibration(tensors(), about("longspec", owed.facts())).write(path)
    return f"longspec:draft={path},window=100"


SHAPES = ["1+1+1", "3+2+1"]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_text_is_the_same(block: str, shape: str) -> None:
    owed.same_as_plain(f"{block},tree_shape={shape}")


@pytest.mark.parametrize("shape", SHAPES)
def test_company_and_chunks_change_nothing(block: str, shape: str) -> None:
    owed.indifferent_to_company(f"{block},tree_shape={shape}")


def test_preemption_changes_nothing(block: str) -> None:
    owed.survives_preemption(block)


def test_abort_leaks_nothing(block: str) -> None:
    owed.abort_leaks_nothing(block)


@pytest.mark.parametrize("seed", range(2))
def test_random_life(block: str, seed: int) -> None:
    owed.random_life(f"{block},tree_shape=2+1", "smartspec", seed=seed)


def drafting(use: str, ids: list[int], shape: str, *beside: str) -> tuple[Any, Any]:
    """A service whose one stream has absorbed all but its last known token."""
    life = owed.Life(owed.service(f"{use},tree_shape={shape}", "fixed:k=0", *beside))
    life.ask("r", ids, 4)
    while not life.service.ledger.running or life.service.ledger.running[0].left > 1:
        life.step()
    (stream,) = life.service.ledger.running
    return life.service.loop, stream


def test_a_draft_is_what_the_block_says_step_by_step(block: str) -> None:
    """Fed token by token, as known text, the block guesses what it guesses within a round: the merged attention over
    window and guesses is that over one longer window."""
    ids = owed.prompt(60)
    loop, stream = drafting(block, ids, "1+1+1")
    (found,) = loop.drafter.draft([stream], [3])
    assert len(found.tokens) == 3
    so_far = [int(t) for t in stream.own.ids[: stream.known]]
    for i in range(3):
        other, again = drafting(block, so_far, "1")
        again.known, again.done = len(so_far), stream.done  # the target knows no more than before
        again.own.ids[: again.known] = so_far
        (one,) = other.drafter.draft([again], [1])
        assert one.tokens[0] == found.tokens[i]
        assert one.odds is not None
        assert found.odds is not None
        assert one.odds[0] == pytest.approx(found.odds[i], rel=0.05)
        so_far.append(found.tokens[i])


def test_memory_does_not_grow_with_the_context(block: str) -> None:
    held = []
    for n in (150, 400, 1200):
        loop, stream = drafting(block, owed.prompt(n), "1+1")
        loop.drafter.draft([stream], [2])
        held.append(sum(p >= 0 for p in stream.leases["longspec"].places))
    assert max(held) <= 3  # a window of 100 tokens
    assert max(held) == held[0]


def test_the_tree_has_the_shape_and_the_best_paths(block: str) -> None:
    loop, stream = drafting(block, owed.prompt(80), "3+4")
    (found,) = loop.drafter.draft([stream], [7])
    draft: Draft = found
    assert list(draft.parents or ())[:3] == [-1, -1, -1]
    assert len(draft.tokens) == 7
    assert all(t % 2 == 0 for t in draft.tokens)  # of its vocabulary
    (short,) = loop.drafter.draft([stream], [2])
    assert len(short.tokens) == 2


def test_the_recipe_s_block_is_the_served_one() -> None:
    """The same weights in torch and in the operators give the same logits, but for rounding."""
    torch = pytest.importorskip("torch")
    from diastole.heads.glide import Pages
    from diastole.recipes.longspec import WINDOW, Block
    from diastole.recipes.target import Target

    class FakeRig:
        decoder = owed.facts().decoder

    target = Target(FakeRig(), 128)  # type: ignore[arg-type]
    torch.manual_seed(0)
    made = Block(target, INNER)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, owed.VOCAB, 90).astype(np.int32)
    pos = np.arange(90, dtype=np.int32) + 700
    target.read(ids, pos)
    k, v = (torch.from_numpy(a) for a in target.last_layer(90))
    vocab = np.arange(owed.VOCAB, dtype=np.int32)
    served = Glide(target.decoder, made.tensors(vocab))
    with torch.no_grad():
        hidden = made(torch.from_numpy(target.embedded(ids)), torch.from_numpy(pos).long(), k, v, 2)
        want = hidden.numpy() @ target.head(vocab).T
    from diastole.state.kv import PagedKV
    from diastole.types import PagedSpec

    own = PagedKV("f32")
    own.alloc(PagedSpec(1, served.kv_heads, served.dim), 2, served.ops)
    at, h, g = np.arange(90), served.heads, served.kv_heads
    x, qkv = served.keys(ids, pos)
    own.write(0, at, qkv[:, h : h + g], qkv[:, h + g :])
    tables, starts = np.arange(2, dtype=np.int32)[None], np.array([0, 90], np.int32)
    lo = np.maximum(at - WINDOW + 1, 0).astype(np.int32)
    near = Pages(own.buffers[0], "f32", tables, starts, lo, (at + 1).astype(np.int32))
    store = target.store
    far = Pages(
        store.buffers[-1], store.fmt, tables, starts, np.zeros(90, np.int32), np.maximum(at - 1, 0).astype(np.int32)
    )
    got = served.logits(x, qkv[:, :h], pos, near, None, far, at)
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.999
    assert np.abs(got - want).max() < 0.1 * np.abs(want).max()


@pytest.mark.parametrize(
    ("knobs", "why"),
    [
        ("tree_shape=0", "tree_shape"),
        ("tree_shape=a", "tree_shape"),
        ("tree_shape=60+10", "tree_shape"),
        ("window=2", "window"),
    ],
)
def test_wrong_knobs(block: str, knobs: str, why: str) -> None:
    use = block.replace(",window=100", "") if why == "window" else block
    with pytest.raises(UserError, match=f"longspec: {why}"):
        owed.service(f"{use},{knobs}")


def test_a_block_of_another_shape_is_refused(tmp_path: Path) -> None:
    wrong = tensors()
    wrong["o.q"] = wrong["o.q"][:-1]
    Calibration(wrong, about("longspec", owed.facts())).write(tmp_path / "wrong")
    with pytest.raises(UserError, match="does not fit this model: o must be"):
        owed.service(f"longspec:draft={tmp_path / 'wrong'}")
    del wrong["o.q"]
    Calibration(wrong, about("longspec", owed.facts())).write(tmp_path / "torn")
    with pytest.raises(UserError, match="does not fit this model"):
        owed.service(f"longspec:draft={tmp_path / 'torn'}")


def test_it_guesses_nothing_for_what_says_nothing_more(block: str) -> None:
    loop, stream = drafting(block, owed.prompt(80), "1")
    (found,) = loop.drafter.draft([stream], [0])
    assert not found.tokens
    request = Request("s", "tiny", (1, 2, 3), SamplingParams(max_tokens=1, seed=0))
    assert loop.ask(loop.open(request)).hi == 3
