"""The table of heads for LServe: what is measured, and that it tells heads apart."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from diastole.bench.rig import Rig
from diastole.calibrate import lserve
from diastole.calibrate.job import Job
from diastole.types import Array, UserError
from models.common import embedded, real_text

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def rig() -> Rig:
    embedded()
    with Rig(kv="f32", context=1100) as rig:
        yield rig


def test_the_text_recites_every_key_that_it_tells(rig: Rig) -> None:
    prose = real_text(900).tolist()
    ids, wanted = lserve.text(rig.tokenizer, prose, Random(1))
    assert len(ids) == 900
    said = rig.tokenizer.decode(ids)
    recital = said[said.rindex(".\n\n") :]
    for sentence in recital.split("\n\n")[2:]:
        assert said.count(sentence) == 2, sentence
    digits = rig.tokenizer.decode([ids[at + 1] for at in wanted])
    assert [c for c in recital if c.isdigit()] == [c for c in digits if c.isdigit()]
    with pytest.raises(UserError, match="no room for 10 pass keys"):
        lserve.text(rig.tokenizer, prose[:300], Random(1))


def test_the_mass_is_what_lies_outside(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside weights computed from keys and queries in numpy, in one layer."""
    seen: list[Array] = []
    see = lserve.Far.see

    def watched(self, view, q, out, lse) -> None:  # type: ignore[no-untyped-def]
        see(self, view, q, out, lse)
        rows = self._rows(view.b)
        if view.layer != 15 or not len(rows):
            return
        for row in rows:
            pos = int(view.b.pos[row])
            at = np.arange(pos + 1)
            k, _ = view.store.read(15, view.b.tables[0, at // 64].astype(np.int64) * 64 + at % 64)
            s = np.einsum("hd,nhd->hn", q[row], k.repeat(3, 1)) * view.scale
            weights = np.exp(s - s.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            seen.append(weights[:, 64 : pos // 64 * 64 - 128].sum(1))

    monkeypatch.setattr(lserve.Far, "see", watched)
    monkeypatch.setattr(lserve, "CONTEXT", 900)
    done: list[int] = []
    found = lserve.measure(Job(rig, real_text(1000).tolist(), done.append))
    assert done == [900]
    assert found["gates"].shape == (30, 3)
    np.testing.assert_allclose(found["mass"][15], np.mean(seen, 0), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(found["gates"][15], found["mass"][15].reshape(3, 3).max(1))
    assert found["gates"].min() < 0.2 < 0.6 < found["gates"].max()


def test_too_little_text_is_refused(rig: Rig) -> None:
    with pytest.raises(UserError, match="at least 2048"):
        lserve.measure(Job(rig, [1] * 100))
