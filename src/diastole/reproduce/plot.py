"""A study's curves as one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from diastole.reproduce.study import Curve
from diastole.types import UserError

ACROSS = 3  # pairs of axes beside each other


def need() -> None:
    """Raises:
    UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("--plot needs matplotlib: pip install 'diastole[papers]'", param="plot") from None
    matplotlib.use("Agg")


def draw(title: str, curves: Sequence[Curve], path: Path) -> None:
    """Curves of one title on one pair of axes, as PNG.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib import pyplot

    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.title, []).append(curve)
    across = min(len(groups), ACROSS)
    down = -(-len(groups) // across)
    size = (4.6 * across, 3.6 * down)
    figure, grid = pyplot.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    for axis in grid.flat[len(groups) :]:
        axis.remove()
    for axis, (name, group) in zip(grid.flat, groups.items(), strict=False):
        for curve in group:
            axis.plot(curve.x, curve.y, marker="o", markersize=3, linewidth=1.4, label=curve.label or None)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(group[0].xlabel)
        axis.set_ylabel(group[0].ylabel)
        axis.grid(alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        if any(curve.label for curve in group):
            axis.legend(frameon=False, fontsize=8)
    figure.suptitle(textwrap.fill(title, 60 * across), fontsize=11)
    try:
        figure.savefig(path, dpi=130)
    except OSError as e:
        raise UserError(f"the picture cannot be written: {e}", param="results") from None
    finally:
        pyplot.close(figure)
