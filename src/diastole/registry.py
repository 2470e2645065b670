"""The registry: the file system. A technique or model is found by the name of its file and imported when asked for.

A technique's module has a frozen dataclass ``Params``, the capabilities it ``NEEDS`` of a model, and
``TECHNIQUE(params, facts) -> {slot: policy}``. A model's module has ``build(load, config, context)``, or
``live(ops, checkpoint)`` where it takes live input, ``masked(load, config, context)`` where it fills masks,
``denoiser(ops, checkpoint)`` where it takes noise off pictures.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_type_hints

from diastole.slots import SLOTS, Facts
from diastole.types import UserError

MAKERS = ("build", "live", "masked", "denoiser")
# Names of the field for which a file has another.
_MODEL_TYPES = {
    "Dream": "dream",
    "UNet2DModel": "unet",
    "gemma3_text": "gemma3",
    "smollm2": "llama",
    "step3_text": "step3",
}


class Spec(NamedTuple):
    """ "zipcache:hi=4,lo=2" taken apart."""

    name: str
    args: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Raises:
        UserError: the text is not of this form.
        """
        name, _, rest = text.partition(":")
        args: dict[str, str] = {}
        for part in rest.split(",") if rest else []:
            key, equals, value = part.partition("=")
            key = key.strip().replace("-", "_")
            if not equals or not key or key in args:
                raise UserError(f"--use {text!r}: {part!r} is not knob=value, or twice", param="use")
            args[key] = value.strip()
        if not name.replace("-", "").replace("_", "").isalnum():
            raise UserError(f"--use {text!r}: write name or name:knob=value,knob=value", param="use")
        return cls(name.replace("_", "-"), args)

    def __str__(self) -> str:
        return self.name + (":" + ",".join(f"{k}={v}" for k, v in sorted(self.args.items())) if self.args else "")


@dataclass(frozen=True, slots=True)
class Stack:
    """The filled slots of one service: a policy, a tuple of them for chains, or None. Read them as attributes."""

    policies: Mapping[str, Any]
    fingerprint: str  # changes with every technique and knob
    owners: Mapping[str, str] = field(default_factory=dict)  # which technique fills a slot that holds one policy
    filled: tuple[tuple[str, str, Any], ...] = ()  # technique, slot, policy

    def __getattr__(self, slot: str) -> Any:
        try:
            return self.policies[slot]
        except KeyError:
            raise AttributeError(slot) from None


class Info(NamedTuple):
    """What a listing shows of a file."""

    name: str
    head: str  # first line of its docstring
    knobs: tuple[tuple[str, str, str], ...] = ()  # name, type, default


def build(
    specs: Sequence[str],
    defaults: Mapping[str, Any],
    facts: Facts,
    reads: frozenset[str] = frozenset(SLOTS),
) -> Stack:
    """Fill the slots.

    Args:
        specs: techniques as users write them.
        defaults: policies of slots that no technique claims.
        facts: of the model.
        reads: slots that the service reads; a policy in any other would change nothing.

    Raises:
        UserError: unknown technique or knob, a slot claimed twice or read by nobody, or a capability that the
            model lacks.
    """
    policies: dict[str, Any] = {s: () if kind == "chain" else defaults.get(s) for s, kind in SLOTS.items()}
    owners: dict[str, str] = {}
    filled: list[tuple[str, str, Any]] = []
    parsed = [Spec.parse(s) for s in specs]
    for spec in parsed:
        module, params = load(spec)
        name = spec.name
        lacking = frozenset(module.NEEDS) - facts.caps
        if lacking:
            raise UserError(f"{name} needs a model with {', '.join(sorted(lacking))}", param="use")
        for slot, policy in module.TECHNIQUE(params, facts).items():
            if slot not in SLOTS:
                raise UserError(f"{name} wants to fill slot {slot!r}, which does not exist", param="use")
            if slot not in reads:
                message = f"{name} fills the slot {slot!r}, which this kind of service does not read"
                raise UserError(message, param="use")
            filled.append((name, slot, policy))
            if SLOTS[slot] == "chain":
                policies[slot] = (*policies[slot], policy)
                continue
            if slot in owners:
                raise UserError(
                    f"{owners[slot]} and {name} both fill the slot {slot!r}, which holds one policy: use either",
                    param="use",
                )
            policies[slot], owners[slot] = policy, name
    text = ";".join(str(s) for s in parsed)
    return Stack(policies, hashlib.sha256(text.encode()).hexdigest()[:16] if text else "bare", owners, tuple(filled))


def load(spec: Spec) -> tuple[ModuleType, Any]:
    """A technique's module and its checked params.

    Raises:
        UserError: no such technique, or a knob it does not have or cannot take.
    """
    module = _import("techniques", spec.name.replace("-", "_"), "technique", "use")
    hints = get_type_hints(module.Params)
    known = {f.name: hints[f.name] for f in fields(module.Params)}
    values = {}
    for key, text in spec.args.items():
        if key not in known:
            raise UserError(f"{spec.name} has no knob {key!r}{_hint(key, known)}", param="use")
        values[key] = _value(spec.name, key, text, known[key])
    return module, module.Params(**values)


def _value(technique: str, key: str, text: str, kind: Any) -> Any:
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return kind(text) if kind in {int, float, str} else ast.literal_eval(text)
    except (ValueError, KeyError, SyntaxError):
        name = getattr(kind, "__name__", str(kind))
        raise UserError(f"{technique}: {key} must be of type {name}, not {text!r:.60}", param="use") from None


def architecture(name: str) -> ModuleType:
    """The module of an architecture, by its file's name.

    Raises:
        UserError: there is none.
    """
    return _import("models", name.replace("-", "_"), "architecture", "model")


def model(model_type: str) -> ModuleType:
    """The module that makes models from checkpoints of Hugging Face's ``model_type``.

    Raises:
        UserError: it is not supported.
    """
    module = architecture(_MODEL_TYPES.get(model_type, model_type))
    if not any(hasattr(module, maker) for maker in MAKERS):
        raise UserError(f"a model of type {model_type!r} is not made from a checkpoint", param="model")
    return module


def _import(package: str, name: str, what: str, param: str) -> ModuleType:
    known = {p.stem for p in _files(package)}
    if name not in known:
        raise UserError(f"unknown {what} {name.replace('_', '-')!r}{_hint(name, known)}", param=param)
    return importlib.import_module(f"diastole.{package}.{name}")


def _hint(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    if close:
        return f"; did you mean {close[0].replace('_', '-')!r}?"
    return f"; there are {', '.join(sorted(k.replace('_', '-') for k in known)) or 'none'}"


def _files(package: str) -> list[Path]:
    import diastole

    found = itertools.chain.from_iterable(Path(p, package).glob("*.py") for p in diastole.__path__)
    return sorted(p for p in found if not p.stem.startswith("_"))


def techniques() -> list[Info]:
    """All techniques, read without importing them."""
    return [_info(p) for p in _files("techniques")]


def models() -> list[Info]:
    """All architectures, read without importing them."""
    return [_info(p) for p in _files("models")]


def _info(path: Path) -> Info:
    tree = ast.parse(path.read_text("utf-8"))
    head = (ast.get_docstring(tree) or "").partition("\n")[0]
    knobs = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Params":
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    default = ast.unparse(line.value) if line.value else ""
                    knobs.append((line.target.id, ast.unparse(line.annotation), default))
    return Info(path.stem.replace("_", "-"), head, tuple(knobs))
