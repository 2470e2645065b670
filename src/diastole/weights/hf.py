"""A Hugging Face directory as a checkpoint: config.json and safetensors, single or in shards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from diastole.types import Array
from diastole.weights.error import WeightsError
from diastole.weights.layout import check_shapes
from diastole.weights.quants import Raw, dequantize
from diastole.weights.safefile import json_object, read_shard, supported

_INDEX = "model.safetensors.index.json"
_PREFIXES = (("model.language_model.", "model."), ("language_model.", ""))  # of the text part of a larger model


class HFCheckpoint:
    """A checkpoint in a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        whole = json_object(path / "config.json")
        text = whole.get("text_config")
        self._part = isinstance(text, dict) and "hidden_size" not in whole
        beside = {k: v for k, v in whole.items() if k.endswith("_token_id") or k == "tie_word_embeddings"}
        self.config: dict[str, Any] = {**beside, **text} if self._part and isinstance(text, dict) else whole
        if isinstance(self.config.get("_class_name"), str):  # as diffusers calls a model's type
            self.config.setdefault("model_type", self.config["_class_name"])
        if not isinstance(self.config.get("model_type"), str):
            raise WeightsError(path / "config.json", "names no model_type")
        self._tensors: dict[str, Raw] = {}
        self._passed_over: dict[str, str] = {}  # name -> what it is stored as
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        claimed = self._index()
        for shard in self._shards(claimed):
            found = read_shard(shard, self._name, {**self._tensors, **self._passed_over})
            self._tensors |= found.tensors
            self._passed_over |= found.passed_over
            digest.update(found.mark)
        for name, shard_name in claimed.items():
            if self._name(name) not in self._tensors and self._name(name) not in self._passed_over:
                raise WeightsError(path / _INDEX, f"says that {shard_name!r} holds {name!r}, which it does not")
        check_shapes(path, self.config, ((n, r.shape) for n, r in self._tensors.items()))
        self.fingerprint = digest.hexdigest()

    def names(self) -> list[str]:
        return list(self._tensors)

    def raw(self, name: str) -> Raw:
        if name in self._passed_over:
            raise WeightsError(self.path, f"tensor {name!r} is stored as {self._passed_over[name]}; {supported()}")
        if name not in self._tensors:
            raise WeightsError(self.path, f"has no tensor {name!r}")
        return self._tensors[name]

    def f32(self, name: str) -> Array:
        return dequantize(self.raw(name))

    def close(self) -> None:
        self._tensors.clear()

    def _name(self, stored: str) -> str:
        """The name within the text model."""
        for prefix, better in _PREFIXES if self._part else ():
            if stored.startswith(prefix):
                return better + stored.removeprefix(prefix)
        return stored

    def _index(self) -> dict[str, str]:
        """Tensor names to shard names, where there is an index."""
        index = self.path / _INDEX
        if not index.exists():
            return {}
        names = json_object(index).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
            raise WeightsError(index, "has no weight_map of tensor names to file names")
        for shard in set(names.values()):
            if Path(shard).name != shard or not shard.isprintable():
                raise WeightsError(index, f"names a file outside its directory: {shard!r:.200}")
        return names

    def _shards(self, claimed: dict[str, str]) -> list[Path]:
        if claimed:
            return [self.path / s for s in sorted(set(claimed.values()))]
        whole = self.path / "model.safetensors"
        files = [whole] if whole.exists() else sorted(self.path.glob("*.safetensors"))
        if files:
            return files
        if list(self.path.glob("*.bin")) or list(self.path.glob("*.pt*")):
            raise WeightsError(self.path, "holds a pickled PyTorch checkpoint, which could run code; use safetensors")
        ggufs = ", ".join(p.name for p in sorted(self.path.glob("*.gguf"))[:3])
        hint = f"; give one of its GGUF files instead: {ggufs}" if ggufs else ""
        raise WeightsError(self.path, f"holds no .safetensors file{hint}")
