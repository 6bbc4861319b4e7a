"""Charts of numbers in the style of the course: scores, histories, small matrices.

Notebooks get all of this from `roadseg.plots`. Every function raises a ValueError if
a shape or a value is wrong.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from roadseg.paint import as_array

INK = "#1b2733"
MUTED = "#66727e"
FAINT = "#d9dfe5"
ACCENT = "#0072b2"
CONTRAST = "#d55e00"
LINES: tuple[str, ...] = (ACCENT, CONTRAST, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colors of lines, in order; readers with color blindness can tell them apart.

Okabe and Ito 2008, Color Universal Design, https://jfly.uni-koeln.de/color/.
"""

WIDTH = 7.5
"""Width of a figure in inches: 750 pixels."""

DPI = 100
"""Dots per inch of every figure."""

_HEAT = mpl.colormaps["Blues"]


def use_style() -> None:
    """Set Matplotlib's defaults to the style of the course, for this process."""
    mpl.rc("figure", figsize=(WIDTH, 3.4), dpi=DPI, facecolor="white", titlesize=12)
    mpl.rc("figure.constrained_layout", use=True)
    mpl.rc("font", family="DejaVu Sans", size=12)
    mpl.rc("text", color=INK)
    mpl.rc("axes", edgecolor=MUTED, labelcolor=INK, labelsize=12, axisbelow=True)
    mpl.rc(
        "axes", titlelocation="left", titlesize=12, prop_cycle=mpl.cycler(color=LINES)
    )
    mpl.rc("axes.spines", top=False, right=False)
    mpl.rc("grid", color=FAINT)
    mpl.rc("lines", linewidth=2, markersize=5)
    mpl.rc(("xtick", "ytick"), color=MUTED, labelcolor=INK, labelsize=11)
    mpl.rc("legend", fontsize=11, frameon=False)


# ---- Scores -----------------------------------------------------------------------


def plot_confusion_matrix(scores) -> Figure:
    """Draw which classes the pixels of each true class are predicted as, in percent.

    Args:
        scores: A `metrics.Scores`. Its `confusion` counts pixels, a row for each true
            class, a column for each predicted one. Pixels predicted as ignored count
            in the total of their row, because they are errors.
    """
    labels, counts = scores.labels, as_array(scores.confusion).astype(float)
    if counts.shape != (labels.num_classes,) * 2:
        raise ValueError(
            f"the confusion matrix of {labels.num_classes} classes has shape "
            f"{(labels.num_classes,) * 2}, this one {counts.shape}"
        )
    scored, n = list(labels.scored), labels.num_scored
    totals = counts[scored].sum(1, keepdims=True)
    percent = np.full((n, n), np.nan)
    np.divide(100 * counts[np.ix_(scored, scored)], totals, percent, where=totals > 0)
    fig = Figure(figsize=(WIDTH, 6.6 if n > 5 else 4.4), layout="constrained")
    ax = fig.subplots()
    ax.imshow(percent, cmap=_HEAT, norm=PowerNorm(0.6, 0, 130))
    if n <= 24:  # more numbers would be too small to read
        for (row, column), value in np.ndenumerate(percent):
            if value >= 1:
                text = ax.text(column, row, f"{value:.0f}", ha="center", va="center")
                text.set(color="white" if value > 60 else INK, size=min(12, 150 / n))
        ax.set_xticks(np.arange(0.5, n - 1), minor=True)
        ax.set_yticks(np.arange(0.5, n - 1), minor=True)
        ax.grid(which="minor", color="white", linewidth=1.5)
    ticks = np.arange(0, n, math.ceil(n / 40))
    names = [labels.names[scored[i]] for i in ticks]
    size = min(11, 300 / len(ticks))
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(ticks, names, size=size, **turned)
    absent = [" (absent)" if np.isnan(percent[i, 0]) else "" for i in ticks]
    rows = [name + note for name, note in zip(names, absent, strict=True)]
    ax.set_yticks(ticks, rows, size=size)
    ax.set(xlabel="Predicted class", ylabel="True class")
    ax.set_title("Predicted class of the pixels of each true class, %")
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    return fig


def plot_class_iou(scores, shares=None) -> Figure:
    """Draw the IoU of each class, best first, and how frequent the class is.

    Args:
        scores: A `metrics.Scores`: `iou` is (num_scored,), 0 to 1, NaN for a class
            that is absent; `miou` is their mean.
        shares: (num_classes,) shares of the pixels, 0 to 1, for a second panel.
    """
    labels, iou = scores.labels, as_array(scores.iou).astype(float)
    if iou.shape != (labels.num_scored,):
        raise ValueError(f"iou has the shape ({labels.num_scored},), not {iou.shape}")
    order = np.argsort(np.nan_to_num(iou, nan=-1), kind="stable")
    ids = np.array(labels.scored)[order]
    colors, rows = labels.palette()[ids] / 255, range(len(ids))
    size = 11 if len(ids) <= 40 else 7
    height = max(2, 0.7 + 0.031 * size * len(ids))
    fig = Figure(figsize=(WIDTH, height), layout="constrained")
    if shares is None:
        ax = fig.subplots()
    else:
        ax, beside = fig.subplots(1, 2, sharey=True, width_ratios=(5, 3))
        shares = as_array(shares)
        if shares.shape != (labels.num_classes,):
            raise ValueError(
                f"shares has the shape ({labels.num_classes},), not {shares.shape}"
            )
        _share_dots(beside, 100 * shares[ids], colors)
    ax.barh(rows, np.nan_to_num(iou[order]), color=colors, ec=MUTED)
    for row, value in enumerate(iou[order]):
        text, x = ("absent", 0) if np.isnan(value) else (f"{value:.2f}", value)
        back = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        ax.text(x + 0.015, row, text, va="center", fontsize=size, bbox=back)
    ax.axvline(scores.miou, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    ax.set(title=f"IoU (dashed: mIoU, {scores.miou:.2f})", xlim=(0, 1.12))
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    ax.set_yticks(rows, [labels.names[i] for i in ids], size=size)
    ax.set_ylim(-0.7, len(ids) - 0.3)
    ax.tick_params(axis="y", length=0)
    return fig


def _share_dots(ax: Axes, percent: np.ndarray, colors) -> None:
    rows = range(len(percent))
    ax.hlines(rows, 0, percent, color=FAINT, linewidth=1.5, zorder=1)
    ax.scatter(percent, rows, s=64, color=colors, edgecolor=MUTED, linewidth=0.5)
    ax.set(xscale="log", xlim=(0.1, 100), title="Share of pixels")
    ax.set_xticks([0.1, 1, 10, 100], ["0.1%", "1%", "10%", "100%"])
    ax.tick_params(axis="y", length=0)


# ---- Matrices of numbers ----------------------------------------------------------


def draw_matrix(
    ax: Axes,
    values,
    title: str | None = None,
    highlight: Iterable[tuple[int, int]] | Mapping[tuple[int, int], str] = (),
    shade: bool = False,
) -> None:
    """Draw a small matrix as cells with their numbers.

    Args:
        ax: The axes to draw on.
        values: (H, W) or (W,) numbers; the cell of a NaN stays empty.
        title: The title.
        highlight: (row, column) of cells to tint, or a color for each.
        shade: Whether to fill the other cells, darker for larger values.
    """
    numbers = np.atleast_2d(as_array(values)).astype(float)
    if numbers.ndim != 2:
        raise ValueError(f"a matrix has the shape (H, W) or (W,), not {numbers.shape}")
    height, width = numbers.shape
    if not isinstance(highlight, Mapping):
        highlight = dict.fromkeys(map(tuple, highlight), ACCENT)
    texts = _format(numbers)
    box = ax.get_window_extent()
    cell = min(box.width / width, box.height / height) * 72 / ax.figure.dpi
    size = min(14, 0.45 * cell, 1.3 * cell / max(1, *map(len, texts.flat)))
    known = numbers[~np.isnan(numbers)]
    least, span = known.min(initial=np.inf), np.ptp(known) if known.size else 0
    for (row, column), value in np.ndenumerate(numbers):
        fill = "white"
        if shade and not np.isnan(value):
            fill = _HEAT(0.75 * (value - least) / (span or 1))
        if color := highlight.get((row, column)):
            fill = 0.68 + 0.32 * np.array(to_rgb(color))
        ax.add_patch(Rectangle((column, row), 1, 1, fc=fill, ec=MUTED, lw=0.8))
        ink = "white" if np.mean(to_rgb(fill)) < 0.5 else INK
        text = ax.text(
            column + 0.5, row + 0.5, texts[row, column], size=size, color=ink
        )
        text.set(ha="center", va="center_baseline")
    ax.set(xlim=(-0.03, width + 0.03), ylim=(height + 0.03, -0.03), aspect="equal")
    ax.axis("off")
    if title:
        ax.set_title(title, loc="center")


def _format(numbers: np.ndarray) -> np.ndarray:
    """Write numbers with as few decimals as all of them need, at most two."""
    known = numbers[~np.isnan(numbers)]
    digits = next(d for d in (0, 1, 2) if d == 2 or np.allclose(known.round(d), known))
    flat = [f"{x:.{digits}f}".replace("-", "\u2212") for x in numbers.flat]
    return np.where(np.isnan(numbers), "", np.reshape(flat, numbers.shape))


def draw_matrices(
    panels: Mapping[str, object],
    signs: Sequence[str] = (),
    highlights: Mapping[str, object] | None = None,
    shade: bool = False,
) -> Figure:
    """Draw several matrices in a row, with cells of the same size.

    Args:
        panels: The values by their titles.
        signs: What to write between one matrix and the next, such as "+" or "=".
        highlights: The `highlight` of `draw_matrix`, by the same titles.
        shade: As in `draw_matrix`.
    """
    highlights = highlights or {}
    if unknown := set(highlights) - set(panels):
        raise ValueError(f"no panel has the title {', '.join(map(repr, unknown))}")
    shapes = [np.atleast_2d(as_array(values)).shape for values in panels.values()]
    across, down = sum(s[1] for s in shapes), max(s[0] for s in shapes)
    gap, foot, head = 0.5, 0.08, 0.42
    cell = min(0.55, (WIDTH - gap * len(shapes)) / across)
    width, height = cell * across + gap * len(shapes), foot + cell * down + head
    fig = Figure(figsize=(width, height), layout="none")
    left, middle = gap / 2, foot + cell * down / 2
    for i, (title, values) in enumerate(panels.items()):
        h, w = shapes[i]
        box = np.array([left, middle - cell * h / 2, cell * w, cell * h])
        ax = fig.add_axes(box / [width, height, width, height])
        draw_matrix(ax, values, title, highlights.get(title, ()), shade)
        left += cell * w + gap
        if i < len(signs):
            sign = fig.text((left - gap / 2) / width, middle / height, signs[i])
            sign.set(size=16, ha="center", va="center")
    return fig
