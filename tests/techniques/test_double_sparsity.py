"""Double Sparsity: what a technique owes, and that it attends to what its labels tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diastole.bench.tiny import TinyLlama
from diastole.nn.selection import Tokens
from diastole.slots import Facts, View
from diastole.types import Array, UserError
from diastole.weights.calibration import Calibration, about, beside, find, shipped
from techniques import owed

USE = "double-sparsity:budget=64,channels=8,dense_below=100"


@pytest.mark.parametrize("kv", ["rows", "rows8", "bf16", "int8", "f32"])
@pytest.mark.parametrize("knobs", ["budget=2048", "budget=32,share=1"])
def test_a_budget_for_everything_is_dense(knobs: str, kv: str) -> None:
    owed.same_as_plain(f"double-sparsity:{knobs},dense_below=1", kv=kv)


def test_it_acts() -> None:
    owed.acts(USE)


def test_below_its_threshold_it_does_nothing() -> None:
    owed.same_as_plain("double-sparsity:budget=64,dense_below=2000")


def test_company_and_chunks_change_nothing() -> None:
    owed.indifferent_to_company(USE)


@pytest.mark.parametrize("kv", ["rows", "rows8", "bf16", "int8", "f32"])
def test_without_coming_back_between_layers(monkeypatch: pytest.MonkeyPatch, kv: str) -> None:
    owed.same_without_coming_back(monkeypatch, USE, kv=kv)


def test_preemption_changes_nothing() -> None:
    """Labels are swapped with their pages, or written again."""
    owed.survives_preemption(USE)


def test_abort_leaks_nothing() -> None:
    owed.abort_leaks_nothing(USE)


@pytest.mark.parametrize("seed", range(2))
def test_random_life(seed: int) -> None:
    owed.random_life(USE, seed=seed)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[View, Array, Tokens]]:
    owed.layer_by_layer(monkeypatch)
    seen = []
    attend = Tokens.attend

    def watch(self: Tokens, view: View, q: Array, out: Array, lse: Array | None) -> None:
        seen.append((view, q.copy(), Tokens(self.which, self.at.copy(), self.counts.copy())))
        attend(self, view, q, out, lse)

    monkeypatch.setattr(Tokens, "attend", watch)
    return seen


def test_how_much_is_read(watched: list[tuple[View, Array, Tokens]]) -> None:
    """In every layer but the first two a decode row attends to its budget, or to its share where that is more."""
    for knobs, count in (("budget=64", 64), ("budget=16,recent=8,share=0.25", 76)):
        watched.clear()
        of = owed.service(f"double-sparsity:{knobs},dense_below=100")
        owed.alone(of, owed.prompt(300), most=6)
        assert [view.layer for view, _, _ in watched] == list(range(2, 16)) * 5  # the first token comes from the prompt
        for view, _, chosen in watched:
            assert chosen.counts.tolist() == [[count if count == 64 else int(np.ceil(0.25 * view.b.hi[0]))] * 2]
            assert chosen.at.shape[2] == chosen.counts.max()
            assert all(len(set(row)) == len(row) for row in chosen.at[0].tolist())


def test_with_all_channels_the_largest_scores_are_chosen(watched: list[tuple[View, Array, Tokens]]) -> None:
    """Beside exact scores, up to ties in bfloat16."""
    owed.alone(owed.service("double-sparsity:budget=64,channels=32,bits=16,dense_below=100"), owed.prompt(300), most=3)
    for view, q, chosen in watched[-14:]:
        n = int(view.b.hi[0])
        rows = view.b.tables[0, np.arange(n) // 64].astype(np.int64) * 64 + np.arange(n) % 64
        k, _ = view.store.read(view.layer, rows)
        scores = np.einsum("gsd,ngd->gsn", q[0].reshape(2, 2, 32), k).max(1)
        scores[:, :4] = scores[:, n - 16 :] = np.inf
        for g in range(2):
            best = set(rows[np.argsort(-scores[g])[:64]].tolist())
            assert len(best & set(chosen.at[0, g].tolist())) >= 62


def test_bytes_of_labels_are_counted() -> None:
    """Of 16 layers the first two keep none; in memory there are 16 channels, or 32."""
    plain = owed.service(kv="rows").state["kv"].bytes_per_token
    for channels, padded in ((4, 16), (16, 16), (18, 32)):
        for bits, each in ((16, padded * 2), (4, padded // 2 + 4)):
            kv = owed.service(f"double-sparsity:channels={channels},bits={bits}").state["kv"]
            assert kv.bytes_per_token - plain == 14 * 2 * each


def test_int8_lies_token_by_token_for_who_picks_tokens() -> None:
    """In as many bytes; pages for who picks none, and as the user says where he says it."""
    form = lambda *use, **settings: owed.service(*use, **settings).state["kv"].fmt  # noqa: E731
    assert form("int8-kv") == form("int8-kv", "lserve") == form("double-sparsity", kv="int8") == "int8"
    assert form("double-sparsity", "int8-kv") == form("tidaldecode", "int8-kv") == "rows8"
    assert form("double-sparsity") == "rows"
    bytes_of = lambda kv: owed.service(kv=kv).state["kv"].bytes_per_token  # noqa: E731
    assert bytes_of("rows8") * 2 == bytes_of("rows")


# ---- calibrations


def tiny_facts(fingerprint: str = "") -> Facts:
    return Facts(frozenset(), 16, 4, 2, 32, 2048, fingerprint=fingerprint or TinyLlama().fingerprint)


def written(path: Path, facts: Facts, **tensors: Array) -> str:
    Calibration(tensors, about("double-sparsity", facts)).write(path)
    return f"double-sparsity:budget=64,channels=2,dense_below=100,calibration={path}"


def test_the_most_important_channels_are_labels(tmp_path: Path) -> None:
    importance = np.zeros((16, 2, 32), np.float32)
    importance[:, 0, [30, 5]] = importance[:, 1, [7, 8]] = 1.0
    importance[3, 1, 9] = 2.0
    use = written(tmp_path / "own", tiny_facts(), qk=importance, q=importance)
    for by in ("qk", "q"):
        channels = owed.service(f"{use},by={by}").state["inside"].select.companion.channels
        assert channels[0].tolist() == [[5, 30], [7, 8]]
        assert channels[3, 1].tolist() == [7, 9]
    pairs = owed.service(f"{use},pairs=true").state["inside"].select.companion.channels
    assert pairs[3].tolist() == [[5, 21], [9, 25]]
    with pytest.raises(UserError, match="finite numbers 'k'"):
        owed.service(f"{use},by=k")


def test_states_with_other_labels_are_no_states_of_this_service(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    uses = [written(tmp_path / n, tiny_facts(), qk=rng.random((16, 2, 32), np.float32)) for n in ("a", "b")]
    layouts = {owed.service(use).state["kv"].layout for use in (*uses, USE, f"{USE},by=k", f"{USE},pairs=true")}
    assert len(layouts) == 5


def test_missing_damaged_and_foreign_calibrations_are_refused(tmp_path: Path) -> None:
    command = "diastole calibrate double-sparsity"
    bad = tmp_path / "bad.safetensors"
    with pytest.raises(UserError, match=f"cannot be read.*{command}"):
        owed.service(f"double-sparsity:calibration={bad}")
    for content in (b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"):
        bad.write_bytes(content)
        with pytest.raises(UserError, match=command):
            owed.service(f"double-sparsity:calibration={bad}")
    use = written(bad, tiny_facts("another"), qk=np.ones((16, 2, 32), np.float32))
    with pytest.raises(UserError, match=f"has fingerprint 'another'.*{command}"):
        owed.service(use)
    nan = written(bad, tiny_facts(), qk=np.full((16, 2, 32), np.nan, np.float32))
    with pytest.raises(UserError, match="must hold finite numbers"):
        owed.service(nan)
    with pytest.raises(UserError, match=f"there is none; .*{command}"):
        find("double-sparsity", tiny_facts("unheard of"))


def test_where_calibrations_are_found(tmp_path: Path) -> None:
    """Beside the model before the one that comes along."""
    model = tmp_path / "model.gguf"
    model.touch()
    facts = Facts(frozenset(), 16, 4, 2, 32, 2048, fingerprint=TinyLlama().fingerprint, source=model)
    along = find("double-sparsity", facts)
    assert shipped("double-sparsity", facts).exists()
    assert beside("double-sparsity", facts) == tmp_path / "model.double-sparsity.safetensors"
    written(beside("double-sparsity", facts), facts, qk=np.ones((16, 2, 32), np.float32))
    assert find("double-sparsity", facts).id != along.id


@pytest.mark.parametrize(
    ("knobs", "what"),
    [
        ("channels=0", "channels must be between 1 and the head's 32"),
        ("channels=33", "channels must be"),
        ("channels=5,pairs=true", "channels must be even"),
        ("budget=15,recent=4", "budget must be at least 16"),
        ("budget=19", "budget must"),
        ("share=1.5", "share must be"),
        ("share=nan", "share must be"),
        ("by=v", "by must be"),
        ("recent=0", "recent must be"),
        ("dense_layers=16", "dense_layers must be"),
    ],
)
def test_wrong_knobs_are_named(knobs: str, what: str) -> None:
    with pytest.raises(UserError, match=what) as e:
        owed.service(f"double-sparsity:{knobs}")
    assert e.value.param == "use"


def test_two_selectors_are_refused() -> None:
    with pytest.raises(UserError, match="tidaldecode and double-sparsity both fill"):
        owed.service("tidaldecode", USE)
