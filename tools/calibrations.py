"""Writes the calibrations that come with Diastole: of the embedded model, and of the tiny one that tests run on.

``python tools/calibrations.py`` takes minutes. It is needed when a calibration's file format or meaning changes, or the
tiny model does.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from diastole.assets import resolve
from diastole.bench.rig import Rig
from diastole.bench.tiny import TinyLlama
from diastole.calibrate import job
from diastole.clock import FakeClock
from diastole.config import ServiceConfig
from diastole.engine.assemble import assemble
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.kernels.table import load
from diastole.nn.linear import Loader
from diastole.slots import Facts
from diastole.weights import open_checkpoint
from diastole.weights.calibration import shipped

EMBEDDED = "smollm2-135m"
TOKENS = 8_192  # random ones, for the tiny model


def embedded(technique: str) -> None:
    """As any user would make it."""
    facts = Facts(frozenset(), fingerprint=open_checkpoint(resolve(EMBEDDED)).fingerprint)
    command = [sys.executable, "-m", "diastole.cli.main", "calibrate", technique, EMBEDDED]
    subprocess.run([*command, "--out", str(shipped(technique, facts))], check=True)


def tiny(technique: str) -> None:
    """Of random tokens, because it knows no language."""
    model = TinyLlama()
    config = ServiceConfig(model="tiny", kv="f32", max_streams=1)
    service = assemble("tiny", Loader(load(1), model, "auto"), config, frozenset(), 256 << 20, 0)
    with Rig.around(Engine([service], FakeClock(), LeastSlack()), kernels="native") as rig:
        facts = rig.decoder.facts(model)
        ids = np.random.default_rng(0).integers(0, rig.vocab, TOKENS).tolist()
        found = job.calibrate(technique, facts, job.Job(rig, ids), {"texts": "random tokens"})
    found.write(shipped(technique, facts))
    print(f"written: {shipped(technique, facts)}")


def main() -> None:
    for technique in job.techniques():
        tiny(technique)
        embedded(technique)


if __name__ == "__main__":
    main()
