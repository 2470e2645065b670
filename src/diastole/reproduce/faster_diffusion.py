"""Faster Diffusion: a UNet's encoder in nine of fifty steps, against all steps and against fewer steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from diastole.bench.filling import Painter
from diastole.kernels.table import physical_cores
from diastole.params import PictureParams
from diastole.recipes import clothes_classifier, pictures
from diastole.reproduce.must import at_least, at_most, equal_to, less_than
from diastole.reproduce.study import Study
from diastole.reproduce.timing import Spread
from diastole.types import Array

PAPER = "Faster Diffusion: the encoder in nine of fifty steps, the decoder for many at once"

MODEL = "unet"
STEPS, GUIDANCE, TOGETHER = 50, 2.0, 8
PARALLEL, SERIAL = ("faster-diffusion",), ("faster-diffusion:parallel=false",)
EVERY = ("faster-diffusion:keys=1",)
NOISY = ("faster-diffusion:noise=0.003",)
UNIFORM = ("faster-diffusion:keys=0+6+11+17+22+28+33+39+44",)  # nine, evenly


def run(study: Study) -> None:
    """Time alone and in a crowd, then pictures by a classifier of real ones."""
    torch.set_num_threads(physical_cores())
    share = _time(study)
    _exact(study)
    _premise(study)
    _pictures(study, max(round(STEPS * share), 1))
    study.note(
        "pictures of 16 x 16 by a net of 1.9 million weights; distances are Frechet's in the features of a classifier "
        "of real ones that was trained in this run: no FID, no CLIP score"
    )


def _wishes(number: int, seed: int, steps: int = STEPS) -> list[PictureParams]:
    labels = len(pictures.LABELS)
    return [PictureParams(steps, i % labels, GUIDANCE, 100_000 * (seed + 1) + i) for i in range(number)]


def _time(study: Study) -> float:
    """Its time alone, as a share of all steps'."""
    shares = {}
    for together, most in ((1, 0.60), (TOGETHER, 0.70)):
        wishes = _wishes(together, study.seed)
        with (
            Painter(MODEL, (), together) as full,
            Painter(MODEL, SERIAL, together) as serial,
            Painter(MODEL, PARALLEL, together) as parallel,
        ):
            painters = {"full": full, "serial": serial, "parallel": parallel}
            work = {name: partial(p.paint, wishes) for name, p in painters.items()}
            times = study.interleaved(work, 2 if study.quick else 7, what=f"{together} together")
            at_once: int = full.service.model.decoded
        found = {n: Spread.of([1 / x for x in _ratios(times, n)]) for n in ("serial", "parallel")}
        shares[together] = float(found["parallel"])
        study.check(
            f"time over all steps', {together} together", found["parallel"], at_most(most), unit="x", claim="0.59x",
            headline=together == 1, why=_saved(study, together) if shares[together] > most else "",
        )  # fmt: skip
        study.check(
            f"time together over one by one, {together} together",
            float(found["parallel"]) / float(found["serial"]),
            at_most(1.0),
            unit="x",
            why=f"a step of {together} has {2 * together} rows already, and {at_once} run in one go, which "
            "the second cache holds: more steps at once fill nothing"
            if 2 * together >= at_once
            else "",
        )
    return shares[1]


def _saved(study: Study, together: int) -> str:
    """How much leaving the encoder out can save of a step of so many pictures."""
    rows = 2 * together  # with guidance
    with Painter(MODEL, (), 1) as painter:
        model: Any = painter.service.model
        net = model.net
        x = np.random.default_rng(study.seed).standard_normal((rows, *model.size)).astype(np.float32)
        emb = net.embedded(np.full(rows, 500), np.arange(rows) % len(pictures.LABELS))
        features = net.encode(x, emb)
        work = {"encoder": partial(net.encode, x, emb), "decoder": partial(net.decode, features, emb)}
        times = study.interleaved(work, 7, what=f"encoder and decoder of {rows}")
    encoder, decoder = times.median("encoder"), times.median("decoder")
    share = encoder / (encoder + decoder)
    left = 1 - share * (1 - 9 / STEPS)
    return f"of a step of {rows} the encoder is {100 * share:.0f}%, so nine in {STEPS} of it leave {left:.2f}x at least"


def _ratios(times: Any, name: str) -> Sequence[float]:
    return [a / b for a, b in zip(times.seconds["full"], times.seconds[name], strict=True)]


def _exact(study: Study) -> None:
    """What must be the same to the bit."""
    wishes = _wishes(4, study.seed)
    uses: dict[str, Sequence[str]] = {"full": (), "every": EVERY, "serial": SERIAL, "parallel": PARALLEL}
    found = {}
    for name, use in uses.items():
        with Painter(MODEL, use, 4) as painter:
            found[name] = np.stack([p.x for p in painter.paint(wishes)])
    same = bool((found["full"] == found["every"]).all())
    study.check("with every step a key it is the model by itself, to the bit", same, equal_to(True))
    same = bool((found["serial"] == found["parallel"]).all())
    study.check("together as one by one, to the bit", same, equal_to(True))


def _premise(study: Study) -> None:
    """From step to step the encoder's outputs change less than the decoder's."""
    with Painter(MODEL, (), 1) as painter:
        model: Any = painter.service.model
        net, schedule = model.net, model.schedule
        times = schedule.chosen(STEPS)
        x = np.random.default_rng(study.seed).standard_normal((4, *model.size)).astype(np.float32)
        before: dict[str, list[Array]] = {}
        drift: dict[str, list[float]] = {"encoder": [], "decoder": []}
        for t, then in zip(times, [*times[1:], -1], strict=True):
            emb = net.embedded(np.full(4, t), np.arange(4))
            seen = net.seen(x, emb)
            levels = list(net.levels(net.ready(seen), emb))
            for name, now in (("encoder", seen), ("decoder", levels)):
                if name in before:
                    drift[name].append(_changed(before[name], now))
                before[name] = now
            x = schedule.earlier(x, net.last(levels[-1]), t, then)
    for name, values in drift.items():
        study.curve("change from step to step", range(1, STEPS), values, label=name, xlabel="step", ylabel="relative")
    means = {name: float(np.mean(values)) for name, values in drift.items()}
    share = means["encoder"] / means["decoder"]
    told = ", the ".join(f"{name}'s by {100 * mean:.1f}%" for name, mean in means.items())
    study.check(
        "change of the encoder's outputs over the decoder's",
        share,
        less_than(0.5),
        claim="hardly any",
        why=f"from step to step the {told}: in this small net the decoder's change as little" if share >= 0.5 else "",
    )


def _changed(before: Sequence[Array], now: Sequence[Array]) -> float:
    """Relative change in Frobenius' norm, mean over layers."""
    found = [np.linalg.norm(b - a) / max(float(np.linalg.norm(a)), 1e-9) for a, b in zip(before, now, strict=True)]
    return float(np.mean(found))


def _pictures(study: Study, fewer: int) -> None:
    """Accuracy and distance by a classifier of real pictures."""
    number = 24 if study.quick else 1000
    judge = clothes_classifier.trained(study.seed, epochs=1 if study.quick else 3)
    base, fast, plain = "all steps", "faster-diffusion", f"{fewer} steps"
    shown = {
        base: _painted(study, base, number, ()),
        fast: _painted(study, fast, number, PARALLEL),
        plain: _painted(study, plain, number, (), fewer),
        "with noise": _painted(study, "with noise", number, NOISY),
        "nine keys, evenly": _painted(study, "nine keys, evenly", number, UNIFORM),
    }
    labels = np.arange(number) % len(pictures.LABELS)
    known = judge.features(pictures.fashion()[1].x)
    right = {n: 100 * float(np.mean(judge.classes(x) == labels)) for n, x in shown.items()}
    apart = {n: clothes_classifier.distance(judge.features(x), known) for n, x in shown.items()}
    texture = {n: fine(x) for n, x in shown.items()}
    study.table(
        f"{number} pictures of each; of real ones {100 * judge.accuracy:.1f}% are told right",
        ("pictures", "told right (%)", "distance to real ones", "fine structure"),
        [(n, round(right[n], 1), round(apart[n], 3), round(texture[n], 4)) for n in shown],
    )
    lost = right[base] - right[fast]
    study.check("points that fewer are told right", lost, at_most(2.0), baseline=f"{right[base]:.1f}%")
    more, noisy = (apart[n] / apart[base] for n in (fast, "with noise"))
    study.check("distance over all steps'", more, at_most(1.10), unit="x", claim="on par")
    study.note(f"0.003 of the first noise, which is added to latents, leaves {noisy:.2f} times the distance in pixels")
    rival = apart[fast] / apart[plain]
    study.check(
        f"distance over that of {plain}, which take as long",
        rival,
        at_most(1.0),
        unit="x",
        why=_too_typical(right, apart, judge.accuracy, base, plain) if rival > 1 else "",
    )
    off = {n: abs(texture[n] - texture[base]) for n in (fast, "with noise")}
    closer = off["with noise"] / max(off[fast], 1e-9)
    lacking = 100 * off[fast] / texture[base]
    study.check(
        "fine structure with 0.003 of the first noise: how far from all steps', over that without",
        closer,
        at_most(1.0),
        unit="x",
        claim="noise gives texture back",
        why=f"without noise it is {lacking:.1f}% off: there is little to give back" if closer > 1 else "",
    )
    evenly = apart["nine keys, evenly"] / apart[fast]
    study.check("distance with nine keys evenly over that with 50ls", evenly, at_least(1.0), unit="x")


def _too_typical(right: dict[str, float], apart: dict[str, float], real: float, base: str, plain: str) -> str:
    """Whether the distance says that pictures are worse at all."""
    if apart[plain] >= apart[base]:
        return ""
    return (
        f"{plain} come closer to real ones than {base} too ({apart[plain]:.2f} to {apart[base]:.2f}): with guidance "
        f"{GUIDANCE:g} pictures are more typical than real ones ({right[base]:.1f}% are told right, of real ones "
        f"{100 * real:.1f}%), and fewer steps make them less so"
    )


def _painted(study: Study, name: str, number: int, use: Sequence[str], steps: int = STEPS) -> Array:
    """Pictures (N, H, W)."""
    made: list[Array] = []
    wishes = _wishes(number, study.seed + 1, steps)
    with Painter(MODEL, use, TOGETHER) as painter, study.progress(name, number) as step:
        for at in range(0, number, TOGETHER):
            made += [p.x[..., 0] for p in painter.paint(wishes[at : at + TOGETHER])]
            for _ in wishes[at : at + TOGETHER]:
                step()
    return np.stack(made)


def fine(x: Array) -> float:
    """Share of a picture's energy in the upper half of its frequencies. x (N, H, W)."""
    power = np.abs(np.fft.rfft2(x - x.mean((1, 2), keepdims=True))) ** 2
    n = x.shape[1]
    high = np.maximum(np.abs(np.fft.fftfreq(n))[:, None], np.fft.rfftfreq(n)) > 0.25
    return float(power[:, high].sum() / power.sum())
