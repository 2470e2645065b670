"""The figures for the reproduction are there; small runs say nothing about the claims themselves."""

from __future__ import annotations

import pytest

from diastole.sim.evidence import GAPS, LENGTHS, evidence


def test_every_part_has_figures() -> None:
    steps: list[str] = []
    found = evidence(60, 0.6, lengths=LENGTHS[:1], requests=3_000, gpus=6, step=steps.append)
    assert [s.what for s in found.pairs] == ["TP1 + TP1", "TP2 + TP1", "TP2 + TP2"]
    assert len(found.colocated) == 12
    assert found.of(LENGTHS[0], "TP4, prefill first, fits of vLLM").gpus == 4
    assert [t.gap for t in found.tightened] == list(GAPS)
    assert all(q.simulated == pytest.approx(q.formula, rel=0.1) for q in found.queues)
    assert found.crossing > 0
    assert [c.search for c in found.chosen] == ["high", "low"] * 2
    assert len(steps) == 2 + len(GAPS) + 3
