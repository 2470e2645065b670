"""TidalDecode: what a technique owes, and that it attends to what it says."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from diastole.engine.service import Service
from diastole.nn.selection import Tokens
from diastole.types import Array, UserError
from techniques import owed

USE = "tidaldecode:budget=64,layers=2+7,dense_below=100,correct_every=16"


@pytest.mark.parametrize("share", ["group", "head", "layer"])
@pytest.mark.parametrize("kv", ["rows", "rows8", "bf16", "int8", "f32"])
def test_a_budget_for_everything_is_dense(share: str, kv: str) -> None:
    owed.same_as_plain(f"tidaldecode:budget=2048,dense_below=1,layers=2+7,share={share}", kv=kv)


def test_it_acts() -> None:
    owed.acts(USE)


def test_below_its_threshold_it_does_nothing() -> None:
    owed.same_as_plain("tidaldecode:budget=64,layers=2+7,dense_below=2000")


def test_company_and_chunks_change_nothing() -> None:
    owed.indifferent_to_company(USE)


@pytest.mark.parametrize("kv", ["rows", "rows8", "bf16", "int8", "f32"])
def test_without_coming_back_between_layers(monkeypatch: pytest.MonkeyPatch, kv: str) -> None:
    owed.same_without_coming_back(monkeypatch, USE, kv=kv)


def test_preemption_changes_nothing() -> None:
    owed.survives_preemption(USE)


def test_abort_leaks_nothing() -> None:
    owed.abort_leaks_nothing(USE)


@pytest.mark.parametrize("seed", range(2))
def test_random_life(seed: int) -> None:
    owed.random_life(USE, seed=seed)


def test_how_much_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every decode row attends to ``budget`` tokens in 16 - 2 - 2 layers, with the first and the latest among them."""
    seen: list[tuple[int, np.ndarray, np.ndarray]] = []
    attend = Tokens.attend

    def watched(self: Tokens, view, q, out, lse) -> None:  # type: ignore[no-untyped-def]
        seen.append((view.layer, self.counts, self.at[0, :, : self.counts[0, 0]]))
        attend(self, view, q, out, lse)

    owed.layer_by_layer(monkeypatch)
    monkeypatch.setattr(Tokens, "attend", watched)
    owed.alone(
        owed.service("tidaldecode:budget=64,layers=2+7,dense_below=100,correct_every=0"), owed.prompt(300), most=6
    )
    assert len(seen) == 5 * 12  # the first token comes from the prompt
    assert {layer for layer, _, _ in seen} == set(range(3, 16)) - {7}
    for _, counts, at in seen:
        assert (counts == 64).all()
        assert all(len(set(row)) == 64 for row in at.tolist())
    by_layer = [at for layer, _, at in seen if layer in {3, 6}][:2]
    np.testing.assert_array_equal(by_layer[0], by_layer[1])  # positions persist
    assert any((a != b).any() for (x, _, a), (y, _, b) in pairwise(seen) if (x, y) == (6, 8))


def test_corrected_rows_are_those_of_a_prompt() -> None:
    """After a correction nothing of the past is approximate: the stream's state equals that of its text as a prompt."""
    of = owed.service("tidaldecode:budget=64,layers=2+7,dense_below=100,correct_every=8", prefix=False)
    tokens = owed.prompt(300)
    life = owed.Life(of)
    life.ask("it", tokens, most=100)
    while len(life.said.get("it", ())) < 9:  # eight absorbed, and computed again
        life.step()
    life.step()
    assert (of.ledger.running[0].given, of.ledger.running[0].done) == (308, 308)
    corrected = stored(of, 308)
    plain = owed.Life(owed.service(kv="rows", prefix=False))
    plain.ask("it", tokens + [t for t, _ in life.said["it"][:8]], most=5)
    while not plain.said:
        plain.step()
    for got, want in zip(corrected, stored(plain.service, 308), strict=True):
        np.testing.assert_array_equal(got, want)


def stored(of: Service, n: int) -> list[Array]:
    """Keys and values of all layers of the only stream's first ``n`` tokens."""
    pool, kv = of.ledger.pools["kv"], of.state["kv"]
    tables = pool.tables([of.ledger.running[0].leases["kv"]])
    rows = pool.rows(tables, np.zeros(n, np.int32), np.arange(n, dtype=np.int32))
    return [a for layer in range(16) for a in kv.read(layer, rows)]


@pytest.mark.parametrize(
    ("knobs", "what"),
    [
        ("budget=10", "budget must hold sink and recent"),
        ("layers=13+2", "layers must be auto, or layers in order"),
        ("layers=2+40", "each below 16"),
        ("layers=two", "layers must be"),
        ("share=all", "share must be"),
        ("correct_every=-1", "correct_every"),
        ("recent=0", "recent"),
    ],
)
def test_wrong_knobs_are_named(knobs: str, what: str) -> None:
    with pytest.raises(UserError, match=what) as e:
        owed.service(f"tidaldecode:{knobs}")
    assert e.value.param == "use"


def test_two_selectors_are_refused() -> None:
    with pytest.raises(UserError, match="tidaldecode and tidaldecode both fill"):
        owed.service(USE, USE)
