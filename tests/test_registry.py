"""The registry: techniques by file name, slots without double owners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import diastole
from diastole import registry
from diastole.slots import SLOTS, Facts
from diastole.types import UserError

FAKE = '''"""A made-up technique."""
from dataclasses import dataclass
NEEDS = frozenset({needs})
@dataclass(frozen=True)
class Params:
    size: int = 4  # of it
    rate: float = 0.5
    on: bool = False
    long_knob: int = 0
def TECHNIQUE(p, facts):
    return {{{slots}}}
'''


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A second folder of techniques."""
    (tmp_path / "techniques").mkdir()
    monkeypatch.setattr(diastole, "__path__", [*diastole.__path__, str(tmp_path)])
    import diastole.techniques as package

    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "techniques")])
    for name, needs, slots in (
        ("one_fake", "()", "'select': p, 'probe': 'probe of one'"),
        ("two_fake", "()", "'probe': 'probe of two'"),
        ("rival_fake", "()", "'select': 'rival'"),
        ("wing_fake", "{'wings'}", "'kernel': 1"),
        ("odd_fake", "()", "'oven': 1"),
    ):
        (tmp_path / "techniques" / f"{name}.py").write_text(FAKE.format(needs=needs, slots=slots))
    return tmp_path


def build(*specs: str, **defaults: Any) -> registry.Stack:
    return registry.build(specs, defaults, Facts(frozenset({"paged_kv"})))


def test_an_empty_stack_holds_the_defaults_and_every_slot() -> None:
    stack = build(kv="store")
    assert stack.kv == "store"
    assert stack.probe == ()
    assert stack.select is None
    assert set(stack.policies) == set(SLOTS)
    with pytest.raises(AttributeError):
        _ = stack.oven


def test_slots_are_filled_by_name_with_checked_knobs(fakes: Path) -> None:
    stack = build("one-fake:size=7,rate=0.25,on=true", "two_fake")
    assert (stack.select.size, stack.select.rate, stack.select.on) == (7, 0.25, True)
    assert stack.probe == ("probe of one", "probe of two")


def test_fingerprints_follow_techniques_and_knobs(fakes: Path) -> None:
    prints = {build(*s).fingerprint for s in ([], ["one-fake"], ["one-fake:size=5"], ["two-fake"])}
    assert len(prints) == 4
    assert build("one-fake:long-knob=5").select.long_knob == build("one-fake:long_knob=5").select.long_knob == 5
    assert build("one-fake:size=5,rate=1").fingerprint == build("one_fake:rate=1,size=5").fingerprint


@pytest.mark.parametrize(
    ("specs", "what"),
    [
        (["one-fake", "rival-fake"], "one-fake and rival-fake both fill the slot 'select'"),
        (["wing-fake"], "wing-fake needs a model with wings"),
        (["odd-fake"], "slot 'oven', which does not exist"),
        (["one-fak"], "did you mean 'one-fake'"),
        (["one-fake:sise=3"], "did you mean 'size'"),
        (["one-fake:size=big"], "size must be of type int, not 'big'"),
        (["one-fake:on=maybe"], "on must be of type bool"),
        (["one-fake:size"], "not knob=value"),
        (["one-fake:size=1,size=2"], "twice"),
        (["../evil"], "write name"),
    ],
)
def test_what_does_not_fit_is_named(fakes: Path, specs: list[str], what: str) -> None:
    with pytest.raises(UserError, match=what) as e:
        build(*specs)
    assert e.value.param == "use"


def test_listings_read_without_importing(fakes: Path) -> None:
    found = {t.name: t for t in registry.techniques()}
    assert {"orca", "int8-kv", "one-fake"} <= set(found)
    assert found["one-fake"].head == "A made-up technique."
    assert found["one-fake"].knobs[0] == ("size", "int", "4")
    assert {"llama", "gemma3"} <= {m.name for m in registry.models()}


def test_architectures_by_model_type() -> None:
    assert registry.model("gemma3_text").__name__.endswith("gemma3")
    with pytest.raises(UserError, match="did you mean 'llama'"):
        registry.model("lama")
    with pytest.raises(UserError, match="not made from a checkpoint"):
        registry.model("tinyconv")
