"""The engine's UNet is torch's, picture by picture, alone or in a crowd; hostile settings are refused by name."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from diastole.kernels.table import load
from diastole.layers.unet import Joint, Resnet, Shape, Weights
from diastole.nn.conv2d import Conv2d, GroupNorm, doubled
from diastole.nn.noise import Schedule
from diastole.recipes import unet
from diastole.types import Array, UserError
from pictures import small


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.written(tmp_path_factory.mktemp("pictures") / "unet")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("h", "w", "c", "n"), [(8, 8, 3, 5), (2, 6, 16, 32), (4, 2, 1, 7)])
def test_convolutions_are_torchs(stride: int, h: int, w: int, c: int, n: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, h, w, c)).astype(np.float32)
    weight, bias = rng.normal(size=(n, c, 3, 3)).astype(np.float32), rng.normal(size=n).astype(np.float32)
    conv = Conv2d(load(1), weight, bias, stride)
    want = F.conv2d(
        torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(weight), torch.from_numpy(bias), stride, 1
    )
    np.testing.assert_allclose(conv(x), want.permute(0, 2, 3, 1), atol=1e-4)
    for i in range(3):
        np.testing.assert_array_equal(conv(x[i : i + 1])[0], conv(x)[i])


def test_a_convolution_with_zeros_behind_only() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 4, 6, 3)).astype(np.float32), rng.normal(size=(5, 3, 3, 3)).astype(np.float32)
    conv = Conv2d(load(1), weight, np.zeros(5, np.float32), 2, 0)
    want = F.conv2d(F.pad(torch.from_numpy(x).permute(0, 3, 1, 2), (0, 1, 0, 1)), torch.from_numpy(weight), None, 2)
    np.testing.assert_allclose(conv(x), want.permute(0, 2, 3, 1), atol=1e-4)


def normed(norm: GroupNorm, x: Array) -> Array:
    y = np.empty_like(x)
    norm(x, y, silu=False)
    return y


def test_norms_are_torchs() -> None:
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(3, 4, 6, 12)) * 3 + 5).astype(np.float32)
    weight, bias = rng.normal(size=12).astype(np.float32), rng.normal(size=12).astype(np.float32)
    norm = partial(normed, GroupNorm(load(1), weight, bias, 4, 1e-5))
    want = F.group_norm(torch.from_numpy(x).permute(0, 3, 1, 2), 4, torch.from_numpy(weight), torch.from_numpy(bias))
    np.testing.assert_allclose(norm(x), want.permute(0, 2, 3, 1), atol=1e-5)
    for i in range(3):
        np.testing.assert_array_equal(norm(x[i : i + 1])[0], norm(x)[i])
    np.testing.assert_array_equal(doubled(x)[:, ::2, 1::2], x)


def test_the_network_is_torchs(place: Path) -> None:
    model, net = small.model(place), small.net()
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 8, 8, 2)).astype(np.float32)
    t, labels = np.array([980, 500, 20, 0]), np.array([0, 1, 2, 3])
    emb = model.net.embedded(t, labels)
    features = model.net.encode(x, emb)
    found = model.net.decode(features, emb)
    with torch.no_grad():
        want = net(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(t), torch.from_numpy(labels))
    np.testing.assert_allclose(found, want.permute(0, 2, 3, 1), atol=2e-4)
    assert found.std() > 0.1
    before = [f.copy() for f in features]
    model.net.decode(features, emb)
    for a, b in zip(before, features, strict=True):
        np.testing.assert_array_equal(a, b)  # they are used again
    for i in range(4):
        e = emb[i : i + 1]
        np.testing.assert_array_equal(model.net.decode(model.net.encode(x[i : i + 1], e), e)[0], found[i])


class Tensors:
    """A checkpoint in memory."""

    def __init__(self, tensors: dict[str, Array]) -> None:
        self._tensors = tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def raw(self, name: str) -> Array:
        return self._tensors[name]

    f32 = raw


def read(tensors: Tensors, width: int, groups: int) -> Weights:
    shape = Shape(4, 1, (width,), (False,), (False,), 1, groups, 1e-5, 0, 1, 1, True, 0.0)
    return Weights(load(1), tensors, shape)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("below", "above", "groups", "shared"), [(8, 8, 4, 0), (10, 6, 4, 2), (8, 4, 1, 4), (3, 5, 8, 0), (9, 1, 2, 1)]
)
def test_a_decoders_layer_is_one_over_both_inputs(below: int, above: int, groups: int, shared: int) -> None:
    """Wherever the cut between what comes from below and what the encoder saw falls among the norm's groups."""
    rng, total, n = np.random.default_rng(2), below + above, 8
    shapes = {
        "norm1.weight": (total,), "norm1.bias": (total,), "conv1.weight": (n, total, 3, 3), "conv1.bias": (n,),
        "norm2.weight": (n,), "norm2.bias": (n,), "conv2.weight": (n, n, 3, 3), "conv2.bias": (n,),
        "conv_shortcut.weight": (n, total, 1, 1), "conv_shortcut.bias": (n,),
        "time_emb_proj.weight": (n, 5), "time_emb_proj.bias": (n,),
    }  # fmt: skip
    tensors = Tensors({f"at.{name}": rng.normal(size=of).astype(np.float32) for name, of in shapes.items()})
    w = read(tensors, n, groups)
    joint, whole = Joint(w, "at", below), Resnet(w, "at")
    x, seen = (rng.normal(size=(3, 4, 4, c)).astype(np.float32) for c in (below, above))
    emb = rng.normal(size=(3, 5)).astype(np.float32)
    ready = joint.ready(seen)
    assert joint.shared == shared
    assert len(ready) == joint.parts
    before = [f.copy() for f in ready]
    want = whole(np.concatenate([x, seen], 3), emb)
    np.testing.assert_allclose(joint(x, ready, emb), want, atol=2e-6 * float(np.abs(want).max()))
    for a, b in zip(before, ready, strict=True):
        np.testing.assert_array_equal(a, b)  # they are used again


def test_a_decoder_that_nothing_of_the_encoder_reaches_is_refused() -> None:
    tensors = Tensors({"at.conv1.weight": np.zeros((8, 8, 3, 3), np.float32)})
    w = read(tensors, 8, 4)
    with pytest.raises(UserError, match="8 of them from below"):
        Joint(w, "at", 8)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_noise_that_is_known_is_taken_off(kind: str) -> None:
    """If the model knew the noise, any number of steps would give the picture back."""
    rng = np.random.default_rng(0)
    picture, noise = rng.normal(size=(2, 5)), rng.normal(size=(2, 5))
    for prediction in ("epsilon", "v_prediction"):
        schedule = Schedule({"beta_schedule": kind, "prediction_type": prediction, "clip_sample": False})
        for steps in (1, 7, 50):
            times = schedule.chosen(steps)
            a = schedule.share(times[0])
            x = np.sqrt(a) * picture + np.sqrt(1 - a) * noise
            for t, before in zip(times, [*times[1:], -1], strict=True):
                a = schedule.share(t)
                found = noise if prediction == "epsilon" else np.sqrt(a) * noise - np.sqrt(1 - a) * picture
                np.testing.assert_allclose(schedule.clean(x, found, t), picture, atol=1e-3)
                x = schedule.earlier(x, found, t, before)
            np.testing.assert_allclose(x, picture, atol=1e-3)


def test_pictures_stay_in_their_range_unless_told_otherwise() -> None:
    x, found = np.full((2, 2), 3.0, np.float32), np.zeros((2, 2), np.float32)
    for more, most in (({}, 1.0), ({"clip_sample_range": 2.5}, 2.5), ({"clip_sample": False}, 3.0)):
        schedule = Schedule(more)
        a = schedule.share(0)
        np.testing.assert_allclose(schedule.clean(x * np.float32(a**0.5), found, 0), most, rtol=1e-5)
        np.testing.assert_allclose(schedule.earlier(x * np.float32(a**0.5), found, 0, -1), most, rtol=1e-5)


def test_schedules_are_the_recipes() -> None:
    schedule = Schedule({"beta_schedule": "squaredcos_cap_v2"})
    np.testing.assert_allclose(schedule.kept, unet.kept_shares(), rtol=1e-9)
    assert schedule.chosen(4) == [750, 500, 250, 0]
    assert schedule.chosen(1) == [0]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"sample_size": 7}, "sample_size"),
        ({"sample_size": None}, "sample_size"),
        ({"sample_size": 1 << 40}, "sample_size"),
        ({"block_out_channels": [16]}, "block_out_channels"),
        ({"block_out_channels": [15, 24]}, "block_out_channels"),
        ({"block_out_channels": [16, "24"]}, "block_out_channels"),
        ({"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}, "down_block_types"),
        ({"norm_num_groups": 0}, "norm_num_groups"),
        ({"layers_per_block": 1 << 30}, "layers_per_block"),
        ({"num_class_embeds": 9, "labels": []}, "num_class_embeds"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"labels": ["one"]}, "labels"),
        ({"scheduler": None}, "model"),
        ({"scheduler": {"beta_schedule": "cubic"}}, "scheduler"),
        ({"scheduler": {"prediction_type": "sample"}}, "scheduler"),
        ({"scheduler": {"beta_start": 2.0}}, "scheduler"),
        ({"scheduler": {"timestep_spacing": "trailing"}}, "scheduler"),
        ({"scheduler": {"thresholding": True}}, "scheduler"),
        ({"scheduler": {"rescale_betas_zero_snr": True}}, "scheduler"),
        ({"scheduler": {"clip_sample_range": 0}}, "scheduler"),
        ({"scheduler": {"num_train_timesteps": 10**9}}, "num_train_timesteps"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_by_name(tmp_path: Path, more: dict[str, Any], param: str) -> None:
    with pytest.raises(UserError) as e:
        small.model(small.written(tmp_path / "unet", **more))
    assert e.value.param == param


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    place = small.written(tmp_path / "unet")
    weights = (place / "model.safetensors").read_bytes()
    for damage in (weights[:100], weights[: len(weights) // 2], b"\xff" * 8 + weights[8:]):
        (place / "model.safetensors").write_bytes(damage)
        with pytest.raises(UserError):
            small.model(place)
    fewer = small.written(tmp_path / "fewer", layers_per_block=2)  # tensors that are not there
    with pytest.raises(UserError, match="has no tensor"):
        small.model(fewer)


def test_a_pipelines_directory(tmp_path: Path) -> None:
    """As diffusers saves one: the model in one directory, its scheduler beside it."""
    place = small.written(tmp_path / "unet")
    config = json.loads((place / "config.json").read_text())
    scheduler = config.pop("scheduler")
    (place / "config.json").write_text(json.dumps(config))
    (place / "model.safetensors").rename(place / "diffusion_pytorch_model.safetensors")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    assert small.model(place).schedule.times == 1000
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(UserError, match=r"scheduler_config.json cannot be read"):
        small.model(place)
