"""ADED: what a drafter owes, and that it learns."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diastole.calibrate.aded import count
from diastole.params import SamplingParams
from diastole.techniques import aded as technique
from diastole.types import Draft, Request, UserError
from techniques import owed

USE = "aded:table=none,nodes=6"


def test_the_text_is_the_same() -> None:
    owed.same_as_plain(USE)


@pytest.mark.parametrize(
    "knobs", ["search=widest", "search=chain", "adapt=false", "scope=server", "scope=tenant", "prompt=false"]
)
def test_company_and_chunks_change_nothing(knobs: str) -> None:
    owed.indifferent_to_company(f"{USE},{knobs}")


def test_preemption_changes_nothing() -> None:
    owed.survives_preemption(USE)


def test_abort_leaks_nothing() -> None:
    owed.abort_leaks_nothing(USE)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("pace", ["fixed:k=6", "smartspec"])
def test_random_life(seed: int, pace: str) -> None:
    owed.random_life(USE, pace, seed=seed)


def draft(ids: list[int], use: str = USE, n: int = 6, rounds: int = 1) -> Draft:
    of: Any = owed.service(use)
    text = of.loop.open(Request("r", "tiny", tuple(ids), SamplingParams(max_tokens=50, seed=0)))
    for _ in range(rounds):
        (found,) = of.loop.drafter.draft([text], [n])
    guess: Draft = found
    return guess


def test_it_guesses_what_its_prompt_said() -> None:
    found = draft([1, 2, 3, 4, 5, 1, 2])
    assert list(found.tokens) == [3, 4, 5, 1]
    assert list(found.parents or ()) == [-1, 0, 1, 2]


def test_what_came_more_often_comes_first() -> None:
    found = draft([1, 2, 9, 1, 2, 3, 1, 2, 3, 1, 2])
    assert found.tokens[0] == 3
    assert 9 in found.tokens
    assert found.odds is not None
    assert found.odds[0] > 0.5


def test_it_learns_only_from_its_window_where_the_prompt_is_not_learned() -> None:
    ids = [1, 2, 3, *range(100, 130), 1, 2]
    assert draft(ids).tokens
    assert not draft(ids, f"{USE},prompt=false").tokens
    assert not draft(ids, f"{USE},adapt=false").tokens


def test_one_text_does_not_show_in_another() -> None:
    for scope, shared in (("request", False), ("tenant", False), ("server", True)):
        of: Any = owed.service(f"{USE},scope={scope}")
        for salt, ids in (("a", [1, 2, 3]), ("b", [9, 1, 2])):
            text = of.loop.open(Request("r", "tiny", tuple(ids), SamplingParams(seed=0), salt=salt))
            (found,) = of.loop.drafter.draft([text], [4])
        assert bool(found.tokens) == shared, scope


def test_it_keeps_a_bounded_number_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diastole.techniques.aded.PAIRS", 8)
    of: Any = owed.service(USE)
    text = of.loop.open(Request("r", "tiny", tuple(range(200)), SamplingParams(seed=0)))
    of.loop.drafter.draft([text], [4])
    assert len(text.scratch["aded"].changes) == 8


def test_a_table_is_used(tmp_path: Path) -> None:
    from diastole.weights.calibration import Calibration, about

    facts = owed.facts()
    tensors = count(np.array([1, 2, 3, 4] * 5 + [1, 2, 7, 1, 2, 7], np.int64))
    Calibration(tensors, about("aded", facts)).write(tmp_path / "table")
    found = draft([50, 1, 2], f"aded:adapt=false,table={tmp_path / 'table'}")
    assert found.tokens[0] == 3
    assert 7 in found.tokens
    Calibration(tensors, about("aded", facts) | {"fingerprint": "other"}).write(tmp_path / "foreign")
    with pytest.raises(UserError, match="has fingerprint 'other'"):
        owed.service(f"aded:table={tmp_path / 'foreign'}")
    del tensors["words"]
    Calibration(tensors, about("aded", facts)).write(tmp_path / "torn")
    with pytest.raises(UserError, match="holds no counts"):
        owed.service(f"aded:table={tmp_path / 'torn'}")
    with pytest.raises(UserError, match="cannot be read"):
        owed.service(f"aded:table={tmp_path / 'nowhere'}")


@pytest.mark.parametrize(
    "knobs",
    [
        "nodes=0",
        "nodes=65",
        "depth=0",
        "search=beam",
        "iterations=0",
        "adapt_step=0",
        "adapt_cap=0.01",
        "adapt_window=2",
        "scope=all",
    ],
)
def test_wrong_knobs(knobs: str) -> None:
    with pytest.raises(UserError, match="aded: "):
        owed.service(f"aded:table=none,{knobs}")


# ---- what is kept


def said(of: Any, ids: list[int]) -> list[int]:
    """What it would guess behind a text of which it has learned nothing."""
    text = of.loop.open(Request("q", "tiny", tuple(ids), SamplingParams(max_tokens=50, seed=0)))
    (found,) = of.loop.drafter.draft([text], [4])
    return [*found.tokens]


def test_what_was_learned_outlives_the_service(tmp_path: Path) -> None:
    use = f"aded:table=none,scope=server,keep={tmp_path / 'kept.safetensors'}"
    of: Any = owed.service(use)
    assert said(of, [1, 2]) == []
    assert said(of, [1, 2, 3, 4, 5, 1, 2]) == [3, 4, 5, 1]
    assert not (tmp_path / "kept.safetensors").exists()
    del of
    gc.collect()
    assert (tmp_path / "kept.safetensors").exists()
    again: Any = owed.service(use)
    assert said(again, [1, 2]) == [3, 4, 5, 1]
    assert said(again, [7, 8, 9, 7, 8]) == [9, 7, 8, 9]
    del again
    gc.collect()
    third: Any = owed.service(use)
    assert said(third, [1, 2]) == [3, 4, 5, 1]
    assert said(third, [7, 8])[:1] == [9]


def test_it_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(technique, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(technique, "Thread", Now)
    of: Any = owed.service(f"aded:table=none,scope=server,keep={tmp_path / 'kept.safetensors'}")
    for _ in range(2):
        said(of, [1, 2, 3, 4, 5, 1, 2])
    assert (tmp_path / "kept.safetensors").exists()


class Now:
    """A thread that is over before anybody can look."""

    def __init__(self, target: Any, args: tuple[Any, ...], daemon: bool) -> None:
        self.start = lambda: target(*args)


def test_where_it_cannot_be_written_it_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    of: Any = owed.service(f"aded:table=none,scope=server,keep={tmp_path / 'file' / 'kept'}")
    said(of, [1, 2, 3, 4, 5, 1, 2])
    with pytest.warns(UserWarning, match="what was learned is not kept"):
        of.loop.drafter._kept.write()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of.loop.drafter._kept.write()


def test_only_what_all_share_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="aded: keep needs scope=server"):
        owed.service(f"aded:table=none,keep={tmp_path / 'kept'}")


def test_a_merged_table_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(technique, "TOP", 2)
    monkeypatch.setattr(technique, "MOST_KEPT", 3)

    def table(rows: dict[int, dict[int, float]]) -> dict[str, Any]:
        keys = sorted(rows)
        words = [w for k in keys for w in rows[k]]
        weights = [x for k in keys for x in rows[k].values()]
        offsets = np.cumsum([0, *(len(rows[k]) for k in keys)])
        arrays = (
            np.array(keys, np.uint64),
            offsets.astype(np.int64),
            np.array(words, np.int32),
            np.array(weights, np.float32),
        )
        return dict(zip(technique.FIELDS, arrays, strict=True))

    old = table({10: {1: 0.5, 2: 0.25}, 20: {3: 1.0}, 30: {4: 0.1}})
    new = table({20: {3: 1.0, 5: 2.0, 6: 3.0}, 40: {7: 0.3}})
    found = technique.merged(old, [new[name] for name in technique.FIELDS])
    want = table({10: {1: 0.5, 2: 0.25}, 20: {6: 3.0, 5: 2.0}, 40: {7: 0.3}})
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in want.items()}
    assert all(found[k].dtype == want[k].dtype for k in want)
