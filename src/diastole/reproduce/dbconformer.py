"""DBConformer: two branches against each alone and against small rivals, on recordings of brains."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

import numpy as np
import torch

from diastole.bench.streaming import opened
from diastole.kernels.table import load, physical_cores
from diastole.recipes import brainwaves, dbconformer
from diastole.reproduce.live_parts import carry, check_carried
from diastole.reproduce.must import at_least, at_most, equal_to, more_than
from diastole.reproduce.study import Study
from diastole.types import Array

PAPER = "DBConformer: time and channels in two small branches, for EEG"

SETS = ("SelfRegulationSCP1", "HandMovementDirection", "Blink")
MODELS = ("DBConformer", "temporal alone", "spatial alone", "EEGNet")
EPOCHS = 200  # the paper's
SEEDS = 5
RIVAL_SEEDS = 3  # of EEGNet, by which nothing is judged
STREAMS = 200  # on one core
BINS = 5  # samples that the ridge's features are means of


class Training(NamedTuple):
    """One net to be trained anew."""

    model: str
    data: str
    seed: int
    epochs: int


class Right(NamedTuple):
    """Shares of the test windows that it tells right."""

    apart: float  # aligned by the training windows
    whole: float  # aligned by themselves


def run(study: Study) -> None:
    """Accuracy on three sets, size, and streams."""
    torch.set_num_threads(physical_cores())
    seeds = 1 if study.quick else SEEDS
    sets = SETS[:1] if study.quick else SETS
    known = {name: brainwaves.load(name) for name in sets}  # before the workers, who would all fetch them
    found = _trained(study, sets, seeds)
    apart, whole = ({key: [r[i] for r in rights] for key, rights in found.items()} for i in (0, 1))
    rows: list[tuple[float | str, ...]] = []
    for name, data in known.items():
        majority = float(np.bincount(data.test[1]).max() / len(data.test[1]))
        rows.append((name, *(_said(apart[m, name]) for m in MODELS), round(ridge(data), 3), round(majority, 3)))
    title = f"accuracy on the sets' own test windows, {seeds} seeds" + (
        "" if study.quick else f", EEGNet {RIVAL_SEEDS}"
    )
    study.table(title, ("set", *MODELS, "ridge", "majority"), rows)
    study.table(
        "the same where the test windows are aligned by themselves, all of them, as the public code does: nobody could "
        "while they come",
        ("set", *MODELS),
        [(name, *(_said(whole[m, name]) for m in MODELS)) for name in sets],
    )
    study.note(
        "alignment is by the training windows alone in all that is judged. Ridge: "
        "means of five samples, its strength by cross-validation on the training windows"
    )
    if not study.quick:
        _branches(study, apart, {str(row[0]): float(row[-1]) for row in rows}, seeds)
        hands = float(np.mean(apart["DBConformer", "HandMovementDirection"]))
        study.check("accuracy on HandMovementDirection", hands, more_than(0.52), baseline="majority 0.405")
    scp = float(np.mean(apart["DBConformer", "SelfRegulationSCP1"]))
    study.check("accuracy on SelfRegulationSCP1", scp, at_least(0.7 if study.quick else 0.85), headline=not study.quick)
    _rivals(study, apart, rows)
    _size(study)
    _windows(study)
    check_carried(study, carry(opened("dbconformer", load(1)), STREAMS, 4 if study.quick else 20), "EEG streams")


def _trained(study: Study, sets: Sequence[str], seeds: int) -> dict[tuple[str, str], list[Right]]:
    """Every model on every set with every seed, one training to a core: two threads of one hardly help each other."""
    epochs = EPOCHS // 18 if study.quick else EPOCHS
    wanted = [
        Training(m, s, study.seed + i, epochs)
        for i in range(seeds)
        for s in sets
        for m in MODELS
        if i < RIVAL_SEEDS or m != "EEGNet"
    ]
    found: dict[Training, Right] = {}
    fresh = multiprocessing.get_context("spawn")
    with (
        study.progress("trainings", len(wanted)) as step,
        ProcessPoolExecutor(physical_cores(), fresh, torch.set_num_threads, (1,)) as pool,
    ):
        begun = {pool.submit(_accuracies, training): training for training in wanted}
        try:
            for future in as_completed(begun):
                found[begun[future]] = future.result()
                step()
        finally:
            pool.shutdown(cancel_futures=True)  # after an interruption nobody waits for what has not begun
    return {(m, s): [found[t] for t in wanted if (t.model, t.data) == (m, s)] for m in MODELS for s in sets}


def _said(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def _accuracies(training: Training) -> Right:
    """Of a net that is trained anew."""
    data = brainwaves.load(training.data)
    (x, y), (xt, yt) = data.train, data.test
    by = dbconformer.covariance(x)
    torch.manual_seed(training.seed)
    shape = x.shape[1], x.shape[2]
    net: torch.nn.Module
    if training.model == "EEGNet":
        net = dbconformer.EEGNet(*shape, len(data.labels), data.kind.rate)
    else:
        branch: Any = {"DBConformer": "both"}.get(training.model, training.model.split()[0])
        net = dbconformer.Net(*shape, data.kind.patch, len(data.labels), branch)
    plan = dbconformer.Plan(data.name, training.epochs, seed=training.seed)
    dbconformer.fit(net, dbconformer.aligned(x, by), y, plan)
    apart, whole = (dbconformer.aligned(xt, c) for c in (by, dbconformer.covariance(xt)))
    return Right(dbconformer.accuracy(net, apart, yt), dbconformer.accuracy(net, whole, yt))


def ridge(data: brainwaves.Set) -> float:
    """Least squares on means of a few samples, as the card's anchors were made."""

    def features(x: Array) -> Array:
        n = x.shape[2] // BINS * BINS
        means = x[:, :, :n].reshape(*x.shape[:2], -1, BINS).mean(3)
        return means.reshape(len(x), -1).astype(np.float64)

    (x, y), (xt, yt) = data.train, data.test
    a, at = features(x), features(xt)
    mean, deviation = a.mean(0), np.maximum(a.std(0), 1e-9)
    a, at = (a - mean) / deviation, (at - mean) / deviation
    goal = np.eye(len(data.labels))[y] - 1 / len(data.labels)

    def fitted(a: Array, goal: Array, strength: float) -> Array:
        weights: Array = a.T @ np.linalg.solve(a @ a.T + strength * np.eye(len(a)), goal)
        return weights

    folds = np.arange(len(y)) * 5 // len(y)  # in order: recordings drift
    scores = {}
    for strength in 10.0 ** np.arange(1, 6):
        right = [
            (a[folds == f] @ fitted(a[folds != f], goal[folds != f], strength)).argmax(1) == y[folds == f]
            for f in range(5)
        ]
        scores[strength] = float(np.concatenate(right).mean())
    best = max(scores, key=lambda s: scores[s])
    return float(((at @ fitted(a, goal, best)).argmax(1) == yt).mean())


def _branches(study: Study, found: dict[tuple[str, str], list[float]], majority: dict[str, float], seeds: int) -> None:
    """The two together against each alone, over sets and seeds."""
    both = np.array([found["DBConformer", s] for s in SETS])
    for single in MODELS[1:3]:
        alone = np.array([found[single, s] for s in SETS])
        gain = (both - alone).mean(0)  # of each seed, over sets
        value = float(gain.mean()) + float(gain.std(ddof=1) / np.sqrt(seeds))
        study.check(
            f"both branches over {single}, mean over sets plus a standard error",
            value,
            at_least(0),
            claim="both together are best",
            why=_what_channels_tell(found, majority) if value < 0 else "",
        )


def _what_channels_tell(found: dict[tuple[str, str], list[float]], majority: dict[str, float]) -> str:
    """How many sets the branch over channels knows anything of."""
    known = [s for s in SETS if np.mean(found["spatial alone", s]) > majority[s]]
    counts = [len(brainwaves.load(s).train[0][0]) for s in SETS]
    told = ", ".join(f"{np.mean(found['spatial alone', s]):.3f} where {majority[s]:.3f} guess" for s in SETS)
    return (
        f"the branch over channels knows more than the majority on {len(known)} of {len(SETS)} sets ({told}): these "
        f"have {min(counts)} to {max(counts)} channels, the paper's example 22"
    )


def _rivals(study: Study, found: dict[tuple[str, str], list[float]], rows: list[tuple[float | str, ...]]) -> None:
    """The paper's claim over other nets, on these sets: told, and decides nothing."""
    for row in rows:
        name = str(row[0])
        both = float(np.mean(found["DBConformer", name]))
        for rival, value in (("EEGNet", float(np.mean(found["EEGNet", name]))), ("ridge", float(row[-2]))):
            verdict = "holds" if both >= value else "does not hold here"
            study.note(f"{name}: better than {rival}: {verdict} ({both:.3f} and {value:.3f})")


def conformer_weights(channels: int, window: int, classes: int) -> int:
    """Of EEG Conformer (Song et al., 2023) with its public sizes: 40 filters, six layers, a flattened head."""
    d = 40
    stem = d * 25 + d + d * d * channels + d + 2 * d + d * d + d
    layers = 6 * (2 * 2 * d + 4 * (d * d + d) + 2 * 4 * d * d + 5 * d)
    tokens = (window - 24 - 75) // 15 + 1
    head = tokens * d * 256 + 256 + 256 * 32 + 32 + 32 * classes + classes
    return stem + layers + head


def _size(study: Study) -> None:
    for what, channels, window, patch, classes in (
        ("the paper's 22 channels of 4 s", 22, 1000, 125, 4),
        ("SelfRegulationSCP1", 6, 896, 112, 2),
    ):
        own = sum(p.numel() for p in dbconformer.Net(channels, window, patch, classes).parameters())
        share = own / conformer_weights(channels, window, classes)
        if channels == 22:
            study.check(f"parameters over EEG Conformer's, at {what}", share, at_most(1 / 8), claim="over 8x fewer")
        study.note(f"{what}: {own:,} parameters, 1/{1 / share:.1f} of EEG Conformer's")


def _windows(study: Study) -> None:
    """The shipped model's answers to windows alone and together."""
    model: Any = opened("dbconformer", load(1))
    x = np.ascontiguousarray(brainwaves.load("SelfRegulationSCP1").test[0][:16].transpose(0, 2, 1))
    together, _ = model.net(x)
    alone = np.concatenate([model.net(w[None])[0] for w in x])
    study.check("windows answered alone as in a batch, to the bit", bool((together == alone).all()), equal_to(True))
