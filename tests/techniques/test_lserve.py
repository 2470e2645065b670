"""LServe: what a technique owes, and that heads look at the pages that they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diastole.bench.tiny import CONFIG, TinyLlama
from diastole.nn.selection import Pages
from diastole.registry import Spec, load
from diastole.slots import Facts, View
from diastole.state.pages import PAGE
from diastole.types import Array, UserError
from diastole.weights.calibration import Calibration, about
from techniques import owed

FACTS = Facts(
    frozenset({"paged_kv"}),
    CONFIG["num_hidden_layers"],
    CONFIG["num_attention_heads"],
    CONFIG["num_key_value_heads"],
    CONFIG["head_dim"],
    owed.CONTEXT,
    fingerprint=TinyLlama().fingerprint,
)
SMALL = "sink=64,prefill_local=128,decode_local=64,budget=256,refresh=3"
DYNAMIC = f"lserve:sparsity=0,{SMALL}"


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of heads of the small model: random, so that layers have 0, 1 and 2 that stream."""
    path = tmp_path_factory.mktemp("heads") / "gates.safetensors"
    write(path, np.random.default_rng(3).random((16, 2)))
    return path


@pytest.fixture(scope="module")
def both(pattern: Path) -> str:
    return f"lserve:pattern={pattern},{SMALL}"


def write(path: Path, gates: Array, facts: Facts = FACTS) -> None:
    Calibration({"gates": gates.astype(np.float32)}, about("lserve", facts)).write(path)


# ---- identity


@pytest.mark.parametrize("kv", ["rows", "rows8", "bf16", "int8", "f32"])
def test_a_budget_for_everything_is_dense(kv: str) -> None:
    owed.same_as_plain("lserve:sparsity=0,budget=2048", kv=kv)


def test_windows_over_everything_are_dense(pattern: Path) -> None:
    wide = "prefill_local=1024,decode_local=1024,budget=2048"
    owed.same_as_plain(f"lserve:pattern={pattern},sparsity=1,{wide}")
    owed.same_as_plain(f"lserve:pattern={pattern},{wide}")


# ---- what every technique owes


@pytest.fixture(params=["dynamic", "static", "both"])
def use(request: pytest.FixtureRequest, pattern: Path, both: str) -> str:
    static = f"lserve:pattern={pattern},{SMALL},budget=2048".replace("budget=256,", "")
    return {"dynamic": DYNAMIC, "static": static, "both": both}[request.param]


def test_it_acts(use: str) -> None:
    owed.acts(use)


def test_company_and_chunks_change_nothing(use: str) -> None:
    owed.indifferent_to_company(use)


@pytest.mark.parametrize("kv", ["rows", "rows8", "bf16", "int8", "f32"])
def test_without_coming_back_between_layers(monkeypatch: pytest.MonkeyPatch, both: str, kv: str) -> None:
    owed.same_without_coming_back(monkeypatch, both, kv=kv)


def test_preemption_changes_nothing(both: str) -> None:
    owed.survives_preemption(both)


def test_abort_leaks_nothing(both: str) -> None:
    owed.abort_leaks_nothing(both)


@pytest.mark.parametrize("seed", range(2))
def test_random_life(both: str, seed: int) -> None:
    owed.random_life(both, seed=seed)


# ---- what is looked at


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[View, Pages]]:
    """All selections, with the views that they were made for."""
    seen: list[tuple[View, Pages]] = []
    attend = Pages.attend

    def watched(self: Pages, view: View, q: Array, out: Array, lse: Array | None) -> None:
        seen.append((view, replace(self, tables=self.tables.copy())))
        attend(self, view, q, out, lse)

    owed.layer_by_layer(monkeypatch)
    monkeypatch.setattr(Pages, "attend", watched)
    return seen


def pages(view: View, of: Pages, row: int, head: int) -> list[int]:
    """Pages of a row's stream, by their places, that it looks at."""
    run = int(np.searchsorted(of.starts, row, "right")) - 1
    owner = int(np.searchsorted(view.b.starts, row, "right")) - 1
    own = of.tables[run, head, : -(-int(of.hi[row, head]) // PAGE)]
    table = view.b.tables[owner].tolist()
    return [table.index(p) for p in own]


def test_streaming_heads_see_sink_and_window(both: str, pattern: Path, looked: list[tuple[View, Pages]]) -> None:
    streams = technique(both).streams
    owed.alone(owed.service(both, chunk=200), owed.prompt(900))
    rows = 0
    for view, selection in looked:
        decodes = len(view.b.inputs) == 1 and view.b.pos[0] >= 900
        for row, pos in enumerate(view.b.pos.tolist()):
            for head in range(2):
                last = pos // PAGE
                if not streams[view.layer, head]:
                    if not decodes:
                        assert pages(view, selection, row, head) == list(range(last + 1))
                    continue
                window = range(max(last - (1 if decodes else 2), 0), last + 1)
                assert pages(view, selection, row, head) == sorted({0, *window})
                assert selection.hi[row, head] % PAGE == (pos + 1) % PAGE  # no token after its own
                rows += 1
    assert rows > 16 * 600


def technique(use: str):  # type: ignore[no-untyped-def]
    """The policy that a service would hold."""
    module, params = load(Spec.parse(use))
    return module.TECHNIQUE(params, FACTS)["select"]


def test_decoding_heads_look_at_the_budget_and_choose_every_few_steps(looked: list[tuple[View, Pages]]) -> None:
    owed.alone(owed.service(DYNAMIC), owed.prompt(630), most=40)
    decoded = [(v, s) for v, s in looked if v.b.pos[0] >= 630]
    assert len(decoded) == 16 * 39
    chosen: dict[tuple[int, int], list[list[int]]] = {}
    for view, selection in decoded:
        pos = int(view.b.pos[0])
        at, last = pos - (pos - 630) % 3, pos // PAGE
        for head in range(2):
            own = pages(view, selection, 0, head)
            assert len(set(own)) == len(own) == 4 + last - at // PAGE
            assert {0, at // PAGE - 1, last} <= set(own)
            chosen.setdefault((view.layer, head), []).append(own)
    changes = 0
    for steps in chosen.values():
        for i in range(0, 39, 3):
            assert all(steps[i] == later[:4] for later in steps[i + 1 : i + 3])
        changes += sum(steps[i] != steps[i + 3] for i in range(0, 33, 3))
    assert changes > 20  # else it would not show that they choose anew


def test_what_stands_for_a_page_is_what_its_keys_are_bounded_by(pattern: Path) -> None:
    """After preemption, rewriting in place and shared beginnings: from the rows that the kernels see."""
    use = f"lserve:sparsity=0,{SMALL}"
    for kv in ("bf16", "int8"):
        of = owed.service(use, kv=kv, pages=24, swap=0, chunk=100)
        life = owed.Life(of)
        for i in range(4):
            life.ask(f"r{i}", owed.prompt(420)[: 400 + 5 * i] + owed.prompt(37, i), most=90)
        for _ in range(60):
            life.step()
        compared = 0
        for stream in of.ledger.running:
            table = np.array(stream.leases["kv"].places)
            for layer in (0, 7):
                for page in table[: stream.done // PAGE]:
                    expect_bounds(of, layer, int(page))
                    compared += 1
        assert compared > 10
        life.finish()


def expect_bounds(of: owed.Service, layer: int, page: int) -> None:
    k, _ = of.state["kv"].read(layer, page * PAGE + np.arange(PAGE))
    runs = k.reshape(4, 16, 2, 32)
    want = np.concatenate([runs.max(1), runs.min(1)], -1).swapaxes(0, 1)  # (head, run, 2·D)
    bits = of.state["inside"].select.companion.arrays[layer][page].view(np.uint16)
    got = (bits.reshape(2, -1, 4, 8).swapaxes(1, 2).reshape(2, 4, 64).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(got, want, rtol=2**-8)


def test_bytes_of_what_stands_for_pages() -> None:
    plain, with_it = owed.service(), owed.service(DYNAMIC)
    more = with_it.state["kv"].bytes_per_token - plain.state["kv"].bytes_per_token
    assert more == 16 * 2 * 2 * 32 * 2 / 16  # layers, heads, two rows, channels, bytes; for 16 tokens


# ---- wrong knobs


@pytest.mark.parametrize(
    ("knobs", "what"),
    [
        ("sink=10", "sink must be a multiple of 64"),
        ("prefill_local=100", "prefill_local must be a multiple of 64"),
        ("decode_local=0", "decode_local must be a multiple of 64"),
        ("budget=1000", "budget must be a multiple of 64"),
        ("budget=128", "at least 192"),
        ("logical_page=24", "logical_page must divide the page"),
        ("refresh=0", "refresh must be at least 1"),
        ("sparsity=2", "sparsity must be a share"),
        ("sparsity=half", "sparsity must be a share"),
        ("sparsity=0.5", "diastole calibrate lserve"),
        ("pattern=/nowhere/gates.safetensors", "cannot be read"),
    ],
)
def test_wrong_knobs_are_named(knobs: str, what: str) -> None:
    with pytest.raises(UserError, match=what) as e:
        owed.service(f"lserve:{knobs}")
    assert e.value.param == "use"


def test_foreign_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "gates.safetensors"
    write(path, np.zeros((16, 3)))
    with pytest.raises(UserError, match="16 layers x 2 key/value heads"):
        owed.service(f"lserve:pattern={path}")
    write(path, np.zeros((16, 2)), replace(FACTS, fingerprint="other"))
    with pytest.raises(UserError, match="has fingerprint 'other'"):
        owed.service(f"lserve:pattern={path}")


def test_two_selectors_and_windowed_models_are_refused() -> None:
    with pytest.raises(UserError, match="lserve and tidaldecode both fill"):
        owed.service("lserve", "tidaldecode:layers=2+7")
    module, params = load(Spec.parse("lserve"))
    with pytest.raises(UserError, match="see a window only"):
        module.TECHNIQUE(params, replace(FACTS, windowed=True))


def test_without_a_table_no_head_streams() -> None:
    assert not technique("lserve").streams.any()


def test_half_of_the_heads_stream_with_one(pattern: Path) -> None:
    assert technique(f"lserve:pattern={pattern}").streams.sum() == 16
    assert technique(f"lserve:pattern={pattern},sparsity=0.25").streams.sum() == 8
