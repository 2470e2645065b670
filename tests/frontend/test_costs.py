"""What steps cost, kept between starts."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from diastole.clock import FakeClock
from diastole.engine.cost import FittedCost, LinearCost
from diastole.frontend.costs import LARGEST, CostFile
from diastole.types import Grant, Request, Stream
from engine.toy import toy_engine, toy_service

TRUTH = LinearCost(0.003, 0.0004, per_kilowork=0.001, per_kilocontext=0.002)


def grants(done: int, *rows: int) -> list[Grant]:
    return [Grant(Stream(Request("r", "s", (), None), 0, done + n, done), n) for n in rows]


def taught() -> FittedCost:
    cost = FittedCost()
    for _ in range(30):
        for step in (grants(50, 1), grants(700, 1, 1, 1), grants(0, 256), grants(300, 64), grants(1500, 1)):
            cost.learn(step, TRUTH.predict(step))
    return cost


def test_a_new_start_predicts_as_the_last_one_did(tmp_path: Path) -> None:
    file = CostFile(tmp_path / "deep" / "costs.json")
    old, new = taught(), FittedCost()
    assert not file.read(new)
    file.write(old)
    assert file.read(new)
    for step in (grants(60, 1), grants(10, 250), grants(650, 1, 1, 1)):
        assert new.predict(step) == pytest.approx(TRUTH.predict(step), rel=0.05)
        assert FittedCost().predict(step) != pytest.approx(TRUTH.predict(step), rel=0.05)
    assert new.knows(256)
    assert not new.knows(4096)
    assert [*tmp_path.glob("**/*")] == [tmp_path / "deep", tmp_path / "deep" / "costs.json"]  # nothing left beside it


def test_it_goes_on_learning(tmp_path: Path) -> None:
    file = CostFile(tmp_path / "costs.json")
    file.write(taught())
    cost = FittedCost()
    file.read(cost)
    for _ in range(600):  # another machine: all takes twice as long
        for step in (grants(50, 1), grants(0, 256)):
            cost.learn(step, 2 * TRUTH.predict(step))
    assert cost.predict(grants(0, 256)) == pytest.approx(2 * TRUTH.predict(grants(0, 256)), rel=0.05)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"version": 2, "samples": []}',
        b'{"version": 1, "samples": [{"size": 3, "context": 1, "steps": [[1, 1, 1, 1]]}]}',
        b'{"version": 1, "samples": [{"size": 3, "context": 1, "steps": [[1, 1, 1, 1, -1]]}]}',
        b'{"version": 1, "samples": [{"size": 3, "context": 1, "steps": [[1, 1, 1, 1, 0]]}]}',
        b'{"version": 1, "samples": [{"size": 3, "context": 1, "steps": [[1, 1, 1, 1, 1e300]]}]}',
        b'{"version": 1, "samples": [{"size": -3, "context": 1, "steps": []}]}',
        b'{"version": 1, "samples": [{"size": 3, "context": 999, "steps": []}]}',
        b" " * (LARGEST + 1),
    ],
)
def test_a_damaged_file_counts_as_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(data)
    cost = FittedCost()
    assert not CostFile(path).read(cost)
    assert cost.samples == []
    CostFile(path).write(taught())  # and is written anew
    assert CostFile(path).read(cost)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    CostFile(tmp_path / "file" / "costs.json").write(taught())
    assert "not kept" in caplog.text


def test_long_buckets_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    steps = [[1, 1, 0.1, 0.1, 0.01]] * 5000
    path.write_bytes(msgspec.json.encode({"version": 1, "samples": [{"size": 1, "context": 7, "steps": steps}]}))
    cost = FittedCost()
    CostFile(path).read(cost)
    assert len(cost.samples[0].steps) == 16


def test_an_engine_that_closes_keeps_what_it_learned_and_a_replaced_service_too() -> None:
    kept: list[str] = []
    first, second = toy_service(), toy_service()
    first.keep, second.keep = lambda: kept.append("first"), lambda: kept.append("second")
    engine = toy_engine(first, clock=FakeClock())
    engine.add_service(second)
    engine.step()
    assert kept == ["first"]
    engine.close()
    assert kept == ["first", "second"]
