"""The analyses as pictures; matplotlib is imported here only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from crelu_deploy.analysis.invariance import Invariance
from crelu_deploy.analysis.outgoing import Outgoing
from crelu_deploy.analysis.pairing import Pairing
from crelu_deploy.analysis.reconstruction import CONTROLS, StackInverse
from crelu_deploy.analysis.signs import Signs
from crelu_deploy.analysis.stages import View

STYLE: Any = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
BINS: list[float] = np.linspace(-1, 1, 81).tolist()
COLUMNS = 4


def plot_pairing(found: Mapping[str, Pairing], path: Path) -> None:
    """Draw, per layer, the histogram of the pairing cosines over that of the baseline."""
    with mpl.rc_context(STYLE):
        figure, axes = _grid(len(found))
        for ax, (name, result) in zip(axes, found.items(), strict=True):
            _histogram(ax, result.baseline, "Gaussian", "0.7")
            _histogram(ax, result.cosines, "filters", "C0")
            ax.set(title=name, xlabel="smallest cosine", xlim=(-1, 1))
        axes[0].legend()
        _save(figure, path)


def plot_outgoing(found: Mapping[str, Outgoing], path: Path) -> None:
    """Draw, per reading layer, the correlations of pairs over those of other channels."""
    with mpl.rc_context(STYLE):
        figure, axes = _grid(len(found))
        for ax, (name, result) in zip(axes, found.items(), strict=True):
            _histogram(ax, result.others, "other channels", "0.7")
            _histogram(ax, result.pairs, "halves of a pair", "C0")
            ax.set(title=name, xlabel="correlation", xlim=(-1, 1))
        axes[0].legend()
        _save(figure, path)


def plot_signs(found: Mapping[str, Signs], path: Path) -> None:
    """Draw the share of equal signs, and the bits lost, per reading layer."""
    with mpl.rc_context(STYLE):
        figure, axes = _grid(2)
        names = list(found)
        axes[0].bar(names, [result.same for result in found.values()], color="C0")
        axes[0].axhline(0.5, color="0.5", linestyle="--")
        axes[0].set(title="weights of one sign on both halves", ylabel="share", ylim=(0, 1))
        axes[1].bar(names, [result.bits for result in found.values()], color="C1")
        axes[1].set(title="loss per output, channel and tap", ylabel="bits", ylim=(0, 0.5))
        for ax in axes:
            ax.tick_params(axis="x", rotation=60)
        _save(figure, path)


def plot_invariance(found: Mapping[str, Invariance], path: Path) -> None:
    """Draw each layer's score and those of all its units."""
    with mpl.rc_context(STYLE):
        figure, (ax,) = _grid(1)
        for place, result in enumerate(found.values()):
            ax.plot([place] * len(result.scores), result.scores, ".", color="0.7", markersize=3)
        ax.plot(list(found), [result.score for result in found.values()], "o-", color="C0")
        ax.axhline(1, color="0.5", linestyle="--")
        ax.set(ylabel="invariance, 1 is chance", ylim=(0, None))
        ax.tick_params(axis="x", rotation=60)
        _save(figure, path)


def plot_reconstruction(image: Tensor, found: Sequence[StackInverse], path: Path) -> None:
    """Draw the picture and its reconstructions, a column per depth; controls in rows below."""
    views = [view for view in CONTROLS if any(view in result.controls for result in found)]
    rows: list[tuple[str, list[tuple[Tensor, float] | None]]] = [
        ("both halves", [(result.picture, result.error) for result in found])
    ]
    titles: dict[View, str] = {"relu": "positive half", "abs": "sum of halves"}
    for view in views:
        shown = [
            (result.controls[view], result.control_errors[view])
            if view in result.controls
            else None
            for result in found
        ]
        rows.append((titles[view], shown))
    with mpl.rc_context(STYLE):
        columns = len(found) + 1
        figure = _figure((1.6 * columns, 1.8 * len(rows)))
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for line, (title, shown) in zip(axes, rows, strict=True):
            _show(line[0], image, image, title)
            for ax, result, cell in zip(line[1:], found, shown, strict=True):
                if cell is None:
                    ax.set_axis_off()
                else:
                    _show(ax, cell[0], image, f"{result.name}: {cell[1]:.2g}")
        _save(figure, path)


def _show(ax: Axes, picture: Tensor, original: Tensor, title: str) -> None:
    """Show ``(1, C, H, W)`` in the original's range of values."""
    low, high = original.min().item(), original.max().item()
    shown = ((picture[0].float() - low) / ((high - low) or 1)).clamp(0, 1).permute(1, 2, 0).numpy()
    ax.imshow(shown if shown.shape[-1] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1)
    ax.set_title(title)
    ax.set_axis_off()


def _histogram(ax: Axes, values: Tensor, label: str, color: str) -> None:
    ax.hist(values.numpy(), BINS, density=True, label=label, color=color, alpha=0.7)


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, COLUMNS)
    rows = math.ceil(count / columns)
    figure = _figure((3 * columns if count > 1 else 6, 2.2 * rows if count > 1 else 3.2))
    axes: list[Any] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def _figure(size: tuple[float, float]) -> Figure:
    """Return a figure of some inches that belongs to no window and no global state."""
    figure = Figure(figsize=size, layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
