"""Step-3's cost model: every number that its source gives, from the published configurations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from diastole.cli.plan_cost import cost
from diastole.sim.step_configs import CONFIGS, devices, model, of_config
from diastole.sim.step_costs import (
    DEVICES,
    Device,
    Factored,
    Grouped,
    apart,
    least_sparsity,
    stage_seconds,
    together,
)
from diastole.types import UserError

BY_NAME = {d.name: d for d in DEVICES}
near = pytest.approx


def within(value: float) -> Any:
    """2 %, as the source rounds."""
    return near(value, rel=0.02)


@pytest.mark.parametrize(
    ("name", "kv", "attention", "linear", "ffn", "intensity"),
    [
        ("step-3", 2.56e8, 3.27e10, 2.07e10, 5.33e10, 128),
        ("deepseek-v3", 2.88e8, 1.47e11, 2.28e10, 4.84e10, 512),
        ("qwen3-moe-235b", 7.89e8, 2.52e10, 1.34e10, 2.84e10, 32),
    ],
)
def test_work_at_8k(name: str, kv: float, attention: float, linear: float, ffn: float, intensity: float) -> None:
    work = model(name).work(8192)
    assert work[:4] == (within(kv), within(attention), within(linear), within(ffn))
    assert work.intensity == near(intensity)


def test_work_by_hand() -> None:
    """Step-3: 64 heads of 256 over 61 layers; a layer keeps 512 numbers of a token."""
    of = model("step-3")
    assert of.work(8192).attention == 4 * 64 * 256 * 8192 * 61
    assert of.work(8192).kv_bytes == 512 * 8192 * 61
    assert of.work(8192, 2.0).kv_bytes == 2 * of.work(8192).kv_bytes
    assert of.attention.kv_values == 512
    assert model("deepseek-v3").attention.kv_values == 576
    assert of.work(8192).outside == 2 * (56 * 48 * 7168 + 128815 * 7168)


@pytest.mark.parametrize(
    ("name", "at_8k", "at_32k", "attends_on"),
    [
        ("step-3", 0.055, 0.129, "H20"),
        ("deepseek-v3", 0.068, 0.211, "H800"),
        ("qwen3-moe-235b", 0.062, 0.193, "H20"),
    ],
)
def test_dollars_per_million(name: str, at_8k: float, at_32k: float, attends_on: str) -> None:
    of = model(name)
    for context, dollars in ((8192, at_8k), (32768, at_32k)):
        found = apart(of.work(context), DEVICES)
        assert found.per_million == within(dollars)
        assert (found.attention_on, found.ffn_on) == (attends_on, "H800")
        assert found.per_million <= min(together(of.work(context), d).per_million for d in DEVICES)


def test_parameters() -> None:
    of = model("step-3")
    assert of.attention.weights(of.hidden) == within(169.3e6)
    assert [f.whole for f in of.ffn if f.experts] == [49 * 5120] * 56
    assert 3 * of.hidden * 5120 == within(110.1e6)
    assert [3 * of.hidden * f.whole for f in of.ffn if not f.experts] == [within(396e6)] * 5
    assert of.hidden * of.vocab == within(0.92e9)
    assert of.parameters == within(316e9)
    assert of.active_parameters == within(38e9)
    assert of.sparsity == within(4 / 49)
    assert model("deepseek-v3").parameters == within(671e9)
    assert model("deepseek-v3").active_parameters == within(37e9)
    assert model("qwen3-moe-235b").parameters == within(235e9)
    assert model("qwen3-moe-235b").active_parameters == within(22e9)
    assert model("smollm2-135m").parameters == within(134.5e6)
    assert model("smollm2-135m").sparsity == 1


# The source gives these bounds with two and three digits; half of the last one is allowed.
@pytest.mark.parametrize(("name", "bound"), [("H800", 0.058), ("H20", 0.007), ("A800", 0.031), ("910B", 0.034)])
def test_the_sparsity_that_the_network_allows(name: str, bound: float) -> None:
    assert least_sparsity(model("step-3"), BY_NAME[name]) == near(bound, abs=0.0005)


def test_bounds_by_hand() -> None:
    of, d = model("step-3"), BY_NAME["H800"]
    assert stage_seconds(61) == within(272e-6)
    # S >= H · FLOP/s · L / (network · B/s · 11.1 ms)
    assert least_sparsity(of, d) == within(7168 * 1.98e15 * 61 / (4e11 * 3.35e12 * 11.1e-3))
    assert d.dense_batch == near(1.98e15 / (2 * 3.35e12))
    assert least_sparsity(of, d, tpot=0.1) == near(least_sparsity(of, d) / 2)
    with pytest.raises(UserError, match="network"):
        least_sparsity(of, replace(d, network=0.0))


def test_attention_shapes() -> None:
    """At equal numbers kept, MFA's heads are as many as one likes."""
    assert Grouped(8, 2, 64).kv_values == Factored(8, 128, 128).kv_values == 256
    assert Grouped(8, 2, 64).flops == 4 * 8 * 64
    assert Grouped(9, 3, 64).weights(576) == 576 * 64 * (9 + 3 + 3 + 9)
    assert Factored(8, 128, 128).weights(256) == 256 * (128 + 256) + 128 * 1024 + 1024 * 256


# ---- files


def test_a_config_from_a_file(tmp_path: Path) -> None:
    nested = {"model_type": "step3_vl", "text_config": CONFIGS["step-3"]}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    for given in (tmp_path, tmp_path / "config.json"):
        assert model(str(given)).work(8192) == model("step-3").work(8192)


@pytest.mark.parametrize(
    ("name", "change", "param"),
    [
        ("step-3", {"share_q_dim": None}, "share_q_dim"),
        ("step-3", {"moe_layers_enum": [61]}, "moe_layers_enum"),
        ("step-3", {"moe_top_k": 49}, "moe_top_k"),
        ("step-3", {"model_type": "gpt2"}, "model_type"),
        ("step-3", {"num_hidden_layers": 2**30}, "num_hidden_layers"),
        ("deepseek-v3", {"kv_lora_rank": "512"}, "kv_lora_rank"),
        ("qwen3-moe-235b", {"num_experts": 0}, "num_experts"),
        ("smollm2-135m", {"num_attention_heads": True}, "num_attention_heads"),
    ],
)
def test_a_config_that_does_not_do_is_named(name: str, change: dict[str, Any], param: str) -> None:
    with pytest.raises(UserError) as e:
        of_config(name, CONFIGS[name] | change)
    assert e.value.param == param


def test_devices_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "devices.toml"
    path.write_text("[cpu]\ndollars_per_hour = 0.1\nflops = 1e12\nbytes_per_second = 2e10\n")
    assert devices(path) == (Device("cpu", 0.1, 1e12, 2e10),)
    for text, param in (
        ("[cpu]\nflops = 1", "devices"),
        ("[cpu]\ndollars_per_hour = 0\nflops = 1\nbytes_per_second = 1", "dollars_per_hour"),
        ("[cpu]\ndollars_per_hour = inf\nflops = 1\nbytes_per_second = 1", "dollars_per_hour"),
        ("[cpu]\ndollars_per_hour = 1\nflops = '1'\nbytes_per_second = 1", "flops"),
        ("[cpu]\ndollars_per_hour = 1\nflops = 1\nbytes_per_second = 1\nspeed = 1", "devices"),
        ("cpu = 1", "devices"),
        ("", "devices"),
        ("[", "devices"),
    ):
        path.write_text(text)
        with pytest.raises(UserError) as e:
            devices(path)
        assert e.value.param == param, text
    path.write_bytes(b"#" * 2_000_000)
    with pytest.raises(UserError, match="bytes"):
        devices(path)
    for wrong in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(UserError):
            devices(wrong)


# ---- the command


def run(*args: str) -> Any:
    app = typer.Typer()
    app.command()(cost)
    return CliRunner().invoke(app, list(args))


def test_the_command(tmp_path: Path) -> None:
    found = json.loads(run("--json").output)
    assert found["apart"]["dollars_per_million"] == within(0.055)
    assert [d["name"] for d in found["devices"]] == list(BY_NAME)
    said = run("--model", "qwen3-moe-235b", "--context", "32768").output
    assert "H20" in said
    assert "predicted" in said
    path = tmp_path / "devices.toml"
    path.write_text("[cpu]\ndollars_per_hour = 0.1\nflops = 1e12\nbytes_per_second = 2e10\n")
    small = json.loads(run("--model", "smollm2-135m", "--devices", str(path), "--json").output)
    assert small["devices"][0]["least_sparsity"] is None
    assert small["apart"]["attention_on"] == "cpu"


def test_the_command_warns_of_a_network_that_is_too_slow(tmp_path: Path) -> None:
    path = tmp_path / "devices.toml"
    slow = "[slow]\ndollars_per_hour = 1\nflops = 1e15\nbytes_per_second = 3e12\nnetwork_bytes_per_second = 1e11\n"
    path.write_text(slow)
    assert "slow can feed" in run("--devices", str(path)).output
    path.write_text(slow.replace("1e11", "1e13"))
    assert "can feed" not in run("--devices", str(path)).output


@pytest.mark.parametrize("args", [("--model", "nobody"), ("--tpot", "0"), ("--kv-bytes", "nan"), ("--devices", "no")])
def test_the_command_refuses(args: tuple[str, str]) -> None:
    assert isinstance(run(*args).exception, UserError)
