"""The model that comes along makes clothes of the kind that is asked for."""

from __future__ import annotations

import numpy as np
import pytest

from diastole.bench.filling import Painter
from diastole.params import PictureParams
from diastole.types import Array


@pytest.fixture(scope="module", params=[(), ("faster-diffusion",)], ids=["all steps", "faster-diffusion"])
def by_label(request: pytest.FixtureRequest) -> dict[int, Array]:
    """Eight sneakers and eight pairs of trousers, (8, H, W) each."""
    with Painter("unet", request.param, 8) as painter:
        return {
            label: np.stack([p.x[..., 0] for p in painter.paint([PictureParams(50, label, 2.0, i) for i in range(8)])])
            for label in (7, 1)
        }


def test_sneakers_lie_at_the_bottom(by_label: dict[int, Array]) -> None:
    rows = by_label[7].mean((0, 2))
    assert rows[:4].max() < -0.8  # nothing above
    assert rows[8] > -0.3


def test_trousers_stand_in_the_middle(by_label: dict[int, Array]) -> None:
    columns = by_label[1].mean((0, 1))
    assert columns[:3].max() < -0.8
    assert columns[13:].max() < -0.8
    assert columns[6:10].max() > -0.4
