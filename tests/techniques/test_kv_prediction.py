"""KV Prediction: what a technique owes; that the model is told what the auxiliary and the maps say, and who it is kept
from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from diastole.bench.tiny import Remembered, TinyLlama
from diastole.heads.kv_maps import KVMaps, as_they_are, packed
from diastole.kernels.table import load
from diastole.models import llama
from diastole.nn.decoder import Decoder
from diastole.nn.linear import Loader
from diastole.params import PoolParams, SamplingParams
from diastole.state.kv import PagedKV
from diastole.techniques import kv_prediction as technique
from diastole.techniques.kv_prediction import NAME, remaining
from diastole.types import Array, Batch, Request, UserError
from diastole.weights import open_checkpoint
from diastole.weights.calibration import Calibration, about
from techniques import owed

WIDTH = 64  # of the small model's keys
LAYERS = (0, 5, 10, 15)
MAP = [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
SMALLER = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3}


def tensors(
    seed: int = 0, layers: Sequence[int] = LAYERS, mapping: Sequence[int] = MAP, wide: int = WIDTH
) -> dict[str, Array]:
    """Random maps for the small model; every fifth layer is taken as it is where widths allow."""
    rng, depth = np.random.default_rng(seed), len(mapping)
    as_is = np.array([i % 5 == 4 and wide == WIDTH for i in range(depth)])
    found = {"layers": np.array(layers, np.int32), "map": np.array(mapping, np.int32), "as_is": as_is}
    for name in ("k", "v"):
        w = rng.normal(size=(int((~as_is).sum()), WIDTH, wide)).astype(np.float32) / np.float32(wide**0.5)
        found |= packed(name, w, rng.normal(size=w.shape[:2]).astype(np.float32) / 4)
    return found


def written(path: Path, found: Mapping[str, Array], **said: str) -> str:
    Calibration(found, about(NAME, owed.facts()) | said).write(path)
    return f"{NAME}:maps={path},min_prompt=40"


@pytest.fixture(scope="module")
def use(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("maps") / "maps", tensors())


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests allow it."""
    monkeypatch.setattr(owed, "SamplingParams", partial(SamplingParams, allow_approximate_prefill=True))


# ---- what is owed


@pytest.mark.parametrize(("exact", "kv"), [(0, "auto"), (4, "auto"), (4, "f32"), (4, "int8"), (4, "rows")])
def test_all_layers_as_they_are_change_nothing(tmp_path: Path, allowed: None, exact: int, kv: str) -> None:
    same = written(tmp_path / "maps", as_they_are(range(16), range(16), WIDTH))
    owed.same_as_plain(f"{same},exact={exact}", kv=kv)


def test_it_acts(use: str, allowed: None) -> None:
    owed.acts(use)


def test_company_and_chunks_change_nothing(use: str, allowed: None) -> None:
    owed.indifferent_to_company(use, chunks=(5, 64, 200, 1024))


def test_preemption_changes_nothing(use: str, allowed: None) -> None:
    owed.survives_preemption(use)


def test_abort_leaks_nothing(use: str, allowed: None) -> None:
    owed.abort_leaks_nothing(use)


@pytest.mark.parametrize("seed", range(3))
def test_random_life(use: str, allowed: None, seed: int) -> None:
    owed.random_life(use, seed=seed)


def test_beside_another_kernel(use: str, allowed: None) -> None:
    lean = owed.service(use, "lean-attention")
    assert owed.alone(lean, owed.prompt(300)) == owed.alone(owed.service(use), owed.prompt(300))


def test_choices_share_what_was_told(use: str, allowed: None) -> None:
    life = owed.Life(owed.service(use, chunk=70))
    life.ask("r", owed.prompt(300), n=3)
    life.finish()
    life.check(idle=True)
    assert life.said["r"] == life.said["r/1"] == life.said["r/2"] == owed.alone(owed.service(use), owed.prompt(300))


# ---- who is read so, and what is kept from whom


def asked(life: owed.Life, id: str, tokens: Sequence[int], allow: bool) -> None:
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=1, allow_approximate_prefill=allow)
    life.engine.add(Request(id, life.service.name, tuple(tokens), params))


def test_only_who_allows_it_and_is_long_enough(use: str) -> None:
    plain, of = owed.Life(owed.service()), owed.Life(owed.service(use))
    for life in (plain, of):
        for n in (39, 40):
            for allow in (False, True):
                asked(life, f"{n}/{allow}", owed.prompt(n, n), allow)
                life.finish()
    same = {id for id, text in of.said.items() if text == plain.said[id]}
    assert same == {"39/False", "39/True", "40/False"}


def test_exact_requests_never_find_what_was_told(use: str) -> None:
    plain, of = owed.service(), owed.service(use)
    tokens = owed.prompt(400)
    for turn, allow in enumerate((True, True, False, True, False)):
        lives = owed.Life(plain), owed.Life(of)
        for life in lives:
            asked(life, str(turn), tokens, allow)
            life.finish()
        if not allow:
            assert lives[0].said == lives[1].said
        else:
            told = lives[1].said[str(turn)]
            assert told != lives[0].said[str(turn)]
            assert told == owed_alone(use, tokens)
        assert bool(len(of.loop.pool.prefix)) == (turn >= 2)  # type: ignore[attr-defined,arg-type]


def owed_alone(use: str, tokens: Sequence[int]) -> owed.Text:
    life = owed.Life(owed.service(use))
    asked(life, "alone", tokens, True)
    life.finish()
    return life.said["alone"]


def test_which_rows_go_through_the_model(use: str, monkeypatch: pytest.MonkeyPatch, allowed: None) -> None:
    """The first, the last of the prompt, and what is said; the auxiliary reads all but these last ones, once."""
    of = owed.service(use, chunk=50)
    ran: list[list[int]] = []
    read: list[list[int]] = []
    forward, absorb = Decoder.forward, KVMaps.absorb

    def through(self: Decoder, b: Batch, state: Any) -> Array:
        if b.relay is None:
            ran.append(b.pos.tolist())
        return forward(self, b, state)

    def by(self: KVMaps, b: Batch, *args: Any) -> None:
        read.append(b.pos.tolist())
        absorb(self, b, *args)

    monkeypatch.setattr(Decoder, "forward", through)
    monkeypatch.setattr(KVMaps, "absorb", by)
    life = owed.Life(of)
    life.ask("r", owed.prompt(120), 3)
    held = []
    while life.engine.busy:
        life.step()
        held.append(of.loop.absorb.pool.used)  # type: ignore[attr-defined]
    assert ran == [[0, 1, 2, 3], [119], [120], [121]]
    assert read == [[*range(50)], [*range(50, 100)], [*range(100, 119)]]
    assert held == [1, 2, 0, 0, 0]  # pages of the auxiliary's own


def test_vectors_in_the_same_step_are_the_same(use: str) -> None:
    vectors = []
    for allow in (False, True):
        life = owed.Life(owed.service(use, chunk=1024))
        asked(life, "r", owed.prompt(300), allow)
        life.engine.add(Request("v", life.service.name, tuple(owed.prompt(90)), PoolParams()))
        vectors += [e.data.vector for e in life.engine.step() or () if e.id == "v"]
        assert life.service.meter.counters["steps"] == 1  # nothing had to be tried again
        life.finish()
        life.check(idle=True)
    assert len(vectors) == 2
    assert np.array_equal(*vectors)


def test_rows_that_nobody_computes_are_not_wanted() -> None:
    zeros = np.zeros(3, np.int32)
    b = Batch((), (), zeros, zeros, zeros[:2], zeros, zeros[None], zeros, zeros, np.array([1], np.int32))
    with pytest.raises(ValueError, match="is not known"):
        remaining(b, np.array([True, False, True]))


# ---- what is told


def built(seed: int = 0, **config: Any) -> Decoder:
    tiny = TinyLlama(seed=seed, **config)
    return llama.build(Loader(load(1), tiny, "f32", Remembered()), tiny.config, owed.CONTEXT)  # type: ignore[arg-type]


def whole(n: int) -> Batch:
    """One stream's n tokens on the first pages."""
    pos, zeros = np.arange(n, dtype=np.int32), np.zeros(n, np.int32)
    tables = np.arange(-(-n // 64), dtype=np.int32)[None]
    ids, starts = np.array(owed.prompt(n), np.int32), np.array([0, n], np.int32)
    return Batch((), (), ids, pos, starts, pos.astype(np.int64), tables, zeros, pos + 1, zeros[:0])


def store_for(decoder: Decoder) -> PagedKV:
    store = PagedKV("f32")
    store.alloc(decoder.state_specs()["kv"], 4, decoder.ops)
    return store


def turned(x: Array, pos: Array, rope: Array, back: bool = False) -> Array:
    """x (T, H, D) rotated, or turned back."""
    cos, sin = np.split(rope[pos][:, None].astype(np.float64), 2, -1)
    sin = -sin if back else sin
    a, b = np.split(x.astype(np.float64), 2, -1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


@pytest.mark.parametrize("other", [False, True])
def test_the_model_is_told_what_maps_make_of_the_auxiliary_s_keys(other: bool) -> None:
    """The slow twin: a decoder of the auxiliary's layers alone, its rotated keys turned back, and numpy."""
    base = built()
    if other:
        model = built(1, **SMALLER, rope_theta=500.0)  # rotates otherwise
        layers, found = (0, 2), tensors(3, (0, 2), [0] * 8 + [1] * 8, 32)
    else:
        model, layers, found = base, LAYERS, tensors(3)
    maps, b = KVMaps(base, found, model if other else None), whole(150)
    own, kv = PagedKV("f32"), store_for(base)
    own.alloc(maps.auxiliary.spec, 4, base.ops)
    which = np.arange(4, 150)
    maps.absorb(b, own, kv, which.astype(np.int64), which)
    alone = Decoder(base.ops, model.embed, [model.blocks[i] for i in layers], model.norm, model.head, owed.CONTEXT)
    kept = store_for(alone)
    alone.open_forward(b, kept)
    at = {i: n for n, i in enumerate(np.flatnonzero(~found["as_is"]))}
    for i, j in enumerate(found["map"]):
        k, v = kept.read(int(j), which)
        k = turned(k, which, model.blocks[0].attn.rope, back=True)
        flat = [k.reshape(len(which), -1), v.reshape(len(which), -1)]
        if not found["as_is"][i]:
            for side, name in enumerate(("k", "v")):
                q, d = found[f"{name}.q"][at[i]], found[f"{name}.d"][at[i]]
                w = q * d.astype(np.float64).repeat(32, 1)
                flat[side] = flat[side] @ w.T + found[f"{name}.bias"][at[i]]
        want_k = turned(flat[0].reshape(len(which), 2, 32), which, base.blocks[0].attn.rope)
        want_v = flat[1].reshape(len(which), 2, 32)
        got_k, got_v = kv.read(i, which)
        np.testing.assert_allclose(got_k, want_k, atol=0.03)  # maps multiply in bf16
        np.testing.assert_allclose(got_v, want_v, atol=0.03)
    k, _ = kv.read(3, np.arange(4))
    assert not k.any()  # of the first tokens nothing was told


def test_norms_of_keys_are_the_model_s_own() -> None:
    """Predicted keys are normed once, by the base's layer: here with weights that nobody could overlook."""
    base = built()
    norm = replace(base.norm, weight=np.linspace(1, 3, 32, dtype=np.float32))
    blocks = [replace(x, attn=replace(x.attn, k_norm=norm, q_norm=norm)) for x in base.blocks]
    normed = Decoder(base.ops, base.embed, blocks, base.norm, base.head, owed.CONTEXT)
    b, which = whole(20), np.arange(20)
    maps = KVMaps(normed, as_they_are(range(16), range(16), WIDTH))
    told, kept, own = store_for(normed), store_for(normed), PagedKV("f32")
    own.alloc(maps.auxiliary.spec, 4, base.ops)
    maps.absorb(b, own, told, which, which)
    normed.open_forward(b, kept)
    for layer in range(16):
        for got, want in zip(told.read(layer, which), kept.read(layer, which), strict=True):
            assert np.array_equal(got, want)


# ---- another model as the auxiliary


@pytest.fixture
def smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(technique, "difference", lambda one, other: "")
    return saved(tmp_path / "smaller")


def saved(path: Path, **config: Any) -> Path:
    made = TinyLlama(seed=2, **(SMALLER | config))
    path.mkdir()
    save_file({name: made.f32(name) for name in made.names()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(made.config))
    return path


def test_another_model_reads(smaller: Path, tmp_path: Path, allowed: None) -> None:
    found = tensors(0, (0, 1, 2), [0] * 5 + [1] * 5 + [2] * 6, 32)
    use = written(tmp_path / "maps", found, aux=open_checkpoint(smaller).fingerprint) + f",aux={smaller}"
    owed.acts(use)
    owed.indifferent_to_company(use, chunks=(64,), length=300)
    owed.survives_preemption(use, length=300, most=20)


def test_models_that_cannot_be_the_auxiliary(smaller: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tensors(0, (0, 1, 2), [0] * 16, 32)

    def refused(use: str, why: str) -> None:
        with pytest.raises(UserError, match=f"kv-prediction: aux {why}"):
            owed.service(use)

    use = written(tmp_path / "maps", found, aux=open_checkpoint(smaller).fingerprint)
    refused(use, "must name the model")
    refused(f"{use},aux={tmp_path / 'nowhere'}", "must be the file or directory")
    refused(f"{written(tmp_path / 'own', tensors())},aux={smaller}", "is another model than that of the maps, part of")
    for config, why in (
        ({"vocab_size": 288}, "has 288 tokens, not 256"),
        ({"max_position_embeddings": 64}, "has a context"),
    ):
        other = saved(tmp_path / str(*config), **config)
        refused(f"{written(tmp_path / 'other', found, aux=open_checkpoint(other).fingerprint)},aux={other}", why)
    monkeypatch.setattr(technique, "difference", lambda one, other: "1 is 'x' there and 'b' here")
    refused(f"{use},aux={smaller}", "smaller has other tokens: 1 is 'x'")


# ---- what is refused


def test_wrong_knobs() -> None:
    for knobs, why in {
        "min_prompt=0": "min_prompt must be at least 1",
        "exact=-1": "exact must be at least 0",
        "refine=background": "refine must be none: .* not there yet",
        "refine=later": "refine must be none",
    }.items():
        with pytest.raises(UserError, match=f"kv-prediction: {why}"):
            owed.service(f"{NAME}:{knobs}")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"map": np.zeros(15, np.int32)}, "map must hold a number from 0 to 3 for each of 16 layers"),
        ({"map": np.full(16, 4, np.int32)}, "map must hold a number from 0 to 3"),
        ({"map": np.full(16, -1, np.int32)}, "map must hold a number from 0 to 3"),
        ({"map": np.zeros(16)}, "map must be whole numbers"),
        ({"layers": np.array([0, 5, 5, 15], np.int32)}, "layers must rise"),
        ({"layers": np.array([0, 5, 10, 16], np.int32)}, "layers must rise from 0 to 15"),
        ({"layers": np.empty(0, np.int32)}, "layers must be whole numbers"),
        ({"as_is": np.zeros(16, bool)}, "k must be 16 maps of 64 x 64"),
        ({"as_is": np.zeros(3, bool)}, "as_is must be told of 16 layers"),
        ({"k.q": np.zeros((13, 64, 32), np.int8)}, "k must be 13 maps of 64 x 64"),
        ({"v.q": np.zeros((13, 64, 64), np.float32)}, "v must be 13 maps of 64 x 64 in eight bits"),
        ({"v.d": np.zeros((13, 64, 1), np.float16)}, "scales and biases of v"),
        ({"k.bias": np.zeros((13, 63), np.float32)}, "scales and biases of k"),
        ({"k.bias": np.full((13, 64), np.nan, np.float32)}, "k must hold finite"),
        ({"v.d": np.full((13, 64, 2), np.inf, np.float16)}, "v must hold finite"),
        ({"map": None}, "do not fit this model: 'map'"),
    ],
)
def test_wrong_files(tmp_path: Path, change: dict[str, Array | None], why: str) -> None:
    found = {name: x for name, x in (tensors() | change).items() if x is not None}
    with pytest.raises(UserError, match=why) as wrong:
        owed.service(written(tmp_path / "maps", found))
    assert "kv-prediction: maps do not fit" in str(wrong.value)


def test_keys_of_another_width_are_no_keys(smaller: Path) -> None:
    model = built(2, **SMALLER)
    with pytest.raises(ValueError, match="keys of 32 numbers cannot stand as they are"):
        KVMaps(built(), as_they_are((0, 1, 2), [0] * 16, 32), model)


def test_who_looks_at_a_step_as_a_whole_is_refused(use: str) -> None:
    for beside in ("double-sparsity", "ngram", "zipcache", "shadowkv", "loopserve", "sink-window"):
        with pytest.raises(UserError, match=f"kv-prediction .*{beside}.*use either"):
            owed.service(use, beside)


def test_windows_and_strangers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"kv-prediction needs a model all of whose layers"):
        technique.fitting(replace(owed.facts(), windowed=True), None)
    Calibration(tensors(), about(NAME, replace(owed.facts(), fingerprint="other"))).write(tmp_path / "maps")
    with pytest.raises(UserError, match=r"fingerprint 'other'.* diastole train kv-prediction"):
        owed.service(f"{NAME}:maps={tmp_path / 'maps'}")
    twice = written(tmp_path / "own", tensors())
    with pytest.raises(UserError, match="both fill the slot 'absorb'"):
        owed.service(twice, twice)


def test_the_request_s_field() -> None:
    with pytest.raises(UserError, match="allow_approximate_prefill must be true or false") as wrong:
        SamplingParams(allow_approximate_prefill=1)  # type: ignore[arg-type]
    assert wrong.value.param == "allow_approximate_prefill"
