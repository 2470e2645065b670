"""Step-3 against an obvious twin in numpy, and on the engine: the same bits in any company and in any chunks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.bench.quality import logits_of
from diastole.bench.tiny import Remembered
from diastole.kernels.ref import TorchOps
from diastole.kernels.table import load
from diastole.models import step3
from diastole.nn.arena import Arena
from diastole.nn.inside import Inside, Read
from diastole.nn.linear import Linear, Loader
from diastole.nn.moe import Router, expert_layers
from diastole.types import Array, UserError
from diastole.weights import Raw, open_checkpoint
from diastole.weights.error import WeightsError
from techniques import owed

CONFIG: dict[str, Any] = {
    "model_type": "step3",  # the file's name, as the registry knows it
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_attention_groups": 1,
    "head_dim": 32,
    "share_q_dim": 64,
    "max_position_embedding": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000,
    "moe_layers_enum": "1,2",
    "moe_num_experts": 5,
    "moe_top_k": 2,
    "moe_intermediate_size": 32,
    "share_expert_dim": 64,
    "norm_expert_weight": False,
}
IDS = np.random.default_rng(0).integers(0, 256, 150).astype(np.int32)


class TinyStep3:
    """A checkpoint of random weights in memory."""

    def __init__(self, **config: Any) -> None:
        self.config = CONFIG | config
        self.path = Path("tiny-step3")
        self.fingerprint = hashlib.sha256(repr(sorted(self.config.items())).encode()).hexdigest()[:16]
        rng = np.random.default_rng(1)
        self.tensors: dict[str, Array] = {}
        for name, shape in self._shapes():
            w = rng.normal(size=shape).astype(np.float32)
            near_one, sharp = len(shape) == 1, 3 if name.endswith(("wq.weight", "moe.gate.weight")) else 1
            self.tensors[name] = 1 + w / 20 if near_one else w * np.float32(sharp / shape[-1] ** 0.5)

    def _shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        c, sparse = self.config, expert_layers(self.config)
        d, dim, rank = c["hidden_size"], c["head_dim"], c["share_q_dim"]
        wide, e, inner = c["num_attention_heads"] * dim, c["moe_num_experts"], c["moe_intermediate_size"]
        attention = {"q_proj": (rank, d), "k_proj": (dim, d), "v_proj": (dim, d), "inter_norm": (rank,)}
        attention |= {"wq": (wide, rank), "o_proj": (d, wide)}
        found: list[tuple[str, tuple[int, ...]]] = [
            ("model.embed_tokens", (c["vocab_size"], d)),
            ("lm_head", (c["vocab_size"], d)),
            ("model.norm", (d,)),
        ]
        for i in range(c["num_hidden_layers"]):
            at, moe = f"model.layers.{i}", i in sparse
            found += [(f"{at}.{n}_layernorm", (d,)) for n in ("input", "post_attention")]
            found += [(f"{at}.self_attn.{n}", shape) for n, shape in attention.items()]
            width, name = (c["share_expert_dim"], "share_expert") if moe else (c["intermediate_size"], "mlp")
            found += [(f"{at}.{name}.{n}_proj", (width, d)) for n in ("gate", "up")]
            found.append((f"{at}.{name}.down_proj", (d, width)))
            if moe:
                found += [(f"{at}.moe.gate", (e, d)), (f"{at}.moe.down_proj", (e, d, inner))]
                found += [(f"{at}.moe.{n}_proj", (e, inner, d)) for n in ("gate", "up")]
        return [(f"{name}.weight", shape) for name, shape in found]

    def names(self) -> list[str]:
        return list(self.tensors)

    def raw(self, name: str) -> Raw:
        w = self.f32(name)
        return Raw(name, "F32", w.shape, w.reshape(-1, w.shape[-1]).view(np.uint8))

    def f32(self, name: str) -> Array:
        if name not in self.tensors:
            raise WeightsError(self.path, f"has no tensor {name!r}")
        return self.tensors[name]

    def close(self) -> None:
        """Nothing is open."""


# ---- the twin: one token, one head, one expert at a time, in float64


def twin(of: TinyStep3, ids: Array) -> Array:
    """Logits (n, V)."""
    c = of.config

    def w(name: str) -> Array:
        return of.tensors[f"{name}.weight"].astype(np.float64)

    def norm(x: Array, name: str) -> Array:
        scaled: Array = x / np.sqrt((x * x).mean(-1, keepdims=True) + c["rms_norm_eps"]) * w(name)
        return scaled

    def mlp(x: Array, gate: Array, up: Array, down: Array) -> Array:
        g = x @ gate.T
        told: Array = (g / (1 + np.exp(-g)) * (x @ up.T)) @ down.T
        return told

    def feed(x: Array, at: str) -> Array:
        def plain(name: str) -> Array:
            return mlp(x, *(w(f"{at}.{name}.{n}_proj") for n in ("gate", "up", "down")))

        if f"{at}.moe.gate.weight" not in of.tensors:
            return plain("mlp")
        out = plain("share_expert")
        experts = [w(f"{at}.moe.{n}_proj") for n in ("gate", "up", "down")]
        for row, scores in enumerate(x @ w(f"{at}.moe.gate").T):
            likely = np.exp(scores) / np.exp(scores).sum()
            best = np.argsort(-likely)[: c["moe_top_k"]]
            share = likely[best].sum() if c["norm_expert_weight"] else 1.0
            for e in best:
                out[row] += likely[e] / share * mlp(x[row], *(matrix[e] for matrix in experts))
        return out

    x, dim = w("model.embed_tokens")[ids], c["head_dim"]
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        y = norm(x, f"{at}.input_layernorm")
        q = norm(y @ w(f"{at}.self_attn.q_proj").T, f"{at}.self_attn.inter_norm") @ w(f"{at}.self_attn.wq").T
        k, v = turned(y @ w(f"{at}.self_attn.k_proj").T, c["rope_theta"]), y @ w(f"{at}.self_attn.v_proj").T
        heads = []
        for head in range(c["num_attention_heads"]):
            scores = turned(q[:, head * dim : (head + 1) * dim], c["rope_theta"]) @ k.T / np.sqrt(dim)
            scores[np.triu_indices(len(ids), 1)] = -np.inf
            weights = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(weights / weights.sum(1, keepdims=True) @ v)
        x = x + np.concatenate(heads, 1) @ w(f"{at}.self_attn.o_proj").T
        x = x + feed(norm(x, f"{at}.post_attention_layernorm"), at)
    logits: Array = norm(x, "model.norm") @ w("lm_head").T
    return logits


def turned(x: Array, base: float) -> Array:
    """x (n, D), all of it turned by position."""
    half = x.shape[1] // 2
    angle = np.arange(len(x))[:, None] * base ** (-np.arange(half) / half)
    a, b = x[:, :half], x[:, half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], 1)


def build(of: Any, ops: Any = None, fmt: Any = "f32", context: int = 0) -> Any:
    return step3.build(Loader(ops or load(1), of, fmt), of.config, context)


# The published one has 64 heads of 256.
WIDE = {"num_hidden_layers": 2, "num_attention_heads": 48, "head_dim": 256, "share_q_dim": 96, "moe_layers_enum": [1]}
KINDS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "renormalised": {"norm_expert_weight": True},
    "without experts": {"moe_layers_enum": ""},
    "experts everywhere but first": {"moe_layers_enum": None},
    "wide": WIDE,
}


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_the_twin(kind: str) -> None:
    """Prefill at once, in chunks, and token by token."""
    of = TinyStep3(**KINDS[kind])
    want = twin(of, IDS)
    for ops, chunks in ((load(), (37, 1, 100, *([1] * 12))), (TorchOps(), (70, 10))):
        model, ids = build(of, ops), IDS[: sum(chunks)]
        assert model.state_specs()["kv"].kv_heads == 1
        got = logits_of(model, ops, ids)
        assert np.abs(got - want[: len(ids)]).max() < 1e-4 * np.abs(want).max()
        np.testing.assert_allclose(logits_of(model, ops, ids, chunks=chunks), got, atol=1e-4)


@pytest.mark.usefixtures("torch")
def test_the_published_width_on_plain_operators() -> None:
    """64 heads of 256."""
    of = TinyStep3(**(WIDE | {"num_attention_heads": 64}))
    ops = TorchOps()
    np.testing.assert_allclose(logits_of(build(of, ops), ops, IDS[:30]), twin(of, IDS[:30]), atol=1e-3)


def test_more_heads_than_the_operators_take() -> None:
    with pytest.raises(UserError, match="2000 heads of 32 numbers") as e:
        build(TinyStep3(num_attention_heads=2000))
    assert e.value.param == "num_attention_heads"


@pytest.mark.parametrize("kind", ["as it is", "wide"])
@pytest.mark.parametrize(("fmt", "kv"), [("f32", "f32"), ("bf16", "bf16"), ("q8", "int8"), ("q4", "bf16")])
def test_chunks_change_no_bit(kind: str, fmt: str, kv: Any) -> None:
    ops = load()
    if not ops.invariant:
        pytest.skip("the native operators are not built")
    model = build(TinyStep3(**KINDS[kind]), ops, fmt)
    whole = logits_of(model, ops, IDS, kv)
    np.testing.assert_array_equal(logits_of(model, ops, IDS, kv, chunks=(3, 100, 1, 46)), whole)
    np.testing.assert_array_equal(logits_of(model, ops, IDS[:66], kv, chunks=(60, *([1] * 6))), whole[:66])


def test_the_page_kernel_equals_the_slow_attention() -> None:
    """48 heads over one key/value head of 256 numbers."""
    ops = load()
    model = build(TinyStep3(**WIDE), ops)
    slow = logits_of(model, ops, IDS, chunks=(100, 50), inside=Inside(kernel=Read()))
    np.testing.assert_allclose(logits_of(model, ops, IDS), slow, atol=5e-4)


@pytest.mark.usefixtures("torch")
def test_smaller_formats_stay_near() -> None:
    """Native operators are as near to the twin as plain ones. Without experts: a rounded score sends rows elsewhere."""
    of, ids = TinyStep3(moe_layers_enum=""), IDS[:80]
    want = twin(of, ids)
    native, plain = (
        float(np.sqrt(((logits_of(build(of, ops, "bf16"), ops, ids) - want) ** 2).mean() / (want**2).mean()))
        for ops in (load(), TorchOps())
    )
    assert 1e-4 < native < 1.1 * plain  # not below: it really is another format


# ---- on the engine


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model of what is owed is this one."""
    made = TinyStep3(), Remembered()
    monkeypatch.setattr(owed, "_tiny", lambda: made)


@pytest.mark.usefixtures("engine")
def test_company_and_chunks_change_nothing() -> None:
    owed.indifferent_to_company(chunks=(64, 1024), length=500)


@pytest.mark.usefixtures("engine")
def test_preemption_changes_nothing() -> None:
    owed.survives_preemption(length=200, most=40)


@pytest.mark.usefixtures("engine")
def test_a_random_life() -> None:
    owed.random_life(seed=0, steps=120, lengths=(20, 300))


@pytest.mark.usefixtures("engine")
def test_nothing_leaks() -> None:
    owed.abort_leaks_nothing(length=200, every=3)


# ---- experts


def test_the_router() -> None:
    """Equal scores: the first experts; ascending; renormalised or not."""
    ops = load(1)
    gate = Linear(ops, [ops.pack_f32(np.array([[0, 0], [1, 0], [1, 0], [1, 0]], np.float32))])
    x = np.array([[2, 7], [-2, 7]], np.float32)
    picks, weights = Router(gate, 2, renormalise=False)(x, Arena())
    np.testing.assert_array_equal(picks, [[1, 2], [0, 1]])
    e = np.exp(2.0)
    np.testing.assert_allclose(weights, [[e / (1 + 3 * e)] * 2, [e / (e + 3), 1 / (e + 3)]], rtol=1e-6)
    picks, again = Router(gate, 2, renormalise=True)(x, Arena())
    np.testing.assert_allclose(again, [[0.5, 0.5], [e / (e + 1), 1 / (e + 1)]], rtol=1e-6)


def test_which_layers_have_experts() -> None:
    assert expert_layers({"num_hidden_layers": 4}) == {1, 2, 3}
    for given in ("1, 3", [1, 3], (1, 3)):
        assert expert_layers({"num_hidden_layers": 4, "moe_layers_enum": given}) == {1, 3}
    assert not expert_layers({"num_hidden_layers": 4, "moe_layers_enum": ""})


# ---- files and mistakes


def test_a_directory_as_published(tmp_path: Path) -> None:
    """Experts of a layer lie in one tensor of three dimensions."""
    from safetensors.numpy import save_file

    of = TinyStep3()
    save_file(of.tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(of.config))
    ops = load(1)
    got = logits_of(build(open_checkpoint(tmp_path), ops), ops, IDS)
    np.testing.assert_array_equal(got, logits_of(build(of, ops), ops, IDS))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"num_attention_groups": 2}, "num_attention_groups"),
        ({"num_key_value_heads": 8}, "num_key_value_heads"),
        ({"share_q_dim": None}, "share_q_dim"),
        ({"head_dim": None}, "head_dim"),
        ({"head_dim": 31}, "head_dim"),
        ({"head_dim": 272}, "head_dim"),
        ({"max_position_embedding": "long"}, "max_position_embedding"),
        ({"moe_num_experts": None}, "moe_num_experts"),
        ({"moe_top_k": 6}, "moe_top_k"),
        ({"moe_top_k": 0}, "moe_top_k"),
        ({"moe_intermediate_size": True}, "moe_intermediate_size"),
        ({"share_expert_dim": None}, "share_expert_dim"),
        ({"moe_layers_enum": "1,4"}, "moe_layers_enum"),
        ({"moe_layers_enum": "one"}, "moe_layers_enum"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"hidden_act": "relu6"}, "hidden_act"),
        ({"moe_num_experts": 6}, "model"),  # the file has five
        ({"share_q_dim": 96}, "model"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], param: str) -> None:
    of = TinyStep3()
    of.config |= change
    with pytest.raises(UserError) as e:
        build(of)
    assert e.value.param == param


def test_missing_lengths_and_tensors_are_named() -> None:
    of = TinyStep3()
    del of.config["max_position_embedding"]
    with pytest.raises(UserError, match="lacks max_position_embedding"):
        build(of)
    of = TinyStep3()
    del of.tensors["model.layers.1.moe.up_proj.weight"]
    with pytest.raises(WeightsError, match=r"moe\.up_proj"):
        build(of)
    with pytest.raises(UserError, match="context 4096"):
        build(TinyStep3(), context=4096)
