"""Models of live input against their nets in torch, and against themselves in other pieces and in crowds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diastole.bench.streaming import serving
from diastole.kernels.table import load
from diastole.live import Chunk, LiveParams
from diastole.nn.mel import LogMel
from diastole.recipes.cache_aware_conformer import FULL, SYMBOLS
from diastole.types import Array, Request, UserError
from live import small

HOP = 1280


def chunks_of(net: Any, x: Array, right: int) -> Array:
    """What the encoder of the small model gives, chunk by chunk: (T, d)."""
    encoder = net.encoder
    state = {name: np.zeros((1, *spec.shape), spec.dtype) for name, spec in encoder.specs().items()}
    frames = [
        encoder(np.ascontiguousarray(x[None, at : at + (right + 1) * HOP]), state)[0]
        for at in range(0, len(x), (right + 1) * HOP)
    ]
    return np.concatenate(frames)


@pytest.mark.parametrize("right", small.SIZES.rights)
@pytest.mark.parametrize("frames", [1, 5, 23])
def test_a_conformer_s_chunks_are_what_its_mask_says(right: int, frames: int, tmp_path: Path) -> None:
    net = small.conformer()
    model: Any = small.written(net, small.conformer_config(), tmp_path)
    x = 0.1 * small.noise(frames * HOP, 1)[:, 0]
    mel = LogMel(load(1), bands=small.SIZES.bands)
    spectra = mel(np.concatenate([np.zeros(mel.tail, np.float32), x])[None])
    with torch.no_grad():
        offline = net.encode(torch.from_numpy(spectra), right)[0].numpy()
        full = net.encode(torch.from_numpy(spectra), FULL)[0].numpy()
    found = chunks_of(model, x, right)
    assert np.abs(found - offline).max() < 1e-4
    assert frames < 6 or np.abs(found - full).max() > 1e-2  # the mask does something


@pytest.mark.parametrize("decoder", ["ctc", "rnnt"])
def test_a_transducer_reads_what_torch_reads(decoder: str, tmp_path: Path) -> None:
    net = small.conformer()
    with torch.no_grad():
        net.join_out.bias[-1] -= 0.5  # say something
        net.ctc.bias[-1] -= 0.5
    model: Any = small.written(net, small.conformer_config(), tmp_path)
    frames = small.noise(30, small.SIZES.width)
    state = {name: np.zeros((1, *spec.shape), spec.dtype) for name, spec in model.transducer.specs().items()}
    read = model.transducer.ctc if decoder == "ctc" else model.transducer.greedy
    never = np.array([10**6])
    parts = [read(frames[None, at : at + 7], state, np.array([0]), never)[0] for at in range(0, 30, 7)]
    said = [int(s) for row in np.concatenate(parts) for s in row if s >= 0]
    assert said == (collapsed(net, frames) if decoder == "ctc" else greedy(net, frames))
    assert len(set(said)) > 3


def collapsed(net: Any, frames: Array) -> list[int]:
    best = net.ctc(torch.from_numpy(frames)).argmax(1).tolist()
    return [s for i, s in enumerate(best) if s != len(SYMBOLS) and (i == 0 or s != best[i - 1])]


def greedy(net: Any, frames: Array) -> list[int]:
    """The obvious way: the predictor reads all symbols again for each."""
    said: list[int] = []
    with torch.no_grad():
        for frame in torch.from_numpy(frames):
            for _ in range(10):
                told = net.predict(torch.tensor([said], dtype=torch.long))[:, -1:]
                symbol = int(net.join(frame[None, None], told)[0, 0, 0].argmax())
                if symbol == len(SYMBOLS):
                    break
                said.append(symbol)
    return said


def test_a_picker_is_its_net(tmp_path: Path) -> None:
    net = small.picker()
    assert sum(p.numel() for p in net.parameters()) == 268_443  # as the card counts
    model: Any = small.written(net, {"model_type": "phasenet"}, tmp_path)
    x = small.noise(2 * 3000, 3).reshape(2, 3000, 3)
    with torch.no_grad():
        want = net(torch.from_numpy(x.transpose(0, 2, 1).copy())).softmax(1).numpy().transpose(0, 2, 1)
    found = model.net(x)
    assert np.abs(found - want).max() < 1e-5
    np.testing.assert_array_equal(model.net(x[1:]), found[1:])  # alone as in a crowd


@pytest.mark.parametrize("branch", ["both", "temporal", "spatial"])
def test_a_classifier_is_its_net(branch: Any, tmp_path: Path) -> None:
    from diastole.models.dbconformer import FEW, Net

    net = small.classifier(branch)
    weights = {name: x.numpy() for name, x in net.state_dict().items()}
    model = Net(load(1), weights, 20, branch)
    count = 2 * FEW + 3
    x = small.noise(count * 101, 5).reshape(count, 101, 5)
    with torch.no_grad():
        want = net(torch.from_numpy(x.transpose(0, 2, 1).copy())).numpy()
    found, shares = model(x)
    assert np.abs(found - want).max() < 1e-4
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    for some in (slice(2, 3), slice(2, FEW + 5), slice(count - 1, None)):
        np.testing.assert_array_equal(model(x[some])[0], found[some])


def model_of(kind: str, out: Path) -> Any:
    if kind == "conformer":
        net = small.conformer()
        with torch.no_grad():
            net.join_out.bias[-1] -= 0.5
        return small.written(net, small.conformer_config(), out)
    if kind == "picker":
        net = small.picker()
        with torch.no_grad():
            net.last.bias[1:] += 2.0  # picks enough of noise
        return small.written(net, {"model_type": "phasenet"}, out)
    net = small.classifier()
    net.register_buffer("covariance", torch.eye(5) * 2)
    return small.written(net, small.classifier_config(), out)


INPUTS = {"conformer": (HOP * 21 + 700, 1, 0.1), "picker": (4_250, 3, 1.0), "classifier": (420, 5, 1.0)}
SPLITS = {
    "whole": lambda n: [n],
    "units": lambda n: [HOP] * (n // HOP),
    "odd": lambda n: np.random.default_rng(1).integers(1, n // 6, 60).tolist(),
    "last short": lambda n: [n - 3],
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", INPUTS)
def test_streamed_is_the_same_for_every_split(kind: str, split: str, tmp_path: Path) -> None:
    n, channels, scale = INPUTS[kind]
    x = scale * small.noise(n, channels, 7)
    model = model_of(kind, tmp_path)
    want = small.plain(small.readings(model, x, [997] * (n // 997)))
    assert want
    assert small.plain(small.readings(model, x, SPLITS[split](n))) == want


@pytest.mark.parametrize("kind", INPUTS)
def test_a_crowd_changes_nothing_and_an_abort_leaks_nothing(kind: str, tmp_path: Path) -> None:
    n, channels, scale = INPUTS[kind]
    model = model_of(kind, tmp_path)
    inputs = {f"s{i}": scale * small.noise(n - 37 * i, channels, i) for i in range(4)}
    alone = {id: small.plain(small.readings(model, x, [811] * (n // 811))) for id, x in inputs.items()}
    engine, service = serving(model, 3)
    for id in inputs:
        engine.add(Request(id, "live", None, LiveParams()))
    found: dict[str, list[Any]] = {id: [] for id in inputs}
    at = 0
    while engine.busy:
        for id, x in inputs.items():
            if at < len(x) and (id != "s1" or at < n // 2):
                engine.feed(id, Chunk(x[at : at + 811], last=at + 811 >= len(x)))
        at += 811
        if at >= n // 2:
            engine.abort("s1")
        while events := engine.step():
            for e in events:
                found[e.id] += e.data.readings
    for id in ("s0", "s2", "s3"):
        assert small.plain(found[id]) == alone[id]
    assert service.ledger.pools["cell"].used == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("conformer", {"latency_ms": 7}, "latency_ms must be one of 0, 160, 400"),
        ("conformer", {"decoder": "beam"}, "decoder must be rnnt or ctc"),
        ("conformer", {"latency": 80}, "did you mean 'latency_ms'"),
        ("picker", {"threshold_p": 2.0}, "threshold_p must be between 0 and 1"),
        ("picker", {"settle": "3"}, "option settle must be of type float"),
        ("classifier", {"align": "mine"}, "align must be stored, running or none"),
    ],
)
def test_wrong_options_are_refused_by_name(kind: str, options: Any, said: str, tmp_path: Path) -> None:
    engine, _ = serving(model_of(kind, tmp_path))
    with pytest.raises(UserError, match=said):
        engine.add(Request("s", "live", None, LiveParams(options)))
    assert not engine.busy
