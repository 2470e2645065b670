"""Profiles that come along can be read, wrong ones are refused by key, and rooflines are what their figures say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diastole.sim.hardware import hardware
from diastole.sim.load import LogNormal, read_lengths
from diastole.sim.profile import profile, roofline
from diastole.sim.reading import names
from diastole.sim.shape import shape
from diastole.types import UserError

GPU = """
name = "X"
sources = ["somewhere"]
memory = 80e9
flops = 300e12
bandwidth = 2e12
link = 300e9
network = 25e9
"""


@pytest.mark.parametrize("name", names())
def test_every_gpu_that_comes_along_is_sound(name: str) -> None:
    found = hardware(name)
    assert found.sources
    assert found.flops > found.bandwidth > found.link >= found.network  # orders of magnitude that hold for all of them


@pytest.mark.parametrize("name", names("models"))
def test_every_model_that_comes_along_is_sound(name: str) -> None:
    found = shape(name)
    assert found.name == name
    assert found.heads % found.kv_heads == 0
    matrices = 12 * found.layers * found.hidden**2  # of a classic transformer; gates and groups change it a little
    assert 0.6 < found.parameters / matrices < 1.4


def test_published_constants_are_those_of_the_source() -> None:
    known = profile(shape("opt-13b"), hardware("a100-80g"))
    assert known.tensors == [1, 2, 4]
    assert known.shape.token_bytes == 2 * 40 * 5120 * 2
    latency = known.latency(1, 1)
    assert latency.prefill == pytest.approx((18.10e-3, 0.1019e-3, 7.12e-9), rel=1e-3)
    assert latency.decode.few == pytest.approx((19.93e-3, 6.27e-7, 0.0385e-3), rel=1e-3)
    assert latency.decode.bound == 95
    assert [known.tokens(n) for n in (1, 2, 4, 3)] == [66_144, 163_008, 356_736, 0]
    # 2 ms and 1e-4 ms per token of the runtime, and 1 ms for the only stage
    first, stage = latency.of_prompts([100, 200])
    assert first == pytest.approx(0.002 + 300e-7)
    assert stage == pytest.approx(latency.prefill.seconds([100, 200]) + 0.001)
    two = known.latency(1, 2).of_prompts([100, 200])
    assert two.stage == pytest.approx(latency.prefill.seconds([100, 200]) / 2 + 0.002)


def test_a_roofline_follows_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "gpu.toml"
    file.write_text(GPU + "[assumptions]\ncompute = 0.5\nbandwidth = 0.5\nlayer_us = 0\nreduce_us = 0\n")
    gpu, model = hardware(str(file)), shape("opt-13b")
    prefill, decode = roofline(model, gpu, 1)
    assert prefill.token == pytest.approx(2 * model.parameters / 150e12)
    assert decode.few.base == pytest.approx(2 * model.parameters / 1e12)
    assert decode.seconds(0, decode.bound) == pytest.approx(decode.seconds(0, decode.bound - 1), rel=0.02)
    faster, _ = roofline(model, gpu, 2)
    assert prefill.token / 2 < faster.token < prefill.token  # half of the work, and something for the link
    known = profile(model, gpu)
    assert known.tokens(1) == int((80e9 * 0.9 - 2 * model.parameters) / model.token_bytes)
    assert "roofline of published peaks; assumed" in known.source


def test_a_roofline_is_near_what_was_measured() -> None:
    """Not a claim of accuracy: the assumed shares are not fitted to anything, but they must not be absurd."""
    gpu, model = hardware("a100-80g"), shape("opt-13b")
    for t in (1, 2, 4):
        measured = profile(model, gpu).latency(t, 1)
        prefill, decode = roofline(model, gpu, t)
        assert prefill.seconds([1000]) == pytest.approx(measured.prefill.seconds([1000]), rel=0.4)
        assert decode.seconds(20_000, 32) == pytest.approx(measured.decode.seconds(20_000, 32), rel=0.5)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("memory = -1", "memory"),
        ("flops = nan", "flops"),
        ("bandwidth = 'fast'", "bandwidth"),
        ("sources = []", "sources"),
        ("colour = 'red'", "colour"),
        ("[assumptions]\ncompute = 1.5", "compute"),
        ('[fitted.m]\nsource = "x"\nkv_tokens = { two = 64 }\ntensor = {}', "two"),
        (
            '[fitted.m]\nsource = "x"\nkv_tokens = {}\n[fitted.m.tensor.1]\nprefill = [1, 2]\ndecode = [1, 2, 3]',
            "prefill",
        ),
        ("= = =", "gpu.toml"),
    ],
)  # fmt: skip
def test_wrong_hardware_is_refused_by_its_key(tmp_path: Path, wrong: str, named: str) -> None:
    file = tmp_path / "gpu.toml"
    key = wrong.split(" ")[0]
    kept = [line for line in GPU.splitlines() if not line.startswith(f"{key} =")]
    file.write_text("\n".join([*kept, wrong]))
    with pytest.raises(UserError, match=named) as e:
        hardware(str(file))
    assert e.value.param == "hardware"


def test_files_that_are_too_large_or_not_there_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "gpu.toml"
    file.write_text("# " + "x" * (1 << 20))
    with pytest.raises(UserError, match="more than 1,048,576 bytes"):
        hardware(str(file))
    with pytest.raises(UserError, match="cannot be read"):
        hardware(str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match="is not known: give a TOML file, or one of a100-80g"):
        hardware("../../etc/passwd")
    with pytest.raises(UserError, match="is not known"):
        shape("../a100-80g")


LLAMA = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip


def write(tmp_path: Path, config: Any) -> str:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    return str(file)


def test_a_configuration_is_counted(tmp_path: Path) -> None:
    found, known = shape(write(tmp_path, LLAMA)), shape("llama-3.1-8b")
    assert found.parameters == pytest.approx(known.parameters, rel=0.005)
    assert (found.token_bytes, found.context) == (known.token_bytes, known.context)
    opt = {
        "hidden_size": 5120,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "ffn_dim": 20480,
        "vocab_size": 50272,
    }
    assert shape(write(tmp_path, opt)).parameters == pytest.approx(shape("opt-13b").parameters, rel=0.01)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({**LLAMA, "hidden_size": -1}, "hidden_size"),
        ({**LLAMA, "num_hidden_layers": True}, "num_hidden_layers"),
        ({**LLAMA, "num_hidden_layers": 10**6}, "layers"),
        ({**LLAMA, "vocab_size": "many"}, "vocab_size"),
        ({**LLAMA, "num_local_experts": 8}, "experts"),
        ({"hidden_size": 4096}, "num_hidden_layers"),
        ([1], "hidden_size"),
    ],
)
def test_wrong_configurations_are_refused_by_their_key(tmp_path: Path, config: Any, named: str) -> None:
    with pytest.raises(UserError, match=named) as e:
        shape(write(tmp_path, config))
    assert e.value.param == "model"


def test_lengths_are_log_normal_and_the_same_for_a_seed() -> None:
    lengths = LogNormal(300, 100, 0.8, longest=100_000)
    drawn = lengths.draw(50_000, 3)
    assert sum(n.prompt for n in drawn) / len(drawn) == pytest.approx(300, rel=0.03)
    assert sum(n.output for n in drawn) / len(drawn) == pytest.approx(100, rel=0.03)
    assert drawn == lengths.draw(50_000, 3) != lengths.draw(50_000, 4)
    assert all(sum(n) <= 512 and min(n) >= 1 for n in LogNormal(300, 300, 2.0, longest=512).draw(2000, 0))


def test_lengths_of_a_trace(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\na,5,2\nb,3000,1\nc,0,4\nd,7,3\n")
    found = read_lengths(file, 2048)
    assert sorted(set(found.draw(10, 0))) == [(5, 2), (7, 3)]
    assert "2 lengths of trace.csv" in str(found)
    for text, named in (("a,b\n1,2\n", "ContextTokens"), ("ContextTokens,GeneratedTokens\n1,x\n", "'x'")):
        file.write_text(text)
        with pytest.raises(UserError, match=named):
            read_lengths(file, 2048)
    file.write_text("ContextTokens,GeneratedTokens\n5000,5\n")
    with pytest.raises(UserError, match="at most 2048"):
        read_lengths(file, 2048)
