"""Every figure that two notebooks share, in one house style.

The helpers return a Matplotlib figure (or draw on axes they are given); `show`
puts it into the notebook with its text alternative, and the file stays small:

    plots.show(plots.scenes(images, masks), alt="Four road scenes ...", photo=True)

Pictures are uint8 (0 to 255) or float (0 to 1), (3, H, W) or (H, W, 3); masks are
integer (H, W), 0 to 11. All can be tv_tensors, tensors on any device or arrays.
"""

import base64
import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, NoNorm, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from roadseg import classes

INK = "#1b2733"
MUTED = "#66727e"
FAINT = "#d9dfe5"
ACCENT = "#0072b2"
CONTRAST = "#d55e00"
LINES: tuple[str, ...] = (ACCENT, CONTRAST, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of lines, in order: told apart by colour-blind readers too.

Okabe and Ito 2008, Color Universal Design, https://jfly.uni-koeln.de/color/.
"""

RIGHT, WRONG = (208, 212, 216), (213, 94, 0)
"""Colours of an error map; void keeps the colour it has in a mask."""

WIDTH = 7.5
"""Width of a figure in inches: with 100 dots an inch, 750 pixels."""

_DPI = 100
_CLASS_COLOURS = ListedColormap(np.array(classes.PALETTE) / 255, name="roadseg")
_HEAT = mpl.colormaps["Blues"]


def use_style() -> None:
    """Set Matplotlib's defaults to the house style, for this process."""
    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.4),
            "figure.dpi": _DPI,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "figure.titlesize": 12,
            "font.family": "DejaVu Sans",
            "font.size": 12,
            "text.color": INK,
            "axes.edgecolor": MUTED,
            "axes.labelcolor": INK,
            "axes.labelsize": 12,
            "axes.prop_cycle": mpl.cycler(color=LINES),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 12,
            "axes.axisbelow": True,
            "grid.color": FAINT,
            "lines.linewidth": 2,
            "lines.markersize": 5,
            "xtick.color": MUTED,
            "xtick.labelcolor": INK,
            "xtick.labelsize": 11,
            "ytick.color": MUTED,
            "ytick.labelcolor": INK,
            "ytick.labelsize": 11,
            "legend.fontsize": 11,
            "legend.frameon": False,
        }
    )


def show(
    fig: Figure,
    alt: str,
    photo: bool = False,
    live: str | None = None,
    again: bool = False,
) -> None:
    """Put a figure into the output once, with its text alternative; close it.

    The text alternative is also the output's plain text, which is what a screen
    reader, a terminal and the notebook checks get. Outside IPython it is printed.

    Args:
        fig: The figure.
        alt: What the figure shows, in words.
        photo: Whether to store it as JPEG (photos) instead of PNG (line art).
        live: A name, for a figure that is to be drawn again while a cell runs.
        again: Whether to take the place of the figure that was shown by that name.

    Raises:
        ValueError: If ``alt`` is empty.
    """
    plt.close(fig)
    if not alt.strip():
        raise ValueError("a figure needs a text alternative: say in alt what it shows")
    if get_ipython() is None:
        print(alt)
        return
    mime = "image/jpeg" if photo else "image/png"
    data = base64.b64encode(_encode(fig, photo)).decode()
    kwargs = {"display_id": live, "update": again} if live else {}
    data = {mime: data, "text/plain": alt}
    display(data, metadata={mime: {"alt": alt}}, raw=True, **kwargs)


def _encode(fig: Figure, photo: bool) -> bytes:
    drawn, stored = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=_DPI, facecolor="white")
    picture = Image.open(drawn).convert("RGB")
    if photo:
        picture.save(stored, "JPEG", quality=85, optimize=True)
    else:
        picture = picture.quantize(256, dither=Image.Dither.NONE)
        picture.save(stored, "PNG", optimize=True)
    return stored.getvalue()


def _array(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        values = values.as_subclass(torch.Tensor).numpy()
    return np.asarray(values)


def _picture(image) -> np.ndarray:
    """Return a picture as (H, W, 3) uint8."""
    rgb = _array(image)
    if rgb.ndim != 3 or 3 not in (rgb.shape[0], rgb.shape[2]):
        raise ValueError(
            f"a picture has the shape (3, H, W) or (H, W, 3), this one {rgb.shape}"
        )
    if rgb.shape[0] == 3:
        rgb = rgb.transpose(1, 2, 0)
    if rgb.dtype == np.uint8:
        return rgb
    if rgb.dtype.kind != "f" or rgb.min() < -1e-3 or rgb.max() > 1 + 1e-3:
        raise ValueError(
            "a picture is uint8, or float between 0 and 1; this one is "
            f"{rgb.dtype}, {rgb.min():g} to {rgb.max():g} "
            "(if it is normalised, use unet.denormalise first)"
        )
    return np.round(rgb.clip(0, 1) * 255).astype(np.uint8)


def _mask(mask, size: tuple[int, ...] | None = None) -> np.ndarray:
    """Return a mask as (H, W) uint8, checked to have a size if one is given."""
    labels = _array(mask)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(
            "a mask holds integers and has the shape (H, W), this one "
            f"{labels.dtype} and {labels.shape}"
        )
    if size is not None and labels.shape != tuple(size):
        raise ValueError(f"the mask is {labels.shape}, what it belongs to {size}")
    classes.colorize(labels)  # raises if a label is not 0 to 11
    return labels.astype(np.uint8)


def overlay(image, mask, alpha: float = 0.55) -> np.ndarray:
    """Lay the colours of a mask over a picture.

    Args:
        image: A picture.
        mask: Its mask, of the same height and width. Void darkens the picture.
        alpha: Weight of the mask's colours, 0 to 1.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: If a shape or a value is wrong.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha lies between 0 and 1, not at {alpha}")
    rgb = _picture(image)
    paint = classes.colorize(_mask(mask, rgb.shape[:2]))
    return np.round((1 - alpha) * rgb + alpha * paint).astype(np.uint8)


def error_map(truth, predicted) -> np.ndarray:
    """Paint each pixel by whether its prediction is right.

    Args:
        truth: (H, W) integers, 0 to 11.
        predicted: The same.

    Returns:
        (H, W, 3) uint8: `WRONG` where they differ, `RIGHT` where they agree, and
        the palette's void where the truth is void, whatever was predicted there.

    Raises:
        ValueError: If a shape or a value is wrong.
    """
    truth = _mask(truth)
    wrong = _mask(predicted, truth.shape) != truth
    paint = np.where(wrong[..., None], WRONG, RIGHT)
    void = (truth == classes.VOID)[..., None]
    return np.where(void, classes.PALETTE[classes.VOID], paint).astype(np.uint8)


def panel(ax: Axes, image, title: str | None = None) -> None:
    """Draw a picture or a mask, told apart by the number of dimensions.

    Args:
        ax: Where to.
        image: A picture, or a mask, which is painted in `classes.PALETTE` and
            remembered for `legend`.
        title: What stands above it.

    Raises:
        ValueError: If a shape or a value is wrong.
    """
    if _array(image).ndim == 2:
        # Where pixels must be merged, "rgba" merges their colours, not their ids.
        exact = {"norm": NoNorm(), "interpolation_stage": "rgba"}
        ax.imshow(_mask(image), cmap=_CLASS_COLOURS, **exact)
    else:
        ax.imshow(_picture(image))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=FAINT, linewidth=0.8)
    if title:
        ax.set_title(title)


def legend(target: Figure | Axes, classes: Sequence[int] | None = None) -> Legend:
    """Name the colours of the classes: below a figure, or on the right of axes.

    Args:
        target: The figure or the axes.
        classes: Ids of the classes (a mask will do). Without it: those in the
            masks that `panel` drew on the target.

    Raises:
        ValueError: If no classes are given and none were drawn, or an id is wrong.
    """
    if classes is None:
        axes = target.axes if isinstance(target, Figure) else [target]
        images = [i for ax in axes for i in ax.images if i.cmap.name == "roadseg"]
        if not images:
            raise ValueError("no mask is drawn here: give the ids of the classes")
        classes = np.concatenate([i.get_array().ravel() for i in images])
    return _legend(target, _class_patches(classes))


def _class_patches(ids: Sequence[int]) -> list[Patch]:
    """Return a patch for each class, by id; void has the highest and comes last."""
    present = np.unique(_array(ids))
    names = list(classes.NAMES)
    names[classes.VOID] += " (void)"
    colours = classes.colorize(present)  # raises if an id is not 0 to 11
    return [_patch(names[i], rgb) for i, rgb in zip(present, colours, strict=True)]


def _patch(label: str, rgb: Sequence[int]) -> Patch:
    return Patch(fc=np.array(rgb) / 255, ec=MUTED, lw=0.5, label=label)


def _legend(target: Figure | Axes, patches: Sequence[Patch]) -> Legend:
    if isinstance(target, Figure):
        place = {"loc": "outside lower center", "ncols": min(len(patches), 5)}
    else:
        place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    return target.legend(
        handles=patches, handlelength=1, handleheight=1, columnspacing=1.2, **place
    )


def scenes(
    images: Sequence,
    masks: Sequence | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 4,
    overlay: bool = False,
) -> Figure:
    """Draw photos in a grid, with their masks and a legend if there are masks.

    Args:
        images: Pictures.
        masks: As many masks: each stands on the right of its picture.
        titles: As many titles, for the pictures.
        columns: Panels side by side; a picture with its mask makes two.
        overlay: Whether masks are laid over their pictures instead.

    Raises:
        ValueError: If a shape, a value or a number of items is wrong.
    """
    titles = _as_many(titles, images, "titles")
    masks = _as_many(masks, images, "masks")
    cells: list[tuple[str | None, object]] = []
    for image, mask, title in zip(images, masks, titles, strict=True):
        if mask is None:
            cells.append((title, image))
        elif overlay:
            cells.append((title, _lay_over(image, mask)))
        else:
            cells += [(title, image), (None, _mask(mask, _picture(image).shape[:2]))]
    ids = [np.unique(_mask(mask)) for mask in masks if mask is not None]
    return _mosaic(cells, columns, _class_patches(np.concatenate(ids)) if ids else [])


_lay_over = overlay  # `scenes` has a parameter of that name


def _as_many(items: Sequence | None, images: Sequence, what: str) -> Sequence:
    if items is None:
        return [None] * len(images)
    if len(items) != len(images):
        raise ValueError(f"{len(images)} pictures, but {len(items)} {what}")
    return items


def prediction(image, truth, predicted) -> Figure:
    """Draw a photo, its true mask, the predicted one and the errors, two by two.

    Args:
        image: A picture.
        truth: Its mask, 0 to 11.
        predicted: The predicted labels, 0 to 11.

    Raises:
        ValueError: If a shape or a value is wrong.
    """
    return _predictions([image], [truth], [predicted], columns=2, labels=[])


def predictions(
    images: Sequence,
    truths: Sequence,
    predicted: Sequence,
    titles: Sequence[str] | None = None,
) -> Figure:
    """Draw what `prediction` draws for several scenes, one a row.

    Args:
        images: Pictures.
        truths: As many masks.
        predicted: As many predictions.
        titles: As many names, which stand beside the rows.

    Raises:
        ValueError: If a shape, a value or a number of items is wrong.
    """
    labels = [] if titles is None else _as_many(titles, images, "titles")
    truths = _as_many(truths, images, "masks")
    predicted = _as_many(predicted, images, "predictions")
    return _predictions(images, truths, predicted, columns=4, labels=labels)


def _predictions(images, truths, predicted, columns: int, labels) -> Figure:
    cells: list[tuple[str | None, object]] = []
    for image, truth, guess in zip(images, truths, predicted, strict=True):
        truth = _mask(truth, _picture(image).shape[:2])
        names = [None] * 4 if cells else ["Photo", "Truth", "Prediction", "Errors"]
        drawn = [image, truth, _mask(guess, truth.shape), error_map(truth, guess)]
        cells += zip(names, drawn, strict=True)
    ids = [np.unique(x) for _, x in cells if _array(x).ndim == 2]
    patches = _class_patches(np.concatenate(ids))
    patches += [_patch("Right", RIGHT), _patch("Wrong", WRONG)]
    return _mosaic(cells, columns, patches, labels)


def _mosaic(
    cells: Sequence[tuple[str | None, object]],
    columns: int,
    patches: Sequence[Patch] = (),
    labels: Sequence[str] = (),
) -> Figure:
    """Draw titled panels in rows, in a figure of just the right height (inches)."""
    if not cells:
        raise ValueError("there is no picture to draw")
    columns = min(columns, len(cells))
    rows = math.ceil(len(cells) / columns)
    across = (WIDTH - (0.3 if labels else 0)) / columns - 0.1
    titles = [textwrap.fill(title or "", int(across / 0.09)) for title, _ in cells]
    lines = sum(
        max(1 + t.count("\n") if t else 0 for t in titles[r * columns :][:columns])
        for r in range(rows)
    )
    shapes = [np.shape(x) if np.ndim(x) == 2 else _picture(x).shape for _, x in cells]
    tall = across * max(shape[0] / shape[1] for shape in shapes)
    height = rows * (tall + 0.1) + 0.24 * lines + 0.26 * math.ceil(len(patches) / 5)
    fig = Figure(figsize=(WIDTH, height), layout="compressed")
    axes = fig.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(cells) :]:
        ax.remove()
    for ax, title, (_, image) in zip(axes.flat, titles, cells, strict=False):
        panel(ax, image, title)
    for ax, label in zip(axes[:, 0], labels, strict=False):
        ax.set_ylabel(label)
    if patches:
        _legend(fig, patches)
    return fig


def feature_maps(
    features: torch.Tensor | Mapping[str, torch.Tensor],
    channels: Sequence[int] = range(6),
) -> Figure:
    """Draw a few channels of a feature map as a strip, bright where they are large.

    Each channel has its own scale, from its least value to its greatest.

    Args:
        features: (C, H, W) or (1, C, H, W) floats; or several under their names,
            one strip each.
        channels: Which channels.

    Raises:
        ValueError: If a shape is wrong or there is no such channel.
    """
    strips = features if isinstance(features, Mapping) else {"": features}
    cells: list[tuple[str | None, object]] = []
    for name, values in strips.items():
        maps = _array(values)
        maps = maps[0] if maps.ndim == 4 and len(maps) == 1 else maps
        if maps.ndim != 3 or max(channels) >= len(maps):
            raise ValueError(
                f"a feature map has the shape (C, H, W) with C above {max(channels)}, "
                f"{name or 'this one'} {maps.shape}"
            )
        for channel in channels:
            title = f"Channel {channel}" if len(cells) < len(channels) else None
            cells.append((title, _heat(maps[channel])))
    return _mosaic(cells, len(channels), labels=[name for name in strips if name])


def _heat(values: np.ndarray) -> np.ndarray:
    span = values.max() - values.min() or 1
    return mpl.colormaps["magma"]((values - values.min()) / span, bytes=True)[..., :3]


def curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw the losses and the scores of a training, epoch by epoch.

    Args:
        history: One mapping an epoch. Keys that end in ``loss`` share a panel,
            keys that end in ``acc``, ``acc12`` or ``miou`` (0 to 1) another; a key
            may be missing in some epochs. ``epoch`` counts from 1 without that key.

    Raises:
        ValueError: If there is nothing to draw.
    """
    keys = list(dict.fromkeys(key for row in history for key in row))
    losses = [key for key in keys if key.endswith("loss")]
    scores = [key for key in keys if key.endswith(("acc", "acc12", "miou"))]
    panels = [(k, n) for k, n in ((losses, "Loss"), (scores, "Score")) if k]
    if not panels:
        raise ValueError(f"the history has neither losses nor scores, but: {keys}")
    fig = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = fig.subplots(1, len(panels), squeeze=False)[0]
    for ax, (names, title) in zip(axes, panels, strict=True):
        for key in names:
            points = [
                (row.get("epoch", i), float(row[key]))
                for i, row in enumerate(history, 1)
                if row.get(key) is not None
            ]
            ax.plot(*zip(*points, strict=True), marker="o", label=_words(key))
        ax.set(title=title, xlabel="Epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.grid(axis="y")
        ax.legend()
    return fig


def _words(key: str) -> str:
    """Return ``val_miou`` as "Validation mIoU"."""
    known = {
        "trn": "training",
        "train": "training",
        "val": "validation",
        "acc": "accuracy",
        "acc12": "accuracy with void",
        "miou": "mIoU",
    }
    words = " ".join(known.get(part, part) for part in key.split("_"))
    return words if words.startswith("mIoU") else words[0].upper() + words[1:]


def confusion(scores) -> Figure:
    """Draw where the pixels of each class went, as a heat map of percentages.

    Args:
        scores: An `evaluation.Scores`: its ``confusion`` is (12, 12) pixel counts,
            a row for each true class, a column for each predicted one.
    """
    percent = _row_percent(scores.confusion)
    names = classes.NAMES[: classes.NUM_SCORED]
    fig = Figure(figsize=(WIDTH, 6.6), layout="constrained")
    ax = fig.subplots()
    ax.imshow(percent, cmap=_HEAT, norm=PowerNorm(0.6, 0, 130))
    for (row, column), value in np.ndenumerate(percent):
        if value >= 1:
            colour = "white" if value > 60 else INK
            ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour)
    ticks = range(classes.NUM_SCORED)
    ax.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
    absent = np.isnan(percent[:, 0])
    ax.set_yticks(
        ticks, [f"{n} (absent)" if a else n for n, a in zip(names, absent, strict=True)]
    )
    ax.set(xlabel="Predicted class", ylabel="True class")
    ax.set_title("Where the pixels of each true class went, %")
    ax.set_xticks(np.arange(0.5, 10), minor=True)
    ax.set_yticks(np.arange(0.5, 10), minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    return fig


def _row_percent(counts) -> np.ndarray:
    """Return (11, 11) shares of each true class, in percent; NaN where it is absent.

    A pixel predicted void counts in its row's total: it is an error.
    """
    counts = _array(counts).astype(float)
    if counts.shape != (classes.NUM_CLASSES,) * 2:
        raise ValueError(f"a confusion matrix is (12, 12), this one {counts.shape}")
    scored = counts[: classes.NUM_SCORED]
    totals = scored.sum(1, keepdims=True)
    share = np.divide(
        scored, totals, out=np.full_like(scored, np.nan), where=totals > 0
    )
    return 100 * share[:, : classes.NUM_SCORED]


def class_bars(scores, shares=None) -> Figure:
    """Draw the IoU of each class, best first, and how common the class is.

    Args:
        scores: An `evaluation.Scores`: ``iou`` is (11,), 0 to 1, NaN for a class
            that is absent; ``miou`` is their mean.
        shares: (11,) or (12,) shares of the pixels, 0 to 1, for a second panel.

    Raises:
        ValueError: If a shape is wrong.
    """
    iou = _array(scores.iou).astype(float)
    if iou.shape != (classes.NUM_SCORED,):
        raise ValueError(f"iou has the shape (11,), this one {iou.shape}")
    order = np.argsort(np.nan_to_num(iou, nan=-1), kind="stable")
    colours = np.array(classes.PALETTE)[order] / 255
    fig = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    if shares is None:
        ax = fig.subplots()
    else:
        ax, beside = fig.subplots(1, 2, sharey=True, width_ratios=(5, 3))
        _share_dots(beside, _array(shares), order, colours)
    ax.barh(range(len(order)), np.nan_to_num(iou[order]), color=colours, ec=MUTED)
    for row, value in enumerate(iou[order]):
        text, x = ("absent", 0) if np.isnan(value) else (f"{value:.2f}", value)
        back = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        ax.text(x + 0.015, row, text, va="center", fontsize=11, bbox=back)
    ax.axvline(scores.miou, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    ax.set(title=f"IoU (dashed: mIoU, {scores.miou:.2f})", xlim=(0, 1.12))
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    ax.set_yticks(range(len(order)), [classes.NAMES[i] for i in order])
    ax.tick_params(axis="y", length=0)
    return fig


def _share_dots(ax: Axes, shares: np.ndarray, order: np.ndarray, colours) -> None:
    if shares.shape not in ((classes.NUM_SCORED,), (classes.NUM_CLASSES,)):
        raise ValueError(f"shares has the shape (11,) or (12,), not {shares.shape}")
    percent = 100 * shares[order]
    rows = range(len(order))
    ax.hlines(rows, 0, percent, color=FAINT, linewidth=1.5, zorder=1)
    ax.scatter(percent, rows, s=64, color=colours, edgecolor=MUTED, linewidth=0.5)
    ax.set(xscale="log", xlim=(0.1, 100), title="Share of pixels")
    ax.set_xticks([0.1, 1, 10, 100], ["0.1%", "1%", "10%", "100%"])
    ax.tick_params(axis="y", length=0)


def grid(
    ax: Axes,
    values,
    title: str | None = None,
    highlight: Iterable[tuple[int, int]] | Mapping[tuple[int, int], str] = (),
    shade: bool = False,
) -> None:
    """Draw a small tensor as a grid of cells with its numbers.

    Args:
        ax: Where to.
        values: (H, W) or (W,) numbers; the cell of a NaN stays empty.
        title: What stands above it.
        highlight: (row, column) of cells to tint, or a colour for each.
        shade: Whether to fill the other cells, darker for larger values.

    Raises:
        ValueError: If the shape is wrong.
    """
    numbers = np.atleast_2d(_array(values)).astype(float)
    if numbers.ndim != 2:
        raise ValueError(f"a grid has the shape (H, W) or (W,), not {numbers.shape}")
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
        if colour := highlight.get((row, column)):
            fill = 0.68 + 0.32 * np.array(to_rgb(colour))
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


def grids(
    panels: Mapping[str, object],
    signs: Sequence[str] = (),
    highlights: Mapping[str, object] | None = None,
    shade: bool = False,
) -> Figure:
    """Draw several `grid`s in a row, with cells of the same size.

    Args:
        panels: The values under their titles.
        signs: What stands between one grid and the next, such as "+" or "=".
        highlights: `grid`'s ``highlight`` under the same titles.
        shade: As in `grid`.

    Raises:
        ValueError: If a shape is wrong.
    """
    highlights = highlights or {}
    if unknown := set(highlights) - set(panels):
        raise ValueError(f"no panel has the title {', '.join(map(repr, unknown))}")
    shapes = [np.atleast_2d(_array(values)).shape for values in panels.values()]
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
        grid(ax, values, title, highlights.get(title, ()), shade)
        left += cell * w + gap
        if i < len(signs):
            sign = fig.text((left - gap / 2) / width, middle / height, signs[i])
            sign.set(size=16, ha="center", va="center")
    return fig
