"""Pictures beside diffusers: the same ones, by turns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from diastole.bench import pictures
from diastole.bench.filling import Painter
from diastole.cli.main import app, register
from diastole.params import PictureParams
from diastole.types import UserError
from pictures import small


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.written(tmp_path_factory.mktemp("pictures") / "unet")


@pytest.mark.parametrize(
    "settings", [{}, {"clip_sample": False, "beta_schedule": "scaled_linear"}, {"steps_offset": 1}]
)
def test_diffusers_makes_the_same_pictures(tmp_path: Path, settings: dict[str, object]) -> None:
    pytest.importorskip("diffusers")
    from diastole.bench.diffusing import Diffusers

    place = small.written(tmp_path / "unet", scheduler=settings)
    wishes = [PictureParams(10, label, 3.0, 7 + i) for i, label in enumerate((0, 2, 1))]
    with Painter(str(place), (), 3, 1) as painter:
        ours = np.stack([p.x for p in painter.paint(wishes)])
    theirs = Diffusers(place, 1).paint(wishes)
    assert ours.std() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize(("label", "guidance"), [(None, 3.0), (1, 1.0)])
def test_one_branch_where_there_is_no_guidance(place: Path, label: int | None, guidance: float) -> None:
    pytest.importorskip("diffusers")
    from diastole.bench.diffusing import Diffusers

    wishes = [PictureParams(5, label, guidance, 4)]
    peer, rows = Diffusers(place, 1), []
    peer._net.register_forward_pre_hook(lambda net, args: rows.append(len(args[0])))
    with Painter(str(place), (), 1, 1) as painter:
        ours = np.stack([p.x for p in painter.paint(wishes)])
    np.testing.assert_allclose(ours, peer.paint(wishes), atol=2e-3)
    assert rows == [1] * 5


@pytest.mark.parametrize("older", [False, True])
def test_a_published_directory(tmp_path: Path, older: bool) -> None:
    """Written by diffusers, with settings as google/ddpm-cifar10-32 has them, but small; older files name attention
    otherwise, and lie in one folder."""
    diffusers = pytest.importorskip("diffusers")
    from diastole.bench.diffusing import Diffusers

    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), downsample_padding=0, flip_sin_to_cos=False,
        freq_shift=1, norm_eps=1e-6, norm_num_groups=4, attention_head_dim=None,
    )  # fmt: skip
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    place = tmp_path / "unet"
    wishes = [PictureParams(10, None, 1.0, seed) for seed in (1, 2)]
    theirs = Diffusers(place, 1).paint(wishes)
    if older:
        file = place / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            tensors = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in tensors.items()}
        save_file(tensors, file)
        (tmp_path / "scheduler" / "scheduler_config.json").rename(place / "scheduler_config.json")
    with Painter(str(place if older else tmp_path), (), 2, 1) as painter:
        ours = np.stack([p.x for p in painter.paint(wishes)])
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert ours.std() > 0.1
    made = pictures.measure(place, 1, PictureParams(2, None, 2.0, 1), (), True, 1, 1)
    assert made[-1].apart < 2e-3  # it knows no labels


def test_turns(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "PAUSE", 0.0)
    told: list[str] = []
    made = pictures.measure(
        place, 2, PictureParams(4, 1, 2.0, 3), ["faster-diffusion:keys=2"], False, 3, 1, told.append
    )
    assert [m.name for m in made] == ["diastole", "diastole with faster-diffusion:keys=2"]
    assert all(len(m.seconds) == 3 and m.together == 2 for m in made)
    assert made[0].apart == 0 < made[1].apart <= 2
    assert pictures.times(made, made[0].name, pictures.PEER) is None
    ratio = pictures.times(made, made[1].name, made[0].name)
    assert ratio is not None
    assert ratio[1] <= ratio[0] <= ratio[2]
    assert any("round 3 of 3" in said for said in told)


def test_a_peer_that_is_missing_is_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install 'diastole\[peers\]'"):
        pictures.measure(place, 1, PictureParams(1, 1, 2.0, 3), (), True, 1, 1)


def test_the_command(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "PAUSE", 0.0)
    register()
    out = tmp_path / "found.json"
    line = ["bench", "pictures", "-m", str(place), "--together", "1,2", "--steps", "3", "--rounds", "2", "--no-peer"]
    ran = CliRunner().invoke(app, [*line, "--threads", "1", "--out", str(out)])
    assert ran.exit_code == 0, ran.output
    assert "seconds each" in ran.output
    found = json.loads(out.read_text())
    assert [(m["together"], len(m["seconds"]), m["times"]) for m in found["made"]] == [(1, 2, None), (2, 2, None)]
